r"""The marginal likelihood of simulated data, from below and from above.

A program that simulates :math:`z \sim p(z)` and then :math:`y \sim p(y \mid z)` has drawn
:math:`z` exactly from the posterior :math:`p(z \mid y)`. Chains that anneal towards the posterior
give :math:`\mathbb{E}\, w = p(y)`, low on average in the logarithm; chains that walk the same
ladder backwards from that :math:`z` give :math:`\mathbb{E}\, w' = 1 / p(y)`, high on average. The
truth lies between them, so their distance bounds how far off annealing is, on data such as the
model makes. Of data that the model does not fit it says nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from .. import stats
from .._types import Batch, Data, Estimate, ProgramLike
from ..programs import Program, as_batch, device_of, forked_seed, whole_plate
from .annealing import AnnealedImportanceSampling, StartFromGuide, Work, annealed, noise_of
from .results import Bound, LogMarginal, join
from .weights import prepared


@dataclass(frozen=True)
class Sandwich:
    r"""Bounds on :math:`\log p(y_n)` of simulated data, `(batch,)` each, in nats.

    Arguments:
        lower: From chains that annealed forwards; low on average.
        upper: From chains that annealed backwards; high on average. The chains of a datum share
            their start, so its error leaves out what another draw of the posterior would change.
        data: The simulated data.
    """

    lower: LogMarginal
    upper: LogMarginal
    data: Batch

    @property
    def width(self) -> Estimate:
        """Upper less lower bound, mean over data, with the error from their spread, in nats."""
        return stats.population_mean(self.upper.value - self.lower.value)

    def summary(self) -> str:
        """Says how far apart the bounds are, and the bounds."""
        width, error = (float(part) for part in self.width)
        return (
            f"log p(y) of {len(self.lower.value)} simulated data is known to within "
            f"{width:.3f} +- {error:.3f} nats a datum on average\n"
            f"lower: {self.lower.summary()}\nupper: {self.upper.summary()}"
        )


def bidirectional(
    model: ProgramLike,
    guide: ProgramLike | None,
    data: Data,
    method: AnnealedImportanceSampling | None = None,
    *,
    num_data: int | None = None,
    given: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Sandwich:
    r"""Bounds the marginal likelihood of data that the model simulates from both sides.

    .. math:: \mathbb{E} \log \hat p(y) \le \log p(y) \le
        \mathbb{E} \log \Big(\frac{1}{C} \sum_c w'_c\Big)^{-1}

    Both directions use the same frozen steps and temperatures.

    Arguments:
        model: A Pyro program `model(*batch)` with one plate over data, whose observed sites are
            given tensors of the batch or parts of them.
        guide: A guide to start from, for a method with `start=StartFromGuide()`; else `None`.
        data: Rows that say the shapes, and the covariates. What the model observes of them is
            replaced by what it simulates.
        method: :class:`AnnealedImportanceSampling` with its defaults unless told otherwise.
        num_data: Data to simulate; the rows are taken in turn. As many as rows by default.
        given: Values of the latent sites that all data share.
        seed: Seed of everything; the caller's random stream is left alone.
        progress: Whether to show a progress bar.

    Returns:
        Both bounds and the simulated data. The width needs at least two of them.

    Raises:
        ValueError: If the program cannot be simulated row by row, or misses a guide.

    References:
        | Sandwiching the Marginal Likelihood Using Bidirectional Monte Carlo
          (Grosse, Ghahramani & Adams, 2015)
        | https://arxiv.org/abs/1511.02543
        | On the Quantitative Analysis of Decoder-Based Generative Models (Wu et al., 2017)
        | https://arxiv.org/abs/1611.04273

    Example:
        >>> import pyro
        >>> def model(y):
        ...     with pyro.plate("data", len(y)):
        ...         z = pyro.sample("z", pyro.distributions.Normal(0.0, 1.0))
        ...         pyro.sample("y", pyro.distributions.Normal(z, 1.0), obs=y)
        >>> method = AnnealedImportanceSampling(num_temperatures=50)
        >>> sandwich = bidirectional(model, None, torch.zeros(8), method)
        >>> bool(sandwich.width.value.abs() < 1)
        True
    """
    method = AnnealedImportanceSampling() if method is None else method
    if guide is None and isinstance(method.start, StartFromGuide):
        raise ValueError(
            "start=StartFromGuide() needs a guide, got None: pass one, or StartFromPrior()"
        )
    proposal = _no_guide if guide is None else guide
    examples = _in_turn(as_batch(data, device_of(model, proposal)), num_data)
    with prepared(model, proposal, examples, seed, given) as (program, _, rows):
        z, simulated = _simulated(program, rows, seed)
    with prepared(model, proposal, simulated, seed, given) as (program, posterior, batch):
        works = method.works(program, posterior, batch, seed=seed, progress=progress)
        pairs = [_bounds(method, work, z[work.rows]) for work in works]
        lower, upper = (join(list(side)) for side in zip(*pairs, strict=True))
    conditions = program.conditions
    return Sandwich(replace(lower, given=conditions), replace(upper, given=conditions), simulated)


def _no_guide(*batch: Tensor) -> None:
    raise ValueError(
        "the program has latent sites that all data share, and no guide that says their values: "
        "pass given=, a value for each"
    )


def _in_turn(batch: Batch, num_data: int | None) -> Batch:
    if num_data is None:
        return batch
    if num_data < 1:
        raise ValueError(f"num_data is at least 1, got {num_data}")
    return tuple(part[torch.arange(num_data, device=part.device) % len(part)] for part in batch)


def _bounds(
    method: AnnealedImportanceSampling, work: Work, z: Tensor
) -> tuple[LogMarginal, LogMarginal]:
    """Both directions on the same ladder; `z`, `(rows, latents)`, has simulated the data."""
    forwards = noise_of(work.seeds, method.num_temperatures, work.z)
    backwards = noise_of(work.backward_seeds, method.num_temperatures, work.z)
    steps, start = method.leapfrog_steps, z.expand_as(work.z)
    lower = annealed(work.path, work.z, work.ladder, forwards, steps)
    upper = annealed(work.path, start, work.ladder.backwards(), backwards, steps)
    return method.result_of(*lower, Bound.LOWER), method.result_of(*upper, Bound.UPPER)


def _simulated(program: Program, rows: Batch, seed: int) -> tuple[Tensor, Batch]:
    """Latents `(batch, latents)` drawn from the program, and the batch that they simulate.

    Run again on its own simulation, with the same random numbers, the program must draw the
    same; if not, it reads its data elsewhere, and the latents are no draw from the posterior.
    """
    first = _forward(program, rows, seed)
    batch = _written(program, rows, first)
    second = _forward(program, batch, seed)
    names = [*(site.name for site in program.latent_sites), *program.observed_names]
    for name in names:
        same = torch.equal(first[name]["value"], second[name]["value"])
        if not same or not torch.equal(first[name]["log_prob"], second[name]["log_prob"]):
            raise ValueError(
                f"site '{name}' depends on data that the program observes, by another way than "
                "its own draws, so the program cannot be simulated row by row; let later sites "
                "use the values that pyro.sample returns instead of the batch's"
            )
    values = {site.name: first[site.name]["value"] for site in program.latent_sites}
    return program.flatten(values)[0], batch


def _forward(program: Program, rows: Batch, seed: int) -> dict[str, Any]:
    """Sites of the program with nothing observed."""
    model = poutine.condition(program.model, data=program.fixed)
    free = _Free(frozenset(program.observed_names))
    with forked_seed(seed), poutine.block(), whole_plate(len(rows[0]), program.plate), free:
        trace = poutine.trace(model).get_trace(*rows)
    trace.compute_log_prob()
    return dict(trace.nodes)


class _Free(Messenger):
    """Lets named sites be drawn, whatever the program says it observes there."""

    def __init__(self, names: frozenset[str]) -> None:
        super().__init__()
        self.names = names

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.names:
            msg.update(is_observed=False, value=None, done=False)


def _written(program: Program, rows: Batch, drawn: dict[str, Any]) -> Batch:
    """The batch with what was drawn in place of what is observed."""
    batch = tuple(part.clone() for part in rows)
    with poutine.block(), whole_plate(len(batch[0]), program.plate):
        model = poutine.condition(program.model, data=program.fixed)
        nodes: dict[str, Any] = dict(poutine.trace(model).get_trace(*batch).nodes)
    for name in program.observed_names:
        observed, value = nodes[name]["value"], drawn[name]["value"]
        if not _is_part(observed, batch) or observed.shape != value.shape:
            raise ValueError(
                f"site '{name}' observes something computed from the batch, so what it draws "
                "cannot be put in its place: give the model the tensor that it observes"
            )
        observed.copy_(value)
    return batch


def _is_part(observed: Tensor, batch: Batch) -> bool:
    """Whether each entry is one entry of the batch, so that writing it changes the batch."""
    storages = {part.untyped_storage().data_ptr() for part in batch}
    repeated = any(s == 0 and n > 1 for s, n in zip(observed.stride(), observed.shape, strict=True))
    return observed.untyped_storage().data_ptr() in storages and not repeated
