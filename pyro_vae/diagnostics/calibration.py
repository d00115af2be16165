r"""Simulation-based calibration: does a guide quantify its uncertainty correctly?

If a program simulates :math:`z^\star \sim p(z)` and then :math:`y \sim p(y \mid z^\star)`, then
:math:`z^\star` is a draw from the posterior :math:`p(z \mid y)`. If the guide is that posterior,
then :math:`z^\star` is one more draw like :math:`z_1, \ldots, z_L \sim q(z \mid y)`, so for any
function :math:`t(z, y)` the rank

.. math:: r = \#\{l : t(z_l, y) < t(z^\star, y)\}

is uniform on :math:`0, \ldots, L`, exactly, with ties broken at random. The guide is too narrow if
too many ranks lie at both ends, too wide if they lie in the middle, and biased if they lie at one
end. A guide that returns the prior also has uniform ranks of every coordinate of z. Only functions
of z *and* y, such as :math:`\log p(y \mid z)`, reveal that such a guide ignores its datum.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from statistics import NormalDist
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from .. import stats
from .._types import Batch, Data, Estimate, ProgramLike
from ..evidence.weights import conditioned, rows_at_once, weigh
from ..formatting import count_of, plus_minus
from ..guides import Posterior
from ..guides.entry import for_new_rows, shared_only
from ..programs import Program, as_batch, simulate
from ..programs.modes import device_of
from ..programs.pieces import first_rows
from ..programs.traces import retry_unvalidated
from ..progress import progress_bar
from ..randomness import forked, generator, stream
from ..results import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_POWER = 0.9  # power against the errors that a verdict states as detectable


class Draws(NamedTuple):
    """Input of a test quantity: either the simulated latents or the guide's draws.

    Arguments:
        z: Flat unconstrained latents, `(particles, batch, latents)`.
        log_prior: Log prior density of `z`, `(particles, batch)`, in nats.
        log_likelihood: Log density of the data given `z`, `(particles, batch)`, in nats.
        batch: The data.
    """

    z: Tensor
    log_prior: Tensor
    log_likelihood: Tensor
    batch: Batch


Quantity: TypeAlias = Callable[[Draws], Tensor]
"""A function of z and y whose values are ranked.

It takes :class:`Draws`, which hold z and y, and returns one value for each draw and datum,
`(particles, batch)`.
"""


def log_likelihood(draws: Draws) -> Tensor:
    r"""Returns :math:`\log p(y \mid z)`, whose ranks reveal a guide that ignores its datum."""
    return draws.log_likelihood


def log_joint(draws: Draws) -> Tensor:
    r"""Returns :math:`\log p(y, z)`, which says how typical a draw is of the posterior."""
    return draws.log_prior + draws.log_likelihood


@dataclass(frozen=True, repr=False)
class Calibration(Result):
    """The ranks of simulated latents among the guide's draws, with tests for uniformity.

    Arguments:
        ranks: Ranks from 0 to `num_samples`, `(data, quantities)`; uniform if the guide is
            calibrated.
        names: Names of the quantities: latents by site, then functions of z and y.
        num_samples: Draws of the guide per datum.
        data: The simulated data.
        given: Text that names the global sites on which the posterior is conditional; empty if
            there are none.
        draws: How messages refer to the draws, for example as "the guide's draws".
    """

    ranks: Int[Tensor, "data quantities"]
    names: tuple[str, ...]
    num_samples: int
    data: Batch
    given: str = ""
    draws: str = "the guide's draws"

    def plot(self) -> "Axes":
        """Plots the distribution of the ranks with a band for uniform ranks; needs matplotlib."""
        from ..plots import plot_rank_ecdf

        return plot_rank_ecdf(self.by_name, self.num_samples)

    @property
    def by_name(self) -> dict[str, Tensor]:
        """The ranks of each quantity, `(data,)`, by name, in the form that the plots expect."""
        return dict(zip(self.names, self.ranks.T, strict=True))

    @cached_property
    def p_values(self) -> Float64[Tensor, " quantities"]:
        """Exact p-values of the hypothesis that ranks are uniform, one per quantity."""
        values = [stats.rank_p_value(ranks, self.num_samples) for ranks in self.ranks.T]
        return torch.tensor(values, dtype=torch.float64, device="cpu")

    @property
    def adjusted(self) -> Float64[Tensor, " quantities"]:
        """P-values adjusted by Holm's method for the number of quantities."""
        return stats.holm(self.p_values)

    @property
    def location(self) -> Estimate:
        """Mean rank, scaled to the interval from 0 to 1.

        It is 1/2 if the draws are calibrated, and lower if the draws are too high.
        """
        return stats.mean_estimate((self.ranks.double() + 0.5) / (self.num_samples + 1))

    @property
    def spread(self) -> Estimate:
        """Spread of the ranks relative to that of uniform ranks.

        It is 1 if the draws are calibrated, and above 1 if the draws are too narrow.
        """
        return stats.mean_estimate(_squares(self.num_samples)[self.ranks.cpu()])

    def verdict(self, false_alarm: float = 0.01) -> str:
        """Says which quantities are not calibrated, and in what way.

        Arguments:
            false_alarm: Probability that a calibrated guide is rejected, over all quantities.
        """
        rejected = (self.adjusted < false_alarm).nonzero().flatten().tolist()
        rate = (
            f"false-alarm rate of {false_alarm:g} over {count_of(len(self.names), 'quantity')} "
            "(Holm)"
        )
        if not rejected:
            scale, mean = self.resolution(false_alarm)
            return (
                f"no miscalibration detected at a {rate}: with "
                f"{count_of(len(self.ranks), 'datum')}, an error of {scale:.0%} in the scale of "
                f"normal draws, or of {mean:.2g} sd in their mean, is detected with a probability "
                "of 90%"
            )
        errors = ", ".join(f"{self.names[place]} {self._shape(place)}" for place in rejected)
        return f"not calibrated at a {rate}; {self.draws} of {errors}"

    def summary(self, false_alarm: float = 0.01) -> str:
        """Returns one line of text per quantity, then the verdict."""
        columns = (*self.location, *self.spread, self.p_values, self.adjusted)
        lines = [
            f"{name}: mean rank {plus_minus(place, place_error, '.3f')} (1/2 if calibrated), "
            f"spread {plus_minus(spread, spread_error, '.2f')} (1 if calibrated), "
            f"p = {p:.2g}, adjusted {adjusted:.2g}"
            for name, place, place_error, spread, spread_error, p, adjusted in zip(
                self.names, *columns, strict=True
            )
        ]
        return "\n".join([*lines, self.verdict(false_alarm)])

    def _shape(self, place: int) -> str:
        """Says what is wrong with the draws of a quantity, for example "are too wide"."""
        uniform = torch.arange(self.num_samples + 1, dtype=torch.float64, device="cpu")
        squares = _squares(self.num_samples)
        off = float(self.ranks[:, place].double().mean() - uniform.mean())
        # z-scores of the mean and of the spread of the ranks, which are near 0 for uniform ranks
        root = len(self.ranks) ** 0.5
        shift = root * off / float(uniform.std(correction=0))
        width = root * float(self.spread.value[place] - 1) / float(squares.std(correction=0))
        narrow = "are too narrow" if width > 0 else "are too wide"
        # If the draws are too high, the true latents lie below them.
        high = "too low" if shift > 0 else "too high"
        if max(abs(shift), abs(width)) < 2:
            return "have the wrong shape, but about the right location and width"
        if abs(shift) >= abs(width):  # a shift moves ranks to one end: this alone widens them
            return f"are {high}"
        return f"{narrow} and {high}" if abs(shift) > 2 else narrow

    def resolution(self, false_alarm: float = 0.01) -> tuple[float, float]:
        r"""Returns the smallest detectable errors of the guide's scale and of the guide's mean.

        The error of the scale is relative. The error of the mean is in posterior standard
        deviations. An error :math:`\delta` of a scale changes the share of ranks in the lowest 84%
        (true latents up to one standard deviation above the mean) by :math:`\phi(1) \delta`, where
        :math:`\phi` is the standard normal density. An error of a mean changes the share of ranks
        in the lower half by :math:`\phi(0) \delta`. An error is detected with a probability of 90%
        if it moves the expected share out of the band of uniform ranks by 1.28 standard deviations.

        Arguments:
            false_alarm: Probability that a calibrated guide is rejected, over all quantities.
        """
        band = stats.rank_band(len(self.ranks), self.num_samples, false_alarm / len(self.names))
        normal = NormalDist()
        return (
            self._detectable(band, normal.cdf(1.0), normal.pdf(1.0)),
            self._detectable(band, 0.5, normal.pdf(0.0)),
        )

    def _detectable(self, band: stats.Band, share: float, slope: float) -> float:
        """Computes the smallest error of the guide that is detected with a probability of 90%.

        If the guide has no error, the share of ranks below a certain limit is `share`. An error of
        size e changes this share by `slope` times e, and is detected if the share leaves the band.
        """
        number, ranks = len(self.ranks), self.num_samples + 1
        place = min(max(round(share * ranks), 1), self.num_samples)
        centre, share = number * place / ranks, place / ranks
        half = max(band.upper[place - 1] - centre, centre - band.lower[place - 1])
        spare = NormalDist().inv_cdf(_POWER) * (number * share * (1 - share)) ** 0.5
        return float((half + spare) / (number * slope))


def simulation_based_calibration(
    model: ProgramLike,
    guide: ProgramLike,
    data: Data,
    num_data: int | None = None,
    num_samples: int = 99,
    *,
    quantities: Mapping[str, Quantity] | None = None,
    given: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Calibration:
    r"""Ranks each simulated latent among the guide's draws for the data simulated from this latent.

    .. math:: z^\star \sim p(z), \quad y \sim p(y \mid z^\star), \quad
        z_1, \ldots, z_L \sim q(z \mid y), \quad r = \#\{l : t(z_l, y) < t(z^\star, y)\}

    The ranks show whether the guide is the posterior for data simulated from the model. Simulated
    data may differ from your data. Calibration is an average over data: a calibrated guide may
    still be too narrow for some data and too wide for others. A :class:`pyro_vae.LocalParameters`
    guide has no parameters for simulated data, so these are first fitted (`guide.fit_rows`). The
    test then concerns the family of the guide and this fit, not the trained parameters.

    Arguments:
        model: A Pyro program `model(*batch)` with one plate over data, whose observations are
            tensors of the batch or parts of them.
        guide: A :class:`pyro_vae.Guide`, or a guide program written by hand.
        data: Rows that give the shapes and the covariates. The observed values are replaced by
            simulated values.
        num_data: Number of data to simulate, by default one per row; if there are fewer rows, they
            are repeated. With 1,000 data, an error of 8% in a scale is detected.
        num_samples: Draws of the guide per datum, :math:`L`; if L + 1 has many divisors, a
            histogram of the ranks can have equal bins.
        quantities: Functions of z and y that are ranked in addition to the entries of the flat
            latent vector; by default only :math:`\log p(y \mid z)` (:func:`log_likelihood`).
        given: Values of the global latent sites; by default the mean of their posterior. Latents
            and data are simulated given these values.
        seed: Seed of all draws; the caller's random stream is left alone.
        progress: Whether to show a progress bar; by default on terminals and in notebooks.

    Returns:
        Ranks, exact p-values and a verdict. Discrete latents are summed out and have no rank.

    Raises:
        ValueError: If the program cannot be simulated row by row, or there are fewer than two
            data or draws.

    References:
        | Validating Bayesian Inference Algorithms with Simulation-Based Calibration
          (Talts et al., 2018)
        | https://arxiv.org/abs/1804.06788
        | Simulation-Based Calibration Checking for Bayesian Computation: The Choice of Test
          Quantities Shapes Sensitivity (Modrák et al., 2023)
        | https://arxiv.org/abs/2211.02383

    Example:
        >>> import pyro
        >>> from pyro_vae import ExactPosterior, Guide
        >>> def model(y):
        ...     with pyro.plate("data", len(y)):
        ...         z = pyro.sample("z", pyro.distributions.Normal(0.0, 1.0))
        ...         pyro.sample("y", pyro.distributions.Normal(z, 1.0), obs=y)
        >>> guide = Guide(model, ExactPosterior(), example=torch.zeros(1))
        >>> result = simulation_based_calibration(model, guide, torch.zeros(100))
        >>> result.names, bool((result.adjusted > 1e-6).all())
        (('z', 'log p(y | z)'), True)
    """
    functions = {"log p(y | z)": log_likelihood} if quantities is None else quantities
    examples = first_rows(as_batch(data, device_of(model, guide)), num_data)
    if len(examples[0]) < 2 or num_samples < 2:
        raise ValueError(
            "`num_data` and `num_samples` must both be at least 2; got "
            f"{len(examples[0])} and {num_samples}"
        )
    with conditioned(model, shared_only(guide), examples, seed, given) as (program, _, rows):
        truth, simulated = simulate(program, rows, seed)
    guide = for_new_rows(guide, simulated, given=given, seed=seed, progress=progress)
    with conditioned(model, guide, simulated, seed, given) as (program, posterior, batch):
        known = _weighed(program, truth[None], batch)
        against = Ranked(program, posterior, batch, functions, num_samples)
        below, equal = against.counts(_values(known, functions), seed, progress=progress)
    names = (*latent_names(program), *functions)
    ranks = _ties_broken(below.cpu(), equal.cpu(), seed)
    return Calibration(ranks, names, num_samples, simulated, program.conditions)


def _weighed(program: Program, z: Tensor, batch: Batch) -> Draws:
    """Evaluates the log prior and the log likelihood at `z`; raises an error if one is nan."""
    weights = weigh(program, z, z.new_zeros(z.shape[:2]), batch, 1)
    return Draws(z, weights.log_prior, weights.log_likelihood, batch)


@dataclass(frozen=True)
class Ranked:
    """Compares the true latents, from which the data were simulated, with draws of the guide.

    All draws come from one random stream. Separate streams for the data are not needed, because the
    data are always simulated together.
    """

    program: Program
    posterior: Posterior
    batch: Batch
    functions: Mapping[str, Quantity]
    num_samples: int

    def counts(self, truth: Tensor, seed: int, *, progress: bool | None) -> tuple[Tensor, Tensor]:
        """Returns how many draws are below the true value, and how many are equal to it."""
        below = equal = torch.zeros(truth.shape[1:], dtype=torch.int64, device=truth.device)
        for draws in self._pieces(seed, progress=progress):
            drawn = _values(draws, self.functions)
            below = below + (drawn < truth).sum(dim=0)
            equal = equal + (drawn == truth).sum(dim=0)
        return below, equal

    def weighed(
        self, truth: Tensor, other: Batch, seed: int, *, progress: bool | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields test quantities and log p(`other` | z): first for the true z, then for draws of z.

        The draws of z are from the guide's posterior given `batch`; `other` may be different data.
        """
        known = _weighed(self.program, truth[None], self.batch)
        for draws in itertools.chain([known], self._pieces(seed, progress=progress)):
            log_weights = _weighed(self.program, draws.z, other).log_likelihood
            yield _values(draws, self.functions), log_weights

    def _pieces(self, seed: int, *, progress: bool | None) -> Iterator[Draws]:
        """Yields the guide's draws for all data, as many draws at a time as fit into memory."""
        limit = rows_at_once(self.program, self.batch)
        size = max(1, limit // len(self.batch[0]))  # number of draws at once, each for all data
        starts = range(0, self.num_samples, size)
        with forked(seed, "calibration.guide"):
            for first in progress_bar(starts, show=progress, desc="calibration"):
                particles = min(size, self.num_samples - first)
                z, _ = retry_unvalidated(partial(self.posterior.draw, particles))
                yield _weighed(self.program, z, self.batch)


def _values(draws: Draws, functions: Mapping[str, Quantity]) -> Tensor:
    """Returns latents and test quantities as one tensor, `(particles, batch, quantities)`."""
    shape = draws.log_prior.shape
    columns = [draws.z.double()]
    for name, function in functions.items():
        value = function(draws)
        missing = int(value.isnan().sum())
        if value.shape != shape or missing > 0:
            raise ValueError(
                f"the quantity '{name}' must be a tensor of shape {tuple(shape)}, with one number "
                f"per particle and datum and no nan entries; got shape {tuple(value.shape)} with "
                f"{count_of(missing, 'nan entry')}"
            )
        columns.append(value.double()[..., None])
    return torch.cat(columns, dim=-1)


def _ties_broken(below: Tensor, equal: Tensor, seed: int) -> Tensor:
    """Computes ranks; ties are broken at random, with equal chances for all tied ranks."""
    draws = generator(stream(seed, "calibration.ties"))
    uniform = torch.rand(below.shape, generator=draws, dtype=torch.float64, device="cpu")
    return below + (uniform * (equal + 1)).long()


def require_discrete_draws(program: Program, impossible: str, remedy: str) -> None:
    """Refuses a program with discrete sites that are summed out and therefore have no draws.

    `impossible` says what cannot be done without these draws.
    """
    sites = list(program.structure.enumerated)
    if sites:
        raise ValueError(
            f"{impossible} without draws of the discrete sites {sites}, which are summed out: "
            f"{remedy}"
        )


def latent_names(program: Program) -> list[str]:
    """Returns a name for each entry of the flat latent vector."""
    return [
        site.name if site.size == 1 else f"{site.name}[{entry}]"
        for site in program.latent_sites
        for entry in range(site.size)
    ]


def _squares(num_samples: int) -> Tensor:
    """Returns each rank's squared distance from the middle rank, scaled to a mean of 1."""
    ranks = torch.arange(num_samples + 1, dtype=torch.float64, device="cpu")
    squares = (ranks - ranks.mean()).square()
    return squares / squares.mean()
