r"""Independent checks of an estimate of log p(y), which look for mass that its draws missed.

The weights of a proposal cannot show a mode that none of its draws reached. So
:class:`pyro_vae.Tightest` checks each estimate :math:`\log \hat p` by other computations, which do
not depend on the proposal:

* An estimate from prior draws. It is unbiased, so it is seldom far too high, even if it comes from
  a single draw.
* For time series, an estimate from a small particle filter, :math:`\log \hat p_{\text{filter}}`.
  The prior draws of a long series seldom come near the posterior. The particles of a filter do,
  because they are resampled at each time. A datum is in doubt unless

  .. math:: \log \hat p_{\text{filter}} - \log \hat p \le
      4 \, \sqrt{\mathrm{se}_{\text{filter}}^2 + \mathrm{se}^2} .

* Fits from several starting points, which must not end at a second mode.
* For a mixture that is fitted to a population of particles, the particles of islands that are left
  out of the fit (:func:`held_out_mass`).

Each check but the last is made at most once per datum.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeVar

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from .._types import Batch, Estimate
from ..guides import FitRows, Posterior
from ..programs import Program
from ..programs.pieces import take_rows
from ..randomness import stream
from ..results import join
from .filtering import ParticleFilter, Stage, stages_of
from .fitted import other_modes
from .results import LogMarginal
from .saturation import from_prior, missed_mass
from .tempering import Population
from .unreached import unreached_at
from .weights import Inference

MOST_EXCESS = 4.0
"""Largest difference of two estimates, in units of their joint error."""

_CHANCE = 2.0  # joint errors by which right estimates may differ
_NEGLIGIBLE = 1e-3  # nats, added to the joint error: estimates from equal weights have none
# As MOST_EXCESS, for prior draws. If one draw outweighs all others, their error is one nat, and by
# Markov's inequality a right estimate is doubted for less than 0.3% of the data.
_MOST_OF_PRIOR = 6.0
_FOLDS = 4  # parts of a population's islands; each is left out of one fit
_FILTER_PARTICLES = 64  # per island, which makes 1,024 in all, about as many as prior draws

_Finding = TypeVar("_Finding")


@dataclass
class Checks:
    """Checks of estimates for some data, with the findings that have been made so far.

    Arguments:
        program: The model.
        posterior: The guide's posterior of every datum.
        batch: The data.
        filtering: Settings of the particle filter; fewer particles are used for checks.
        seed: Seed of the particle filter's draws.
    """

    program: Program
    posterior: Posterior
    batch: Batch
    filtering: ParticleFilter
    seed: int
    _from_prior: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    _from_filter: dict[int, LogMarginal] = field(default_factory=dict)
    _several: dict[int, bool] = field(default_factory=dict)

    @cached_property
    def stages(self) -> list[Stage]:
        """The stages of a particle filter; there is only one if the data have no order in time."""
        return stages_of(self.program, self.batch)

    def missed(self, result: LogMarginal, rows: Int64[Tensor, " some"]) -> Bool[Tensor, " some"]:
        """Returns a mask of the data for which another estimate is significantly above `result`.

        The other estimates are from prior draws and, for time series, from a small particle filter.

        Arguments:
            result: Estimates for some of the data.
            rows: Row numbers of these data.
        """
        prior = self._by_prior(rows)
        missed = missed_mass(result, prior) | (excess(prior, result) > _MOST_OF_PRIOR)
        left = (result.reliable & ~missed).nonzero()[:, 0]
        if len(left) > 0 and len(self.stages) > 1:
            missed[left] = excess(self._by_filter(rows[left]), result[left]) > MOST_EXCESS
        return missed

    def _by_prior(self, rows: Int64[Tensor, " some"]) -> Estimate:
        """Returns estimates of log p(y) from prior draws."""

        def find(places: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
            return zip(*from_prior(self.program, self._data(rows[places])), strict=True)

        pairs = _remembered(self._from_prior, rows, find)
        return Estimate(*map(torch.stack, zip(*pairs, strict=True)))

    def _by_filter(self, rows: Int64[Tensor, " some"]) -> LogMarginal:
        """Returns estimates of log p(y) from a small particle filter."""
        number = min(_FILTER_PARTICLES, self.filtering.num_particles)
        small = replace(self.filtering, num_particles=number, guided=False)
        own = stream(self.seed, "tightest.checks")

        def find(places: Tensor) -> Iterable[LogMarginal]:
            new = rows[places]
            some = Inference(self.program, self.posterior.rows(new), self._data(new))
            found = small.populations(some, self.stages, seed=own, progress=False).result
            return (found[row : row + 1] for row in range(len(found)))

        return join(_remembered(self._from_filter, rows, find))

    def several_modes(
        self, proposal: Posterior, rows: Int64[Tensor, " some"], searched: Bool[Tensor, " some"]
    ) -> Bool[Tensor, " some"]:
        """Returns a mask of the data that are found to have several modes.

        Arguments:
            proposal: Approximate posterior of each datum; the search for modes starts there.
            rows: Row numbers of the data.
            searched: Mask of the data to search. Other data keep the result of an earlier call;
                without an earlier call, their result is False.
        """
        chosen = searched.nonzero()[:, 0]

        def find(places: Tensor) -> Iterable[bool]:
            new = chosen[places]
            some = self._data(rows[new])
            return other_modes(self.program, proposal.rows(new), some, FitRows()).tolist()

        _remembered(self._several, rows[chosen], find)
        found = [self._several.get(row, False) for row in rows.tolist()]
        return torch.tensor(found, device=rows.device)

    def _data(self, rows: Int64[Tensor, " some"]) -> Batch:
        """Returns the data that have the given row numbers."""
        return take_rows(self.batch, rows)


def _remembered(
    known: dict[int, _Finding],
    rows: Int64[Tensor, " some"],
    find: Callable[[Tensor], Iterable[_Finding]],
) -> list[_Finding]:
    """Returns the finding for each row number in `rows`; makes findings that are not yet known.

    Arguments:
        known: The findings of earlier calls, by row number; new findings are added.
        rows: The row numbers.
        find: Makes findings, given positions in `rows`.
    """
    numbers = rows.tolist()
    new = [place for place, row in enumerate(numbers) if row not in known]
    if new:
        found = find(torch.tensor(new, device=rows.device))
        known.update(zip([numbers[place] for place in new], found, strict=True))
    return [known[row] for row in numbers]


def held_out_mass(
    inference: Inference,
    population: Population,
    fitted: Callable[[Tensor], Posterior],
    result: LogMarginal,
    *,
    limit: int,
) -> Float64[Tensor, " batch"]:
    """Estimates the share of each posterior that is missed by a proposal fitted to particles.

    If a posterior has very many modes, the particles are in only some of them, and so are the draws
    of a proposal that is fitted to the particles. So the proposal is fitted to three quarters of
    the islands, and the particles of the other quarter show the share that it misses, as in
    cross-validation. The estimate is high on average, since a fit to all islands misses less.

    Arguments:
        inference: The model, the proposal that is fitted to all islands, and the data.
        population: The particles.
        fitted: Function that fits the proposal to the particles of some islands.
        result: The estimate from this proposal.
        limit: Number of rows that the program can evaluate at once.
    """
    islands, particles = population.z.shape[:2]
    log_shares = population.log_evidence[:, None].expand(-1, particles, -1)
    shares = []
    order = torch.arange(islands, device=population.z.device)
    for left_out in order.tensor_split(min(_FOLDS, islands)):
        proposal = fitted(population.z[~torch.isin(order, left_out)])
        share = unreached_at(
            inference._replace(posterior=proposal),
            population.z[left_out].flatten(0, 1),
            log_shares[left_out].flatten(0, 1).log_softmax(dim=0),
            result.value,
            num_samples=int(result.num_samples.max()),
            limit=limit,
        )
        shares.append(share)
    return torch.stack(shares).mean(dim=0)


def excess(one: LogMarginal | Estimate, other: LogMarginal | Estimate) -> Tensor:
    r"""Computes the difference of two estimates in units of their joint standard error.

    Each error is capped at one nat. An average of a few weights can be too low by many nats, but is
    seldom too high: it is unbiased, so by Markov's inequality it exceeds p(y) by a factor of
    :math:`e^4` in less than 2% of cases, however large its error.
    """
    return (one.value - other.value) / _joint_error(one, other)


def shortfall(
    result: LogMarginal | Estimate, other: LogMarginal | Estimate
) -> Float64[Tensor, " batch"]:
    """Returns how far `result` is below `other`, minus two joint errors, in nats; at least 0.

    The log of a mean weight is too low if the draws miss a part of the posterior, and then its
    error is too small. The log of a mean weight is seldom too high. So if two estimates differ by
    more than chance explains, the lower one probably misses this much.
    """
    below = other.value - result.value - _CHANCE * _joint_error(other, result)
    return below.clamp(min=0).nan_to_num(nan=0.0, posinf=torch.inf)


def _joint_error(one: LogMarginal | Estimate, other: LogMarginal | Estimate) -> Tensor:
    """Combines the standard errors of two estimates, each capped at one nat."""
    spread = torch.hypot(one.error.clamp(max=1), other.error.clamp(max=1))
    return (spread.square() + _NEGLIGIBLE**2).sqrt()
