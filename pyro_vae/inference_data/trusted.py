r"""Samples the exact posterior, with diagnostics, and measures how far a guide is from it.

The draws for a datum come from the estimator of log p(y) that was accepted
(:class:`pyro_vae.Tightest`). They are of one of two kinds:

- Draws :math:`z_k \sim q`, resampled by the weights :math:`w_k = p(y, z_k) / q(z_k)`. With a
  probability of 0.1 (`prior_share` of :class:`pyro_vae.Tightest`), a draw is from the prior, and
  otherwise from the estimator's proposal. Weights that are good enough for log p(y) can be too
  uneven for a standard deviation, to which distant draws contribute most. The tails of the prior
  reach as far as those of the posterior.
- Particles from tempered sequential Monte Carlo or a particle filter. Both methods run several
  independent populations, called islands, which count as chains. The weight :math:`w_k` of a
  particle is its island's estimate of p(y).

The mean m and the standard deviation s of every latent are computed with the normalized weights
:math:`\bar w_k`:

.. math:: \hat m = \sum_k \bar w_k z_k, \qquad
    \mathrm{se}(\hat m)^2 = \sum_k \bar w_k^2 (z_k - \hat m)^2 .

For islands, the errors are increased if the islands' means differ by more than the means of
independent draws would.

The errors are right only if the draws reach the tails. If a posterior's density falls as a power of
:math:`|z|`, rare draws that are far away determine s, and a sample without them looks harmless.
Draws of the prior reach these tails. `python -m tests.trust.moments` compares s with sums over a
grid. With a Student t prior and likelihood, where the density falls as the power -4.5 to -10, 96
percent of 358 intervals for s (1.96 errors to each side) cover the truth, and no s is off by more
than five errors. (Without draws of the prior, 76 percent cover the truth, and one s in 36 is off by
more than five errors.) In 13 ordinary programs, 95 percent of 779 intervals cover the truth, and no
s is off by more than five errors.

A datum is in doubt if a few draws dominate the estimate of s for one of its latents
(:func:`pyro_vae.stats.mean_covers`). This concerns 0.3 percent of the data with a Student t prior,
and 4 percent of the data of ordinary programs. If the density falls as the power -3.5 or -4, the
error of s would be infinite. Then three of four data are in doubt, and the intervals of the other
data cover the truth in about half of the cases. Islands have too few particles to show such tails.
For islands, s is in doubt if the log joint shows that the density falls as the power -5.5 or more
slowly (:mod:`pyro_vae.evidence.power_tails`).

A guide with mean :math:`m_q` and standard deviation :math:`s_q` is described by its shift
:math:`(m_q - m) / s` and its scale :math:`s_q / s`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .. import stats
from .._annotations import Interval
from .._types import Batch, Data, Estimate, ProgramLike
from ..evidence import (
    RUNGS,
    ImportanceSampling,
    Inference,
    LadderMarginal,
    Population,
    Source,
    Tightest,
)
from ..evidence.power_tails import tail_powers
from ..evidence.proposals import Defensive, DefensivePosterior
from ..evidence.weights import conditioned, draw_rows, normalized, systematic
from ..formatting import count_of, on_condition
from ..programs import Program
from ..programs.pieces import take_rows
from ..randomness import row_keys, stream, undisturbed, uniforms
from ..results import Doubt, Doubts, PerDatum, at_rows, join, with_errors
from ..stats.checks import weighted_moments
from .deterministic import deterministic
from .draws import Attributes, Labelled, build, constrained, datum_labels, drawn_sites, labelled

MAX_RHAT = 1.05
"""Largest R-hat of chains that agree; 8 chains of 64 independent draws reach 1.02 by chance."""

# In tests/trust/moments.py, this limit puts 4% of ordinary standard deviations in doubt, and three
# of four if tails are so heavy that errors do not cover. A limit of 0.15: 12%, and four of five.
_SD_SKEWNESS = 0.25
_LEAST_POWER = 5.5  # for islands: the error is infinite up to 5, and too small a little above 5


@dataclass(frozen=True)
class Chains:
    """The final particles of the islands from which the draws of all data come.

    Arguments:
        sites: Values of every latent site as the program sees it, `(islands, particles, batch,
            *site)`.
        log_evidence: Estimate of log p(y) by every island, `(islands, batch)`, in nats.
    """

    sites: Mapping[str, Tensor] = field(metadata={"axis": 2})
    log_evidence: Float[Tensor, "islands batch"] = field(metadata={"axis": 1})

    @property
    def shape(self) -> tuple[int, int]:
        """Number of islands, and of particles in every island."""
        islands, particles, *_ = next(iter(self.sites.values())).shape
        return islands, particles


@dataclass(frozen=True, repr=False)
class PosteriorDraws(PerDatum):
    r"""The draws from every datum's posterior, and the moments of posterior and guide.

    All moments are those of the flat unconstrained latents. The draws of a datum are importance
    draws, or the particles of several independent populations, called islands. The property `value`
    is the guide's mean minus the posterior mean, in posterior standard deviations,
    `(batch, latents)`.

    Arguments:
        sites: Draws of every latent site as the program sees it, `(draws, batch, *site)`, and the
            values of sites of `pyro.deterministic` at these draws. Deterministic sites
            are left out if discrete latents are summed out, because they may depend on these.
        z: The same draws, flat and unconstrained, `(draws, batch, latents)`.
        posterior_mean: Mean of every latent, `(batch, latents)`, with its error.
        posterior_sd: Standard deviation of every latent, `(batch, latents)`, with its error.
        guide_mean: Mean of the guide, `(batch, latents)`, with its error.
        guide_sd: Standard deviation of the guide, `(batch, latents)`, with its error.
        ess: Effective sample size, `(batch,)`: that of the importance weights, or, if the draws are
            from islands, the smallest bulk ESS of all latents, times the effective share of the
            islands (1 if all islands have the same weight).
        r_hat: Rank-normalized split R-hat over the islands, `(batch, latents)`; nan without
            islands.
        sd_covers: Whether the error of each `posterior_sd` can be trusted, `(batch, latents)`.
        log_marginal: Log p(y), with the estimator that was accepted for each datum.
        chains: The draws of every island; None if the draws of some data are not from islands, or
            if the number or size of islands differs between data.
    """

    sites: Mapping[str, Tensor] = field(metadata={"axis": 1})
    z: Float[Tensor, "draws batch latents"] = field(metadata={"axis": 1})
    posterior_mean: Estimate
    posterior_sd: Estimate
    guide_mean: Estimate
    guide_sd: Estimate
    ess: Float[Tensor, " batch"]
    r_hat: Float[Tensor, "batch latents"]
    sd_covers: Bool[Tensor, "batch latents"]
    log_marginal: LadderMarginal
    chains: Chains | None = None

    @property
    def given(self) -> str:
        """Text that names the global sites on which the posterior is conditional.

        It is empty if there are none.
        """
        return self.log_marginal.given

    @property
    def value(self) -> Tensor:
        """The shift: the guide's mean minus the posterior's, in posterior standard deviations."""
        return (self.guide_mean.value - self.posterior_mean.value) / self.posterior_sd.value

    @property
    def error(self) -> Tensor:
        """Standard error of `value`.

        It accounts for the errors of the guide's mean, of the posterior's mean and of the
        posterior's standard deviation. The last two errors are assumed to be independent, as they
        are for a symmetric posterior.
        """
        pair = stats.difference(self.guide_mean, self.posterior_mean)
        return torch.hypot(pair.error, self.value * self.posterior_sd.error) / (
            self.posterior_sd.value
        )

    @property
    def scale(self) -> Estimate:
        """The guide's standard deviation divided by the posterior's, `(batch, latents)`."""
        ratio = self.guide_sd.value / self.posterior_sd.value
        parts = (part.error / part.value for part in (self.guide_sd, self.posterior_sd))
        return Estimate(ratio, ratio * torch.stack(list(parts)).square().sum(dim=0).sqrt())

    @property
    def doubts(self) -> Doubts:
        """Reasons to doubt a datum's draws or standard deviations, each with a mask of the data."""
        apart = (self.r_hat > MAX_RHAT).any(dim=-1)
        doubts = self.log_marginal.doubts
        apart |= doubts.get(Doubt.CHAINS_APART, torch.zeros_like(apart))
        dominated = ~self.sd_covers.all(dim=-1)
        return {**doubts, Doubt.CHAINS_APART: apart, Doubt.SD_TAIL: dominated}

    def columns(self) -> dict[str, Tensor]:
        """Returns shift (`value`), scale, their errors, ESS, R-hat and accepted rung, by name."""
        diagnostics = {"ess": self.ess, "r_hat": self.r_hat, "rung": self.log_marginal.rung}
        return with_errors({"shift": self.estimate, "scale": self.scale}) | diagnostics

    def summary(self) -> str:
        """States how far the guide is from the posterior, and how far to trust the draws."""
        shift = self.value.square().mean().sqrt()
        scale = self.scale.value.log().mean().exp()
        return (
            f"the guide's means are {float(shift):.3f} posterior standard deviations off (root "
            f"mean square), and the guide's standard deviations are {float(scale):.3f} times the "
            f"posterior's (geometric mean)\n{count_of(len(self.z), 'draw')} per datum, from "
            f"samples with an ESS of at least {float(self.ess.min()):.0f}; "
            f"{self._doubts_in_words()}{on_condition(self.given)}"
        )

    def to_inference_data(self, names: Sequence[str] | None = None) -> Any:
        r"""Returns the draws in ArviZ's groups: `posterior`, and `diagnostics` of every datum.

        If the draws of all data come from islands (of tempered populations or particle filters),
        and the number and size of the islands are the same for all data, `posterior` has the final
        particles of every island, with the islands on the axis `chain`. Particles have equal
        weights within an island. Averages over islands must use the weights `exp(log_weight)` of
        the group `sample_stats`, which are the islands' estimates of p(y). Otherwise `posterior`
        has the draws of `sites`, and `chain` has length 1. The attribute `chains` says in words
        what the axis `chain` is, or why its length is 1.

        `diagnostics` has `ess` and `rung` on the axis `datum`, and `r_hat` on the axes `datum` and
        `unconstrained`. `rung` is the position in `pyro_vae.evidence.RUNGS` of the estimator that
        was accepted. `r_hat` is the R-hat of every flat unconstrained latent: the larger of two
        rank-normalized split R-hats by ArviZ, that of the draws and that of their distances from
        the median. The islands count as chains. R-hat is nan for data whose draws come from a
        proposal.

        Arguments:
            names: Labels of the data, one per datum and all different; by default numbers from 0.

        References:
            | Rank-Normalization, Folding, and Localization: An Improved R-hat (Vehtari et al.,
              2021)
            | https://arxiv.org/abs/1903.08008
        """
        groups = {
            **self._posterior(),
            "diagnostics": {
                "ess": labelled(self.ess, "datum"),
                "r_hat": labelled(self.r_hat, "datum", "unconstrained"),
                "rung": labelled(self.log_marginal.rung, "datum"),
            },
        }
        coords = {"datum": datum_labels(names, len(self))}
        attributes: Attributes = {
            "draws_of": "the posterior",
            "given": self.given,
            "num_samples": len(self.z) if self.chains is None else math.prod(self.chains.shape),
            "chains": self._about_chains(),
        }
        return build(groups, coords, attributes)

    def _posterior(self) -> dict[str, dict[str, Labelled]]:
        """Returns arrays of the draws, by group.

        They are the draws in `chains` with their weights or, if `chains` is None, those in `sites`.
        """
        word = "latent" if len(self.sites) == 1 else None
        if self.chains is None:
            return {"posterior": drawn_sites(dict(self.sites), word)}
        _, particles = self.chains.shape
        log_weight = self.chains.log_evidence.unsqueeze(1).expand(-1, particles, -1)
        return {
            "posterior": drawn_sites(dict(self.chains.sites), word, lead=("chain", "draw")),
            "sample_stats": {"log_weight": labelled(log_weight, "chain", "draw", "datum")},
        }

    def _about_chains(self) -> str:
        """States in words what the axis `chain` is, or why it has length 1."""
        if self.chains is not None:
            return (
                "the axis chain holds islands, which are independent populations of particles; "
                "weighted by exp(log_weight) from sample_stats, the draws represent the posterior"
            )
        number = int((~self.r_hat.isnan()).any(dim=-1).sum())
        if number == len(self):
            return (
                "the axis chain has length 1, because the number or the size of islands differs "
                "between data; r_hat in diagnostics compares the islands of each datum"
            )
        return (
            f"the axis chain has length 1, because the draws of {len(self) - number} of "
            f"{count_of(len(self), 'datum')} come from a proposal and are independent"
        )


def posterior_draws(
    model: ProgramLike,
    guide: ProgramLike,
    data: Data,
    *,
    num_samples: Annotated[int, Interval(2)] = 1000,
    ladder: Tightest | None = None,
    given: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> PosteriorDraws:
    r"""Samples every datum's posterior, and compares the guide's moments with the posterior's.

    The estimators of log p(y) in `ladder` are tried in order of cost, except those that make no
    draws. The draws for a datum come from the first estimator that is accepted. If none is
    accepted, they come from the last estimator tried, and the datum is marked as unreliable.

    Arguments:
        model: A Pyro program `model(*batch)` with one plate over data.
        guide: A :class:`pyro_vae.Guide`, or a guide program written by hand.
        data: The batch tensor, or a tuple of them.
        num_samples: Draws per datum, at least 2.
        ladder: The estimators to try in turn; by default :class:`pyro_vae.Tightest`.
        given: Values of the latent sites that all data share, as in
            :func:`pyro_vae.log_marginal_likelihood`.
        seed: Seed of the draws; the caller's random stream is left alone.
        progress: Whether to show progress bars; by default on terminals and in notebooks.

    Returns:
        Draws, moments with errors, and diagnostics.

    Raises:
        ValueError: If data, model and guide do not fit together, or there are too few draws.
        FloatingPointError: If a log density is nan or plus infinity.

    References:
        | An Amortized Bayesian Workflow (Schmitt et al., 2024)
        | https://arxiv.org/abs/2409.04332
        | Rank-Normalization, Folding, and Localization: An Improved R-hat (Vehtari et al., 2021)
        | https://arxiv.org/abs/1903.08008

    Example:
        >>> import pyro
        >>> import pyro_vae as pv
        >>> def model(y):
        ...     with pyro.plate("data", len(y)):
        ...         z = pyro.sample("z", pyro.distributions.Normal(0.0, 1.0))
        ...         pyro.sample("y", pyro.distributions.Normal(z, 1.0), obs=y)
        >>> guide = pv.Guide(model, pv.GlobalParameters(), example=torch.zeros(1))  # at the prior
        >>> draws = pv.posterior_draws(model, guide, torch.tensor([2.0]))
        >>> (draws.scale.value - 2**0.5).abs().max() < 0.1  # the posterior is N(1, 1 / 2)
        tensor(True)
    """
    ladder = ladder or Tightest()
    with conditioned(model, guide, data, seed, given) as inference:
        program, _, batch = inference
        program.require_latents()
        marginal, sources = ladder.sampled_with_sources(inference, seed=seed, progress=progress)
        estimator = ImportanceSampling(max(ladder.num_samples, num_samples), ladder.memory)
        parts = []
        for rows, source in sources:
            if isinstance(source, Population):
                parts.append(_of_islands(inference.rows(rows), source, num_samples))
                continue
            # Streams differ between estimators, so that equal rows have independent draws.
            own = stream(seed, f"posterior_draws.{RUNGS[int(marginal.rung[rows[0]])].name}")
            proposal = Inference(program, source, take_rows(batch, rows))
            mixture = _defended(proposal, ladder.prior_share)
            parts.append(_of_proposal(estimator, mixture, num_samples, own))
        order = torch.cat([rows for rows, _ in sources]).argsort()
        drawn = at_rows(join(parts), order)
        values = _sites(program, batch, drawn.z)
        chains = _chains(program, batch, [source for _, source in sources], order)
        keys = row_keys(seed, "posterior_draws.guide", *batch)
        guides, _ = draw_rows(inference.posterior, 0, keys, num_samples)
    marginal = replace(marginal, given=program.conditions)
    even = torch.zeros(guides.shape[:2], dtype=torch.float64, device=guides.device)
    return PosteriorDraws(
        values, drawn.z, drawn.mean, drawn.sd, *_moments(guides, even),
        drawn.ess, drawn.r_hat, drawn.sd_covers, marginal, chains,
    )  # fmt: skip


@dataclass(frozen=True)
class _Drawn:
    """The draws for some of the data, and the moments of these draws."""

    z: Tensor = field(metadata={"axis": 1})
    mean: Estimate
    sd: Estimate
    ess: Tensor
    r_hat: Tensor
    sd_covers: Tensor


def _sites(program: Program, batch: Batch, z: Tensor) -> dict[str, Tensor]:
    """Returns the values of all latent and deterministic sites, `(draws, batch, *site)`."""
    return constrained(program, z) | deterministic(program, batch, z)


def _chains(
    program: Program, batch: Batch, sources: Sequence[Source], order: Tensor
) -> Chains | None:
    """Returns the draws of every island.

    Returns None if the draws of some data are not from islands, or if the number or the size of
    islands differs between data.
    """
    islands = [source for source in sources if isinstance(source, Population)]
    shapes = {source.z.shape[:2] for source in islands}
    if len(islands) < len(sources) or len(shapes) > 1:
        return None
    z = torch.cat([source.z for source in islands], dim=2)[:, :, order]
    log_evidence = torch.cat([source.log_evidence for source in islands], dim=1)[:, order]
    values = _sites(program, batch, z.flatten(0, 1))
    sites = {name: value.unflatten(0, z.shape[:2]) for name, value in values.items()}
    return Chains(sites, log_evidence)


def _defended(inference: Inference, prior_share: float) -> Inference:
    """Mixes a proposal with the prior, whose tails are as heavy as the posterior's.

    The proposal is returned unchanged if it is already such a mixture, or if its density cannot be
    evaluated at draws of the prior.
    """
    if isinstance(inference.posterior, DefensivePosterior):
        return inference
    mixture = Defensive(prior_share)(*inference)
    try:
        with undisturbed():
            mixture.rows(slice(1)).draw(1)
    except ValueError:
        return inference
    return inference._replace(posterior=mixture)


def _of_proposal(
    estimator: ImportanceSampling, inference: Inference, num_samples: int, seed: int
) -> _Drawn:
    """Makes draws from a proposal, and resamples them by their importance weights."""
    keys = row_keys(seed, "resampled", *inference.batch)
    levels = uniforms(keys, 1, 1, inference.batch[0].new_zeros(0, dtype=torch.float64))[0, :, 0]
    parts = []
    for block in estimator.sampling(inference, seed=seed, progress=False).blocks():
        log_weights = block.weights.log_weights
        mean, sd = _moments(block.z, log_weights)
        z = _resampled(block.z, log_weights, levels[block.rows], num_samples)
        ess = stats.effective_sample_size(log_weights)
        covers = _sd_covers(block.z, log_weights, mean.value, sd.value)
        parts.append(_Drawn(z, mean, sd, ess, torch.full_like(mean.value, torch.nan), covers))
    return join(parts)


def _of_islands(inference: Inference, population: Population, num_samples: int) -> _Drawn:
    """Computes draws and moments from islands.

    Whether the errors of standard deviations can be trusted is judged by the tails of the log
    joint.
    """
    drawn = _of_population(population, num_samples)
    powers = tail_powers(inference, drawn.mean.value, drawn.sd.value)
    return replace(drawn, sd_covers=powers > _LEAST_POWER)


def _of_population(population: Population, num_samples: int) -> _Drawn:
    """Computes draws and moments from the weighted particles of independent runs (islands)."""
    particles = population.z.shape[1]
    z = population.z.flatten(0, 1)
    log_weights = population.log_evidence.repeat_interleave(particles, dim=0)
    mean, sd = _moments(z, log_weights)
    inflated = (particles / _ess_per_island(population.z)).sqrt()
    level = torch.full((z.shape[1],), 0.5, dtype=torch.float64, device=z.device)
    # The effective share of the islands: 1 / islands if one island outweighs all others.
    evenness = stats.effective_sample_size(population.log_evidence) / len(population.z)
    return _Drawn(
        _resampled(z, log_weights, level, num_samples),
        Estimate(mean.value, mean.error * inflated),
        Estimate(sd.value, sd.error * inflated),
        stats.bulk_ess(population.z).amin(dim=-1) * evenness,
        stats.rank_r_hat(population.z),
        torch.ones_like(mean.value, dtype=torch.bool),
    )


def _ess_per_island(z: Float[Tensor, "islands particles batch latents"]) -> Tensor:
    """Estimates the effective sample size of an island from the spread of the islands' means."""
    within = z.double().var(dim=1).mean(dim=0)
    between = z.double().mean(dim=1).var(dim=0)
    return (within / between).clamp(1.0, z.shape[1])


def _moments(
    z: Float[Tensor, "draws batch latents"], log_weights: Float[Tensor, "draws batch"]
) -> tuple[Estimate, Estimate]:
    """Computes the weighted mean and standard deviation of draws, with their errors."""
    return weighted_moments(z.double(), normalized(log_weights).unsqueeze(-1))


def _sd_covers(z: Tensor, log_weights: Tensor, mean: Tensor, sd: Tensor) -> Tensor:
    """Returns whether the error of each standard deviation can be trusted.

    It can be trusted unless a few draws dominate the standard deviation. With fewer than 30 draws
    the answer is True, because the estimate of log p(y) is then in doubt anyway.
    """
    if len(z) < stats.MIN_TAIL_PARTICLES:
        return torch.ones_like(sd, dtype=torch.bool)
    shares = len(z) * normalized(log_weights).unsqueeze(-1)
    parts = shares * (((z.double() - mean) / sd).square() - 1) / 2
    return stats.mean_covers(parts, _SD_SKEWNESS)


def _resampled(z: Tensor, log_weights: Tensor, level: Tensor, number: int) -> Tensor:
    """Resamples `number` draws of every datum, systematically, in proportion to the weights."""
    chosen = systematic(log_weights, level, number)
    return z[chosen, torch.arange(z.shape[1], device=z.device)]
