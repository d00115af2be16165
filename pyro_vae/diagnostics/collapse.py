"""Which latents a guide uses."""

from jaxtyping import Float
from torch import Tensor

ACTIVE_VARIANCE = 0.01  # the threshold of Burda et al., who saw the variances fall into two groups


def active_units(means: Float[Tensor, "data latents"]) -> tuple[int, Tensor]:
    r"""Counts the latents whose posterior mean varies over the data.

    .. math:: A_i = \mathrm{Var}_n \, \mathbb{E}_{q(z \mid y_n)}[z_i] > 0.01

    Arguments:
        means: Posterior means, `(data, latents)`, as from `guide.mean(y)`.

    Returns:
        The number of active latents, and the variances `(latents,)`.

    Raises:
        ValueError: If there are fewer than two data.

    References:
        | Importance Weighted Autoencoders (Burda et al., 2016)
        | https://arxiv.org/abs/1509.00519

    Example:
        >>> import torch
        >>> active_units(torch.tensor([[0.0, 1.0], [0.0, -1.0]]))
        (1, tensor([0., 2.], dtype=torch.float64))
    """
    if len(means) < 2:
        raise ValueError(f"a variance over data needs at least 2 data, got {len(means)}")
    variances = means.double().var(dim=0)
    return int((variances > ACTIVE_VARIANCE).sum()), variances
