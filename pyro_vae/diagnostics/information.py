r"""The information that the latents carry about the identity of the datum.

With :math:`q(z) = \frac{1}{N} \sum_n q(z \mid y_n)` the aggregated posterior, the rate splits into
the information in z about the identity of the datum, and the divergence of the aggregate from the
prior ("ELBO surgery"):

.. math:: \frac{1}{N} \sum_n \mathrm{KL}(q(z \mid y_n) \,\|\, p(z))
    = I_q(n; z) + \mathrm{KL}(q(z) \,\|\, p(z)), \qquad 0 \le I_q(n; z) \le \log N
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from .. import stats
from .._types import Data, Estimate, ProgramLike
from ..evidence.proposals import density_at
from ..evidence.weights import conditioned
from ..formatting import count_of
from ..guides import Posterior
from ..randomness import seeded, stream
from ..results import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PAIRS_AT_ONCE = 200_000  # points times data; bounds the memory of the aggregated posterior
_PAIRS_IN_ALL = 20_000_000  # densities that take seconds; with many data, each gets fewer draws


@dataclass(frozen=True, repr=False)
class MutualInformation(Result):
    """Mutual information between z and the identity of the datum, in nats.

    Arguments:
        estimate: The mutual information and its Monte Carlo error, scalars.
        ceiling: The logarithm of the number of data, which the mutual information cannot exceed.
        num_samples: Draws used per datum.
    """

    estimate: Estimate
    ceiling: float
    num_samples: int

    def summary(self) -> str:
        """States the estimated mutual information and its upper limit."""
        return (
            f"z carries {self.estimate} nats of information about the datum, at most log N = "
            f"{self.ceiling:.2f} ({count_of(self.num_samples, 'draw')} per datum)"
        )

    def plot(self) -> "Axes":
        """Plots the estimated mutual information and its upper limit; needs matplotlib."""
        from ..plots import plot_comparison

        value = self.estimate.value
        ceiling = Estimate(value.new_tensor(self.ceiling), value.new_tensor(math.nan))
        shown = {"information": self.estimate, "log N": ceiling}
        return plot_comparison({"mutual information": shown})


def mutual_information(
    model: ProgramLike,
    guide: ProgramLike,
    data: Data,
    num_samples: int | None = None,
    *,
    seed: int = 0,
) -> MutualInformation:
    r"""Estimates how much information z has about the identity of the datum.

    .. math:: I_q(n; z) = \frac{1}{N} \sum_n \mathbb{E}_{q(z \mid y_n)} \left[
        \log q(z \mid y_n) - \log \frac{1}{N} \sum_m q(z \mid y_m) \right]

    Every draw is compared with the posteriors of all N data, so the cost grows with :math:`N^2`.
    Estimates from a mini-batch are biased.

    Arguments:
        model: The Pyro program.
        guide: A :class:`pyro_vae.Guide`, or a guide program written by hand.
        data: The batch tensor, or a tuple of tensors. The aggregate is over all these data.
        num_samples: Draws per datum, at least two; by default chosen to take a few seconds.
        seed: Seed of the draws.

    Returns:
        The estimate with its Monte Carlo error, and the ceiling :math:`\log N`.

    Raises:
        ValueError: If fewer than two draws are requested, or data, model and guide do not fit
            together.

    References:
        | ELBO surgery: yet another way to carve up the variational evidence lower bound
          (Hoffman & Johnson, 2016)
        | Isolating Sources of Disentanglement in VAEs (Chen et al., 2018)
        | https://arxiv.org/abs/1802.04942

    Example:
        >>> from pyro_vae import GlobalParameters, Guide, likelihoods, models
        >>> model = models.VAE(torch.nn.Linear(1, 3), likelihoods.Gaussian(), latent_dim=1)
        >>> result = mutual_information(model, Guide(model, GlobalParameters()), torch.zeros(9, 3))
        >>> bool(result.estimate.value.abs() < 1e-5), round(result.ceiling, 3)
        (True, 2.197)
    """
    with conditioned(model, guide, data, seed) as (_, posterior, batch):
        num_data = len(batch[0])
        draws = draws_per_datum(num_samples, num_data)
        seeded(stream(seed, "information"))
        z, log_q = posterior.draw(draws)
        information = log_q.double() - log_aggregate(posterior, z)
    estimate = stats.mean_over_data(stats.mean_estimate(information))
    return MutualInformation(estimate, math.log(num_data), draws)


def draws_per_datum(num_samples: int | None, num_data: int) -> int:
    """Returns the number of draws per datum.

    If `num_samples` is `None`, the number is chosen so that the estimate takes a few seconds.

    Raises:
        ValueError: If the number is less than two.
    """
    if num_samples is None:
        return max(2, min(100, _PAIRS_IN_ALL // num_data**2))
    if num_samples < 2:
        raise ValueError(f"`num_samples` must be at least 2 draws per datum; got {num_samples}")
    return num_samples


def log_aggregate(
    posterior: Posterior, z: Float[Tensor, "particles data latents"]
) -> Float[Tensor, "particles data"]:
    r"""Computes the log density of the aggregated posterior of N data at given points.

    .. math:: \log \frac{1}{N} \sum_m q(z \mid y_m)

    Arguments:
        posterior: The approximate posterior of all N data.
        z: Points, `(particles, data, latents)`; each is compared with all N posteriors.

    Returns:
        One number per point, float64, in nats.

    Raises:
        ValueError: If the posterior's density cannot be evaluated at points that it did not draw.
    """
    points = z.reshape(-1, 1, z.shape[-1])
    size = max(1, _PAIRS_AT_ONCE // len(posterior))
    parts = [
        stats.log_mean_exp(
            density_at(posterior, piece.expand(-1, len(posterior), -1)).transpose(0, 1)
        )
        for piece in points.split(size)
    ]
    return torch.cat(parts).view(z.shape[:-1])
