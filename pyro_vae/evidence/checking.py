r"""Independent checks of an estimate of log p(y), for mass that the estimate's draws did not reach.

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

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

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
_FILTER_PARTICLES = 64  # per island, which makes 1,024 in all, as many as there are prior draws


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
        """Returns a mask of the data for which another estimate finds more mass than `result` has.

        The difference must be significant.

        Arguments:
            result: Estimates for some of the data.
            rows: Row numbers of these data.
        """
        prior = self._by_prior(rows)
        missed = missed_mass(result, prior) | (excess(prior, result) > _MOST_OF_PRIOR)
        asked = (result.reliable & ~missed).nonzero()[:, 0]
        if len(asked) > 0 and len(self.stages) > 1:
            missed[asked] = excess(self._by_filter(rows[asked]), result[asked]) > MOST_EXCESS
        return missed

    def _by_prior(self, rows: Int64[Tensor, " some"]) -> Estimate:
        """Returns estimates from prior draws."""
        new = _without(rows, self._from_prior)
        if len(new) > 0:
            found = zip(*from_prior(self.program, self._data(new)), strict=True)
            self._from_prior.update(zip(new.tolist(), found, strict=True))
        pairs = zip(*map(self._from_prior.__getitem__, rows.tolist()), strict=True)
        return Estimate(*map(torch.stack, pairs))

    def _by_filter(self, rows: Int64[Tensor, " some"]) -> LogMarginal:
        """Returns estimates from a small particle filter."""
        new = _without(rows, self._from_filter)
        if len(new) > 0:
            number = min(_FILTER_PARTICLES, self.filtering.num_particles)
            small = replace(self.filtering, num_particles=number, guided=False)
            some = Inference(self.program, self.posterior.rows(new), self._data(new))
            own = stream(self.seed, "tightest.checks")
            found = small.populations(some, self.stages, seed=own, progress=False).result
            self._from_filter.update(zip(new.tolist(), _split(found), strict=True))
        return join([self._from_filter[row] for row in rows.tolist()])

    def several_modes(
        self, proposal: Posterior, rows: Int64[Tensor, " some"], asked: Bool[Tensor, " some"]
    ) -> Bool[Tensor, " some"]:
        """Returns a mask of the data that are found to have several modes.

        Arguments:
            proposal: Approximate posterior of each datum; the search for modes starts there.
            rows: Row numbers of the data.
            asked: Mask of the data to examine. For other data, the result is what earlier calls
                found.
        """
        known = asked.new_tensor([row in self._several for row in rows.tolist()])
        places = (asked & ~known).nonzero()[:, 0]
        if len(places) > 0:
            some = self._data(rows[places])
            seen = other_modes(self.program, proposal.rows(places), some, FitRows()).tolist()
            self._several.update(zip(rows[places].tolist(), seen, strict=True))
        found = [self._several.get(row, False) for row in rows.tolist()]
        return torch.tensor(found, device=asked.device)

    def _data(self, rows: Int64[Tensor, " some"]) -> Batch:
        return take_rows(self.batch, rows)


def _without(rows: Int64[Tensor, " some"], known: Mapping[int, object]) -> Int64[Tensor, " new"]:
    """Returns the row numbers for which nothing is known yet."""
    new = [row for row in rows.tolist() if row not in known]
    return torch.tensor(new, dtype=torch.int64, device=rows.device)


def _split(result: LogMarginal) -> list[LogMarginal]:
    return [result[row : row + 1] for row in range(len(result))]


def held_out_mass(
    inference: Inference,
    population: Population,
    fitted: Callable[[Tensor], Posterior],
    result: LogMarginal,
    *,
    limit: int,
) -> Float64[Tensor, " batch"]:
    """Estimates the share of each posterior that a proposal fitted to a population misses.

    If there are very many modes, the particles are in some of them only, and so are the draws of a
    proposal that is fitted to these particles. So the proposal is fitted to three quarters of the
    islands, and the other quarter shows what it misses, as in cross-validation. This share is high
    on average, since fits to all islands miss less.

    Arguments:
        inference: The model, the proposal that is fitted to all islands, and the data.
        population: The particles.
        fitted: Returns the proposal that is fitted to the particles of some islands.
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
    """Returns by how much an estimate is below another one, beyond two joint errors, in nats.

    Log means of weights are low if their draws miss a part of the posterior, and then their errors
    are too small. They are seldom high. So if two of them differ by more than chance explains, the
    lower one probably misses this much.
    """
    below = other.value - result.value - _CHANCE * _joint_error(other, result)
    return below.clamp(min=0).nan_to_num(nan=0.0, posinf=torch.inf)


def _joint_error(one: LogMarginal | Estimate, other: LogMarginal | Estimate) -> Tensor:
    spread = torch.hypot(one.error.clamp(max=1), other.error.clamp(max=1))
    return (spread.square() + _NEGLIGIBLE**2).sqrt()
