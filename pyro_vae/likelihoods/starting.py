"""Where training starts: a decoder's bias, and averages of columns that have holes."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn


def start_from(decoder: nn.Module, start: Tensor) -> None:
    """Sets the bias of a decoder's last linear layer, so that training starts from an output.

    Arguments:
        decoder: A module whose last linear layer gives its output, as those of
            :class:`pyro_vae.nets.MLPDecoder` and `Likelihood.output_layer` do.
        start: That output for a datum, as `Likelihood.start` gives it.

    Raises:
        ValueError: If there is no such layer with a bias of that size.

    Example:
        >>> decoder, y = nn.Linear(2, 3), torch.tensor([[1.0, 2.0, 3.0], [1.0, float("nan"), 5.0]])
        >>> from pyro_vae.likelihoods import Gaussian
        >>> start_from(decoder, Gaussian().start(y))
        >>> decoder.bias.tolist()
        [1.0, 2.0, 4.0]
    """
    layers = [layer for layer in decoder.modules() if isinstance(layer, nn.Linear)]
    bias = layers[-1].bias if layers else None
    if bias is None or bias.numel() != start.numel():
        found = "no linear layer" if bias is None else f"{bias.numel()} numbers"
        raise ValueError(
            f"the start has {start.numel()} numbers, so the decoder's last linear layer needs a "
            f"bias of as many; found {found}: set the start where the decoder makes its output"
        )
    with torch.no_grad():
        bias.copy_(start.flatten())


def column_means(y: Float[Tensor, "batch *datum"]) -> Float[Tensor, "*datum"]:
    """Mean of the entries that were observed; 0 where there are none."""
    return y.nanmean(dim=0).nan_to_num(nan=0.0)


def column_spreads(y: Float[Tensor, "batch *datum"]) -> Float[Tensor, "*datum"]:
    """Standard deviation of the entries that were observed; 0 where there are none."""
    return column_means((y - column_means(y)).square()).sqrt()


def column_shares(hits: Tensor, y: Float[Tensor, "batch *datum"]) -> Float[Tensor, "*datum"]:
    """Share of the observed entries at which `hits` is true, with half a hit and half a miss more.

    So it is never 0 or 1, whose logits are infinite.
    """
    observed = ~y.isnan()
    return ((hits & observed).sum(dim=0).to(y) + 0.5) / (observed.sum(dim=0).to(y) + 1)


def inverse_of(
    increasing: Callable[[Tensor], Tensor], value: Tensor, low: float, high: float
) -> Tensor:
    """Where an increasing function has this value, entry by entry, by bisection."""
    lower, upper = torch.full_like(value, low), torch.full_like(value, high)
    for _ in range(50):  # halvings: to rounding in float32, 1e-13 of the interval
        middle = (lower + upper) / 2
        below = increasing(middle) < value
        lower, upper = torch.where(below, middle, lower), torch.where(below, upper, middle)
    return (lower + upper) / 2
