"""A normal whose mean, and maybe its standard deviation, is a network's answer."""

import torch
from torch import Tensor, nn

from .._types import Distribution
from ..likelihoods import DecodedSigma, FixedSigma, Gaussian, LearnedSigma
from ..registry import registered


@registered(sigma="normal.sigma")
class NormalGiven(nn.Module):
    r"""A vector given what came before it, :math:`p(z \mid x) = \mathcal{N}(\mu(x), \sigma(x)^2)`.

    One link of a program: the layer of a ladder, the transition of a state-space model, a prior
    that depends on covariates.

    Arguments:
        net: From what is given, each `(batch, ...)`, to the means `(batch, latents)`; and to
            twice as many numbers where sigma depends on what is given, as it does by default.
        sigma: A number for a fixed sigma, or one of the likelihoods' `FixedSigma`,
            `LearnedSigma`, `DecodedSigma`.

    Example:
        >>> layer = NormalGiven(nn.Linear(2, 3), sigma=0.5)
        >>> layer(torch.zeros(5, 2)).event_shape
        torch.Size([3])
    """

    def __init__(
        self,
        net: nn.Module,
        sigma: float | int | FixedSigma | LearnedSigma | DecodedSigma | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.normal = Gaussian(DecodedSigma() if sigma is None else sigma)

    def forward(self, *given: Tensor) -> Distribution:
        """The normal, of event shape `(latents,)`."""
        return self.normal.distribution(self.net(*given)).to_event(1)


def as_normal(link: nn.Module) -> NormalGiven:
    """A link, from one or from its net."""
    return link if isinstance(link, NormalGiven) else NormalGiven(link)


def latents_of(link: NormalGiven, *given: Tensor) -> int:
    """How many latents a link gives, found by asking it.

    Raises:
        ValueError: If it cannot take what is given.
    """
    shapes = [tuple(part.shape) for part in given]
    modes = {module: module.training for module in link.modules()}
    try:
        with torch.no_grad():
            return int(link.eval()(*given).event_shape[0])
    except (RuntimeError, ValueError, TypeError) as error:
        raise ValueError(
            f"a net of the model could not take tensors of shape {shapes}: {error}"
        ) from error
    finally:
        for module, mode in modes.items():
            module.training = mode
