r"""Calibration of a guide near a datum: posterior simulation-based calibration.

Calibration on average says little about the datum at hand. If a program draws :math:`z^\star \sim
p(z \mid y_n)` and then :math:`y' \sim p(y \mid z^\star)`, then :math:`z^\star` is a draw from

.. math:: p(z \mid y', y_n) \propto p(z \mid y') \, p(y_n \mid z) .

A guide takes one datum, so it cannot return the posterior given both :math:`y'` and :math:`y_n`.
But let :math:`z_0 = z^\star` and :math:`z_1, \ldots, z_L \sim p(z \mid y')`. Given :math:`y'`,
:math:`y_n` and the set of these values, the probability that :math:`y'` was drawn from :math:`z_l`
is :math:`\bar w_l \propto p(y_n \mid z_l)`. So for any function t, with :math:`t_l = t(z_l, y')`,
and for v uniform on (0, 1),

.. math:: u = \sum_{l : t_l < t_0} \bar w_l + v \sum_{l : t_l = t_0} \bar w_l

is uniform, exactly, for any L, if :math:`q(z \mid y')` is the posterior of :math:`y'`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from .. import stats
from .._types import Data, Estimate, ProgramLike
from ..evidence.weights import conditioned
from ..formatting import count_of
from ..guides.entry import for_new_rows, shared_only
from ..programs.simulation import replicated
from ..programs.traces import repeat_rows
from ..randomness import forked, generator, stream
from ..results import Doubt
from .calibration import (
    Calibration,
    Quantity,
    Ranked,
    latent_names,
    log_likelihood,
    require_discrete_draws,
)
from .local import PValues, TrustedDraws, doubts_of_draws, require_draws

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_REMEDY = "use pv.diagnostics.simulation_based_calibration, which draws these sites from the model"
_PER_REPLICATE = 4.0  # ESS for each replicate; repeated draws then widen the null by at most 5%


@dataclass(frozen=True, repr=False)
class PosteriorCalibration(PValues):
    """A p-value per datum, and the ranks of simulated latents among the guide's draws.

    The attribute `statistic` is computed from the mean rank of each quantity, scaled to the
    interval from 0 to 1: it is the largest difference between such a mean and 1/2.

    Arguments:
        ranks: Ranks from 0 to `num_samples`, `(batch, replicates, quantities)`; uniform if the
            guide is calibrated near the datum.
        ess: Median over the replicates of the effective number of the guide's draws, `(batch,)`;
            if it is small, the test has little power.
        names: Names of the quantities: latents by site, then functions of z and y.
        num_samples: Draws of the guide per replicate.
        given: Text that names the global sites on which the posterior is conditional; empty if
            there are none.
    """

    ranks: Int[Tensor, "batch replicates quantities"] = field(kw_only=True)
    ess: Float64[Tensor, " batch"] = field(kw_only=True)
    names: tuple[str, ...] = field(kw_only=True, metadata={"axis": None})
    num_samples: int = field(kw_only=True)
    given: str = field(kw_only=True, default="")

    def near(self, row: int) -> Calibration:
        """Returns the ranks near one datum as a separate result, with its verdict."""
        return Calibration(self.ranks[row], self.names, self.num_samples, (), self.given)

    @property
    def pooled(self) -> Calibration:
        """Pools the ranks of all data that can be tested.

        The pooled ranks are uniform, too, if the guide is calibrated near all of these data.
        """
        ranks = self.ranks[self.reliable].flatten(0, 1)
        if not len(ranks):
            raise ValueError(f"no datum can be tested ({self.reasons})")
        return Calibration(ranks, self.names, self.num_samples, (), self.given)

    def columns(self) -> dict[str, Tensor]:
        """Returns p-values, the statistic, rejections, and effective numbers of draws, by name."""
        return {**super().columns(), "ess": self.ess}

    def summary(self, control: stats.Control | None = None) -> str:
        """States for how many data the guide is rejected, and how many draws are effective."""
        own = (
            f"{super().summary(control)}; of {count_of(self.num_samples, 'draw')} of the guide, "
            f"{float(self.ess.median()):.0f} are effective (median over data)"
        )
        return f"{self.pooled.summary()}\n{own}" if bool(self.reliable.any()) else own

    def plot(self) -> "Axes":
        """Plots the pooled ranks with a band for uniform ranks; needs matplotlib."""
        return self.pooled.plot()


def posterior_calibration(
    model: ProgramLike,
    guide: ProgramLike,
    data: Data,
    draws: TrustedDraws,
    num_replicates: int = 100,
    num_samples: int = 99,
    *,
    quantities: Mapping[str, Quantity] | None = None,
    given: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> PosteriorCalibration:
    r"""Tests whether a guide is calibrated near each datum (posterior SBC).

    .. math:: z^\star \sim p(z \mid y_n), \quad y' \sim p(y \mid z^\star), \quad
        z_1, \ldots, z_L \sim q(z \mid y'), \quad
        u = \sum_{l : t_l < t_\star} \bar w_l + v \, \bar w_\star , \quad w_l = p(y_n \mid z_l)

    This tests whether :math:`q(z \mid y') = p(z \mid y')` for data :math:`y'` drawn from the
    posterior predictive distribution given :math:`y_n`. If these posteriors are equal, u is uniform
    for any number of draws. The weights turn the posterior given :math:`y'` into the posterior
    given both :math:`y'` and :math:`y_n`; without weights, u is not uniform even for the exact
    posterior. The test does not concern :math:`q(z \mid y_n)` itself: use :func:`two_sample_test`
    for that. If few of the guide's draws are effective, which is likely with many latents, the test
    has little power.

    Arguments:
        model: A Pyro program `model(*batch)` with one plate over data, whose observations are
            tensors of the batch or parts of them.
        guide: A :class:`pyro_vae.Guide`, or a guide program written by hand. A guide with
            parameters per datum is fitted to the replicates.
        data: The batch tensor, or a tuple of tensors.
        draws: Draws of the posterior of these data, from :func:`pyro_vae.posterior_draws`.
        num_replicates: Number of simulated :math:`y'` per datum.
        num_samples: Draws of the guide per replicate, :math:`L`.
        quantities: Functions of z and :math:`y'` that are ranked in addition to the latents; by
            default only :math:`\log p(y' \mid z)` (:func:`log_likelihood`).
        given: Values of the latent sites that all data share, by name.
        seed: Seed of all random numbers; the caller's random stream is left alone.
        progress: Whether to show a progress bar; by default on terminals and in notebooks.

    Returns:
        Ranks, and a p-value per datum, adjusted for the number of quantities (Holm). A
        datum cannot be tested if its posterior draws are not reliable, or if their effective number
        is less than 4 times `num_replicates`.

    Raises:
        ValueError: If the program cannot be simulated row by row, a discrete site is summed out,
            or the draws are not of these data.

    References:
        | Posterior SBC: Simulation-Based Calibration Checking Conditional on Data
          (Säilynoja, Schmitt, Bürkner & Vehtari, 2025)
        | https://arxiv.org/abs/2502.03279
        | Conformal Prediction Under Covariate Shift (Tibshirani et al., 2019), for weighted
          exchangeability
        | https://arxiv.org/abs/1904.06019

    Example:
        >>> import pyro
        >>> import pyro_vae as pv
        >>> def model(y):
        ...     with pyro.plate("data", len(y)):
        ...         z = pyro.sample("z", pyro.distributions.Normal(0.0, 1.0))
        ...         pyro.sample("y", pyro.distributions.Normal(z, 1.0), obs=y)
        >>> guide = pv.Guide(model, pv.ExactPosterior(), example=torch.zeros(1))
        >>> y = torch.tensor([2.0, 1.0])
        >>> draws = pv.posterior_draws(model, guide, y)
        >>> result = posterior_calibration(model, guide, y, draws, num_samples=19)
        >>> result.ranks.shape, bool((result.value > 1e-6).all())
        (torch.Size([2, 100, 2]), True)
    """
    functions = {"log p(y | z)": log_likelihood} if quantities is None else quantities
    with conditioned(model, shared_only(guide), data, seed, given) as (program, _, batch):
        require_draws(draws, program, batch)
        require_discrete_draws(program, "data cannot be simulated near a datum", _REMEDY)
        truth = _picked(draws.z, num_replicates, seed)
        with forked(seed, "posterior_calibration.data"):
            simulated = replicated(program, truth, batch)
        observed = repeat_rows(batch, num_replicates)
    guide = for_new_rows(guide, simulated, given=given, seed=seed, progress=progress)
    with conditioned(model, guide, simulated, seed, given) as (program, posterior, rows):
        ranked = Ranked(program, posterior, rows, functions, num_samples)
        pieces = ranked.weighed(truth.flatten(0, 1), observed, seed, progress=progress)
        shares, ess = _weighted_shares(pieces, seed)
    ranks = (shares * (num_samples + 1)).long().clamp(max=num_samples)
    ranks = ranks.unflatten(0, truth.shape[:2]).transpose(0, 1).cpu()
    p_values, shift = _uniformity(ranks, num_samples)
    doubts = {doubt: mask.cpu() for doubt, mask in doubts_of_draws(draws).items()}
    doubts[Doubt.FEW_EFFECTIVE_DRAWS] = draws.ess.cpu() < _PER_REPLICATE * num_replicates
    return PosteriorCalibration(
        Estimate(p_values, torch.zeros_like(p_values)), shift,
        "q(z | y') is the posterior of data y' simulated near y",
        "shift of the mean rank from 1/2, for the worst quantity", doubts,
        ranks=ranks, ess=ess.unflatten(0, truth.shape[:2]).median(dim=0).values.cpu(),
        names=(*latent_names(program), *functions), num_samples=num_samples,
        given=program.conditions,
    )  # fmt: skip


def _picked(z: Float[Tensor, "draws batch latents"], number: int, seed: int) -> Tensor:
    """Picks draws of each datum at random; no draw is picked twice if there are enough draws."""
    chance = generator(stream(seed, "posterior_calibration.draws"))
    order = torch.cat([
        torch.rand(len(z), z.shape[1], generator=chance, device="cpu").argsort(dim=0)
        for _ in range(-(-number // len(z)))
    ])[:number].to(z.device)  # fmt: skip
    return z[order, torch.arange(z.shape[1], device=z.device)]


def _weighted_shares(pieces: Iterator[tuple[Tensor, Tensor]], seed: int) -> tuple[Tensor, Tensor]:
    """Returns what share of the weight belongs to values below the true value, and the ESS.

    `pieces` yields values `(particles, batch, quantities)` and log weights `(particles, batch)`.
    The first item is for the true latents; all other items are for draws of the guide. Values that
    are equal to the true value add a random part of their weight to the share.
    """
    truth, log_weight = next(pieces)
    total, squares = log_weight[0], 2 * log_weight[0]
    equal = total[:, None].expand(truth[0].shape)
    below = torch.full_like(equal, -torch.inf)
    for values, weights in pieces:
        by_quantity = weights[..., None].expand(values.shape)
        below = _added(below, by_quantity.masked_fill(values >= truth, -torch.inf))
        equal = _added(equal, by_quantity.masked_fill(values != truth, -torch.inf))
        total, squares = _added(total, weights), _added(squares, 2 * weights)
    chance = generator(stream(seed, "posterior_calibration.ties"))
    uniform = torch.rand(equal.shape, generator=chance, dtype=torch.float64, device="cpu")
    uniform = uniform.to(equal.device)
    shares = (below - total[:, None]).exp() + uniform * (equal - total[:, None]).exp()
    return shares, (2 * total - squares).exp()


def _added(log_sum: Tensor, terms: Float[Tensor, "particles *shape"]) -> Tensor:
    """Adds terms to a sum; the terms, the sum and the result are given by their logarithms."""
    return torch.logaddexp(log_sum, terms.logsumexp(dim=0))


def _uniformity(
    ranks: Int[Tensor, "batch replicates quantities"], num_samples: int
) -> tuple[Tensor, Tensor]:
    """Tests, for each datum, whether its ranks are uniform; returns p-values and a statistic.

    The p-value is the smallest over the quantities, adjusted for their number. The statistic is the
    largest difference between 1/2 and a quantity's mean rank, scaled to the interval from 0 to 1.
    """
    p_values = [float(Calibration(own, (), num_samples, ()).adjusted.min()) for own in ranks]
    places = (ranks.double() + 0.5) / (num_samples + 1)
    shift = (places.mean(dim=1) - 0.5).abs().amax(dim=-1)
    return torch.tensor(p_values, dtype=torch.float64, device="cpu"), shift
