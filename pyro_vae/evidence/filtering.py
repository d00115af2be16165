r"""Particle filters: sequential Monte Carlo along the latent sites of a program.

A program for a time series samples a state, observes data that depend on the state, and proceeds to
the next state:

.. math:: p(y, z) = \prod_{t=1}^{T} p(z_t \mid z_{<t}, y_{<t})\, p(y_t \mid z_{\le t}, y_{<t}) .

At each time every particle draws :math:`z_t` from the program and is weighted by the density of
:math:`y_t`. Then the particles are resampled: those that explain the series so far survive. With
:math:`M` particles the estimate is

.. math:: \log \hat p(y) = \sum_{t=1}^{T} \log \frac{1}{M} \sum_{m=1}^{M}
    p(y_t \mid z_{\le t}^m, y_{<t}), \qquad \mathbb{E}\, \hat p(y) = p(y) .

A guided filter draws :math:`z_t` from a guide, :math:`q(z_t \mid z_{<t}, y)`, which may look ahead,
and multiplies the weight by :math:`p(z_t \mid z_{<t}, y_{<t}) / q(z_t \mid z_{<t}, y)`.

Runs of the program show which data belong to which time. An entry of an observed site belongs to
the last latent site on which the entry's density depends. So the data can be observed at each time,
or all in one site at the end. Since some series may end early, these runs use rows that together
have as many observed entries as possible. A mistaken assignment makes the filter inefficient, but
not wrong: the last weight includes any part of the log likelihood that earlier weights lack.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, NamedTuple

import pyro.distributions as dist
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from .. import stats
from .._annotations import Interval
from .._types import Batch
from ..formatting import listed
from ..guides import Conditional, Posterior
from ..programs import Program, Run, TracedSite
from ..programs.pieces import take_rows
from ..programs.traces import repeat_rows, retry_unvalidated
from ..progress import progress_bar
from ..randomness import forked, row_keys, seeded, undisturbed
from .results import LogMarginal
from .tempering import Population, result_of_islands
from .weights import Inference, require_numbers, systematic

_PROBES, _PROBED_ROWS = 4, 16  # draws per datum, and data, that show to which time entries belong
_SURVEYED = 2048  # data among which these few data are chosen
_INDEPENDENT = (dist.Independent, torch.distributions.Independent)
_UNGUIDED = (
    "a guided particle filter requires a guide program that samples the sites of the model in the "
    "model's order, and no others; got {}: write such a guide, or leave out `guided`"
)


class Stage(NamedTuple):
    """Latent sites that are drawn together, and the observed entries that depend on no later site.

    Arguments:
        sites: Names of the latent sites.
        entries: For each observed site, a mask of those entries of a datum whose density depends
            only on the sites of this and earlier stages. Empty for the last stage, after which
            the densities of all entries are included.
    """

    sites: tuple[str, ...]
    entries: Mapping[str, Tensor]


@dataclass(frozen=True)
class ParticleFilter:
    r"""Estimates log p(y) of time series by a particle filter.

    The program must have one latent site for each time, and each datum is a whole series. The
    estimate of p(y) is unbiased. The standard error is computed from the differences between
    independent filters, called islands. A datum is reliable if the islands' effective sample size
    is at least half the number of islands. By default the particles are drawn from the program,
    without the guide (the bootstrap filter). If single observations are very informative, few of
    these particles survive, and the error is large. A guided filter draws the particles from the
    guide. If the guide has learned to look ahead, far fewer particles give the same accuracy.

    Programs with discrete latent sites are refused, because the filter cannot sum them out.

    Arguments:
        num_islands: Number of independent filters.
        num_particles: Number of particles in each filter.
        guided: Whether to draw the particles from the guide, which must be a guide program that
            samples the sites of the model in the same order.

    Raises:
        ValueError: If there are fewer than two islands or particles. Also raised when called, if
            the program has discrete latent sites, if all observations depend on the last latent
            site, so that they have no order in time, or if the guide of a guided filter samples the
            sites in another order.
        TypeError: If the guide of a guided filter is not a guide program.

    References:
        | Novel Approach to Nonlinear/Non-Gaussian Bayesian State Estimation
          (Gordon, Salmond & Smith, 1993)
        | https://doi.org/10.1049/ip-f-2.1993.0015
        | A New Approach to Probabilistic Programming Inference (Wood, van de Meent & Mansinghka,
          2014)
        | https://arxiv.org/abs/1507.00996

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro_vae import log_marginal_likelihood
        >>> def walk(y):
        ...     with pyro.plate("data", len(y)):
        ...         z = torch.zeros(len(y))
        ...         for time in range(3):
        ...             z = pyro.sample(f"z_{time}", dist.Normal(z, 1.0))
        ...             pyro.sample(f"y_{time}", dist.Normal(z, 1.0), obs=y[..., time])
        >>> result = log_marginal_likelihood(walk, walk, torch.zeros(1, 3), ParticleFilter())
        >>> bool((result.value + 4.039).abs() < 4 * result.error)  # by the Kalman filter
        True
    """

    num_islands: Annotated[int, Interval(2)] = 16
    num_particles: Annotated[int, Interval(2)] = 512
    guided: bool = field(default=False, kw_only=True)

    def __call__(
        self, inference: Inference, *, seed: int = 0, progress: bool | None = None
    ) -> LogMarginal:
        """Estimates log p(y) of every datum."""
        program, _, batch = inference
        stages = stages_of(program, batch)
        if program.structure.enumerated:
            raise ValueError(
                "a particle filter requires a program without discrete latent sites; got the "
                f"{listed('discrete site', program.structure.enumerated)}: use pv.Tightest() or "
                "pv.ImportanceSampling(), which sum over discrete sites"
            )
        if len(stages) < 2:
            raise ValueError(
                "a particle filter requires some observations that do not depend on the last "
                "latent site; got a program in which all observations of "
                f"{list(program.observed_names)} depend on the last of its latent sites "
                f"{[site.name for site in program.latent_sites]}: use pv.Tightest() or "
                "pv.ImportanceSampling()"
            )
        return self.populations(inference, stages, seed=seed, progress=progress).result

    def populations(
        self, inference: Inference, stages: list[Stage], *, seed: int, progress: bool | None
    ) -> Population:
        """Runs the filters; returns the estimate and the final particles of every datum."""
        batch = inference.batch
        keys = row_keys(seed, "filtering", *batch).tolist()
        rows = progress_bar(range(len(keys)), show=progress, desc="particle filter")
        with undisturbed():
            parts = [self._filtered(inference, stages, row, keys[row]) for row in rows]
        log_evidence = torch.stack([log_evidence for log_evidence, _ in parts], dim=1)
        result = result_of_islands(log_evidence, self.num_particles, "particle filter")
        return Population(result, torch.cat([z for _, z in parts], dim=2), log_evidence)

    def _filtered(
        self, inference: Inference, stages: list[Stage], row: int, key: int
    ) -> tuple[Tensor, Tensor]:
        """Runs one datum's filters; returns each island's log p(y) estimate and final particles."""
        program, posterior, batch = inference.rows(slice(row, row + 1))
        shape = self.num_islands, self.num_particles
        rows = repeat_rows(batch, shape[0] * shape[1])
        seeded(key)
        values: dict[str, Tensor] = {}
        log_evidence = torch.zeros(self.num_islands, dtype=torch.float64, device=rows[0].device)
        before = torch.zeros(shape, dtype=torch.float64, device=rows[0].device)
        for place, stage in enumerate(stages):
            if self.guided:
                guide = _guide_run(posterior, program, stages, len(rows[0]), values)
                values.update(guide.values(stage.sites))
            run = retry_unvalidated(partial(program.run, rows, values))
            is_last = place + 1 == len(stages)
            observed = _observed(program, run).values()
            after = _log_prob(program, observed) if is_last else _known(program, run, stage)
            _check(program, run, after, row)
            after = after.view(shape)
            gains = after - before
            if self.guided:
                log_model, log_guide = (
                    _log_prob(program, [part[name] for name in stage.sites])
                    for part in (run, guide)
                )
                gains = gains + (log_model - log_guide).view(shape)
            gains = gains.nan_to_num(nan=-torch.inf)
            log_evidence += stats.log_mean_exp(gains.T)
            values.update(run.values(stage.sites))
            chosen = _resampled(gains)
            values = _picked(program, values, chosen)
            before = after.flatten()[chosen].view(shape)
        z = program.flatten(values)[0]
        return log_evidence, z.view(*shape, 1, -1)


def _guide_run(
    posterior: Posterior,
    program: Program,
    stages: list[Stage],
    number: int,
    values: Mapping[str, Tensor],
) -> Run:
    """Runs a guide program on `number` rows; it draws all latent sites that are not in `values`.

    Refuses a guide that is not a guide program, or that does not sample the model's latent sites in
    the model's order.
    """
    if not isinstance(posterior, Conditional):
        raise TypeError(_UNGUIDED.format("a guide that is not a program"))
    run = retry_unvalidated(partial(posterior.run, number, dict(values)))
    order = [name for stage in stages for name in stage.sites]
    if [name for name in run.inside if name not in program.observed_names] != order:
        got = f"a guide that samples {list(run.inside)}, where the model has {order}"
        raise ValueError(_UNGUIDED.format(got))
    return run


def _log_prob(program: Program, sites: Iterable[TracedSite]) -> Tensor:
    """Sums the log densities of sites, `(rows,)`."""
    parts = [site.log_prob_by_datum(program.plate_dim).double() for site in sites]
    return torch.stack(parts).sum(dim=0)


def stages_of(program: Program, batch: Batch) -> list[Stage]:
    """Splits the latent sites into stages, which are drawn one after another.

    A stage ends as soon as the density of a further observation depends on no later latent site.
    There is a single stage if all observations depend on the last site, or if the program has
    discrete latent sites, which the filter does not support.
    """
    names = [site.name for site in program.latent_sites]
    if program.structure.enumerated or not names:
        return [Stage(tuple(names), {})]
    with forked(0, "filtering.order"):
        rows = repeat_rows(_probed(program, batch), _PROBES)
        first = retry_unvalidated(partial(program.run, rows))
        order = [name for name in first.inside if name in names]
        entries = _entries(program, first)
        # An entry without an observation has a log density of 0 in every row.
        observed = {name: (part != 0).any(dim=0) for name, part in entries.items()}
        stages: list[Stage] = []
        drawn: tuple[str, ...] = ()
        known = 0  # number of observed entries whose density depends on no later site
        for place, name in enumerate(order[:-1]):
            drawn += (name,)
            fixed = first.values(order[: place + 1])
            again = _entries(program, retry_unvalidated(partial(program.run, rows, fixed)))
            same = {
                site: torch.isclose(again[site], part, equal_nan=True).all(dim=0) & observed[site]
                for site, part in entries.items()
            }
            total = sum(int(part.sum()) for part in same.values())
            if total > known:
                stages.append(Stage(drawn, same))
                drawn, known = (), total
    return [*stages, Stage((*drawn, order[-1]), {})]


def _probed(program: Program, batch: Batch) -> Batch:
    """Selects a few data that together have as many observed entries as possible.

    Some series are shorter than others. If an entry were missing in all selected data, its density
    would be constant, and would not show to which time the entry belongs.
    """
    rows = take_rows(batch, slice(_SURVEYED))
    run = retry_unvalidated(partial(program.run, rows))
    observed = torch.cat([part != 0 for part in _entries(program, run).values()], dim=1)
    chosen: list[int] = []
    missing = torch.ones_like(observed[0])
    while len(chosen) < _PROBED_ROWS:
        new = (observed & missing).sum(dim=1)
        chosen.append(int(new.argmax()))
        if not int(new.max()):
            break
        missing = missing & ~observed[chosen[-1]]
    return take_rows(rows, torch.tensor(chosen, device="cpu"))


def _entries(program: Program, run: Run) -> dict[str, Tensor]:
    """Returns, for each observed site, the log density of every entry, `(rows, entries)`."""
    sites = _observed(program, run).items()
    return {name: _by_entry(site, program.plate_dim) for name, site in sites}


def _observed(program: Program, run: Run) -> dict[str, TracedSite]:
    """Returns the observed sites of a run; a run on shorter series may have fewer of them."""
    latent = [site.name for site in program.latent_sites]
    return {name: site for name, site in run.inside.items() if name not in latent}


def _by_entry(site: TracedSite, plate_dim: int) -> Tensor:
    """Computes the log density of each independent entry of a site, `(rows, entries)`."""
    function, depth = site.distribution, 0
    while type(function) in _INDEPENDENT:
        depth += function.reinterpreted_batch_ndims
        function = function.base_dist
    log_prob: Tensor = function.log_prob(site.value)
    if isinstance(site.mask, Tensor):
        mask = site.mask[(..., *[None] * depth)]
        log_prob = torch.where(mask, log_prob, 0.0)
    elif site.mask is False:
        log_prob = torch.zeros_like(log_prob)
    by_row = log_prob.movedim(log_prob.dim() - depth + plate_dim, 0)
    return by_row.reshape(len(by_row), -1)


def _known(program: Program, run: Run, stage: Stage) -> Tensor:
    """Sums the log densities of those entries that depend on no latent site after this stage."""
    parts = _entries(program, run)
    return sum(
        (
            parts[name][:, which].double().sum(dim=1)
            for name, which in stage.entries.items()
            if name in parts
        ),
        torch.zeros((), dtype=torch.float64, device=program.device),
    )


def _check(program: Program, run: Run, log_likelihood: Tensor, row: int) -> None:
    """Refuses a log likelihood that is nan or plus infinity; the message names the datum `row`."""
    if not bool((log_likelihood < torch.inf).all()):
        z = program.flatten(run.values(site.name for site in program.latent_sites))[0]
        require_numbers("log_likelihood", log_likelihood[:, None], z[:, None], [row])


def _resampled(gains: Float64[Tensor, "islands particles"]) -> Int64[Tensor, " rows"]:
    """Resamples particles systematically within each island; returns the chosen row numbers."""
    islands, particles = gains.shape
    levels = torch.rand(islands, dtype=gains.dtype, device="cpu").to(gains.device)
    chosen = systematic(gains.T, levels, particles)
    return (chosen + particles * torch.arange(islands, device=gains.device)).T.flatten()


def _picked(program: Program, values: Mapping[str, Tensor], chosen: Tensor) -> dict[str, Tensor]:
    """Returns the values of all sites drawn so far, for the chosen particles only."""
    axes = {site.name: site.axis for site in program.latent_sites}
    return {name: value.index_select(axes[name], chosen) for name, value in values.items()}
