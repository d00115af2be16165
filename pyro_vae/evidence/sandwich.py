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

import torch
from torch import Tensor

from .. import stats
from .._types import Batch, Data, Estimate, ProgramLike
from ..programs import as_batch, device_of, simulate
from ..results import Doubts, PerDatum, either, join
from .annealing import AnnealedImportanceSampling, StartFromGuide, Work, annealed, noise_of
from .results import Bound, LogMarginal
from .weights import prepared


@dataclass(frozen=True, repr=False)
class Sandwich(PerDatum):
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
    def value(self) -> Tensor:
        """Upper less lower bound of every datum."""
        return self.upper.value - self.lower.value

    @property
    def error(self) -> Tensor:
        """Its standard error: the two runs share no draw."""
        return torch.hypot(self.upper.error, self.lower.error)

    @property
    def doubts(self) -> Doubts:
        """Those of either bound."""
        return either(self.lower.doubts, self.upper.doubts)

    def columns(self) -> dict[str, Tensor]:
        """Both bounds of every datum, with their errors."""
        return {
            "lower": self.lower.value,
            "lower_error": self.lower.error,
            "upper": self.upper.value,
            "upper_error": self.upper.error,
        }

    @property
    def width(self) -> Estimate:
        """Upper less lower bound, mean over data, with the error from their spread, in nats."""
        return stats.population_mean(self.upper.value - self.lower.value)

    def summary(self) -> str:
        """Says how far apart the bounds are, and the bounds."""
        return (
            f"lower: {self.lower.summary()}\nupper: {self.upper.summary()}\n"
            f"log p(y) of {len(self)} simulated data is known to within {self.width:.3f} nats per "
            f"datum on average; {self.trust()}"
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
    proposal = no_guide if guide is None else guide
    examples = in_turn(as_batch(data, device_of(model, proposal)), num_data)
    with prepared(model, proposal, examples, seed, given) as (program, _, rows):
        z, made = simulate(program, rows, seed)
    with prepared(model, proposal, made, seed, given) as (program, posterior, batch):
        works = method.works(program, posterior, batch, seed=seed, progress=progress)
        pairs = [_bounds(method, work, z[work.rows]) for work in works]
        lower, upper = (join(list(side)) for side in zip(*pairs, strict=True))
    conditions = program.conditions
    return Sandwich(replace(lower, given=conditions), replace(upper, given=conditions), made)


def no_guide(*_batch: Tensor) -> None:
    """Stands for a guide that nobody gave: refuses to be asked for shared sites."""
    raise ValueError(
        "the program has latent sites that all data share, and no guide that says their values: "
        "pass given=, a value for each"
    )


def in_turn(batch: Batch, num_data: int | None) -> Batch:
    """So many rows of a batch, from the first on and over again; all of them by default."""
    if num_data is None:
        return batch
    if num_data < 1:
        raise ValueError(f"num_data is at least 1, got {num_data}")
    return tuple(part[torch.arange(num_data, device=part.device) % len(part)] for part in batch)


def _bounds(
    method: AnnealedImportanceSampling, work: Work, z: Tensor
) -> tuple[LogMarginal, LogMarginal]:
    """Both directions on the same ladder; `z`, `(rows, latents)`, has simulated the data."""
    forwards = noise_of(work.keys, method.num_temperatures, work.z)
    backwards = noise_of(work.backward_keys, method.num_temperatures, work.z)
    steps, start = method.leapfrog_steps, z.expand_as(work.z)
    lower = annealed(work.path, work.z, work.ladder, forwards, steps)
    upper = annealed(work.path, start, work.ladder.backwards(), backwards, steps)
    return method.result_of(*lower, Bound.LOWER), method.result_of(*upper, Bound.UPPER)
