"""Every likelihood with its reference from SciPy, made apart from it: a new one is a line here."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from pyro_vae.likelihoods import (
    Bernoulli,
    Beta,
    Categorical,
    ContinuousBernoulli,
    DecodedDispersion,
    DecodedSigma,
    Gaussian,
    LearnedDegrees,
    LearnedDispersion,
    LearnedSigma,
    Likelihood,
    LogNormal,
    NegativeBinomial,
    Ordinal,
    Poisson,
    StudentT,
    ZeroInflated,
)

Array = NDArray[np.float64]


class Reference(Protocol):
    """What is compared: everything shaped like the data."""

    discrete: bool

    def log_density(self, y: Array) -> Array:
        """Log density or log probability."""
        ...

    def cdf(self, y: Array) -> Array:
        """Distribution function."""
        ...

    def mean(self) -> Array:
        """The mean."""
        ...


class Scipy:
    """A distribution of SciPy's, with parameters shaped like the data."""

    def __init__(self, frozen: Any) -> None:
        self.frozen = frozen
        self.discrete = hasattr(frozen.dist, "pmf")
        self.log_density: Callable[[Array], Array] = (
            frozen.logpmf if self.discrete else frozen.logpdf
        )
        self.cdf: Callable[[Array], Array] = frozen.cdf
        self.mean: Callable[[], Array] = frozen.mean


class Truncated:
    """An exponential on [0, 1], which is what the continuous Bernoulli is; mirrored for eta > 0."""

    discrete = False

    def __init__(self, eta: Array) -> None:
        size = np.abs(eta)
        self.up, self.frozen = eta > 0, stats.truncexpon(b=size, scale=1 / size)

    def log_density(self, y: Array) -> Array:
        """Of a decaying exponential."""
        mirrored = np.where(self.up, 1 - y, y)
        return self.frozen.logpdf(mirrored.clip(0, 1 - 1e-13))  # off its end, for rounding

    def cdf(self, y: Array) -> Array:
        """Of a decaying exponential, or one less it."""
        return np.where(self.up, 1 - self.frozen.cdf(1 - y), self.frozen.cdf(y))

    def mean(self) -> Array:
        """Of a decaying exponential, or one less it."""
        return np.where(self.up, 1 - self.frozen.mean(), self.frozen.mean())


class Table:
    """Codes with these probabilities, along the last axis; no mean but the most probable code."""

    discrete = True

    def __init__(self, probabilities: Array, *, ordered: bool) -> None:
        self.p, self.ordered = probabilities, ordered

    def log_density(self, y: Array) -> Array:
        """The entry of each code."""
        return np.log(self._at(self.p, y))

    def cdf(self, y: Array) -> Array:
        """The sum up to each code, none for -1."""
        below = np.concatenate([np.zeros_like(self.p[..., :1]), self.p.cumsum(axis=-1)], axis=-1)
        return self._at(below, y + 1)

    def mean(self) -> Array:
        """Mean of the codes if they have an order."""
        codes = np.arange(self.p.shape[-1])
        return self.p @ codes if self.ordered else self.p.argmax(axis=-1).astype(float)

    def _at(self, table: Array, y: Array) -> Array:
        table = np.broadcast_to(table, (*y.shape, table.shape[-1]))
        return np.take_along_axis(table, y[..., None].astype(int), axis=-1)[..., 0]


class Inflated:
    """Counts with more zeros."""

    discrete = True

    def __init__(self, counts: Scipy, share: Array) -> None:
        self.counts, self.share = counts, share

    def log_density(self, y: Array) -> Array:
        """By its definition."""
        counted = np.log1p(-self.share) + self.counts.log_density(y)
        return np.where(y == 0, np.logaddexp(np.log(self.share), counted), counted)

    def cdf(self, y: Array) -> Array:
        """By its definition."""
        return (self.share + (1 - self.share) * self.counts.cdf(y)) * (y >= 0)

    def mean(self) -> Array:
        """Of what is not gated."""
        return (1 - self.share) * self.counts.mean()


class LikelihoodCase(NamedTuple):
    """A likelihood, its reference given `outputs` arrays shaped like the data, and data."""

    make: Callable[[], Likelihood]
    reference: Callable[..., Reference]
    y: Array  # the edges of the support among them, `(rows, 3)`
    refused: tuple[float, ...] = ()  # values that its check refuses
    extremes: tuple[float, ...] = (-1e6, 1e6)  # data at which gradients are asked for
    shift: float = 0.0  # of the last output


def sigma_of(raw: Array) -> Array:
    """A decoded sigma with the floor 0.1."""
    return 0.1 + np.log1p(np.exp(raw))


def negative_binomial(log_mean: Array, r: Array | float) -> Scipy:
    """SciPy counts failures before r successes."""
    return Scipy(stats.nbinom(r, r / (r + np.exp(log_mean))))


def categories(*scores: Array) -> Table:
    """From the scores of each."""
    return Table(special.softmax(np.stack(scores, axis=-1), axis=-1), ordered=False)


def levels(eta: Array) -> Table:
    """Four levels, at the cut points logit 1/4, 2/4, 3/4."""
    cuts = special.logit(np.array([0.25, 0.5, 0.75]))
    above = np.concatenate([np.ones((*eta.shape, 1)), special.expit(eta[..., None] - cuts)], -1)
    return Table(-np.diff(np.concatenate([above, np.zeros((*eta.shape, 1))], -1)), ordered=True)


REAL = np.array([[-2.0, 0.1, 0.3], [1.5, 30.0, -4.0], [0.0, 0.7, 2.5], [-0.6, 1.2, 0.4]])
POSITIVE = np.array([[1e-3, 0.1, 0.3], [1.5, 30.0, 4.0], [1.0, 0.7, 2.5], [0.6, 1.2, 0.4]])
INSIDE = np.array([[1e-6, 0.1, 0.3], [0.5, 0.999, 0.2], [0.01, 0.7, 0.8], [0.6, 0.2, 0.4]])
CODES = np.array([[0.0, 1.0, 3.0], [2.0, 2.0, 0.0], [3.0, 0.0, 1.0], [1.0, 1.0, 2.0]])
COUNTS = np.array([[0.0, 1.0, 3.0], [2.0, 17.0, 0.0], [40.0, 16.0, 15.0], [5.0, 1.0, 300.0]])
BINARY = np.array([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 1.0]])

CASES: dict[str, LikelihoodCase] = {
    "bernoulli": LikelihoodCase(
        Bernoulli,
        lambda eta: Scipy(stats.bernoulli(special.expit(eta))),
        BINARY, (-0.1, 1.1), (0.0, 1.0),
    ),
    "gaussian": LikelihoodCase(
        lambda: Gaussian(0.7), lambda loc: Scipy(stats.norm(loc, 0.7)), REAL, (), (-1e6, 1e6)
    ),
    "gaussian-decoded": LikelihoodCase(
        lambda: Gaussian(DecodedSigma(floor=0.1)),
        lambda loc, raw: Scipy(stats.norm(loc, sigma_of(raw))),
        REAL,
    ),
    "student-t": LikelihoodCase(
        lambda: StudentT(df=3.0, sigma=0.7), lambda loc: Scipy(stats.t(3.0, loc, 0.7)), REAL,
        (float("inf"),),
    ),
    "student-t-many": LikelihoodCase(
        lambda: StudentT(df=1e5), lambda loc: Scipy(stats.t(1e5, loc, 1.0)), REAL
    ),
    "student-t-learned": LikelihoodCase(
        lambda: StudentT(LearnedDegrees(initial=2.5), LearnedSigma(initial=0.4)),
        lambda loc: Scipy(stats.t(2.5, loc, 0.4)),
        REAL,
    ),
    "student-t-decoded": LikelihoodCase(
        lambda: StudentT(60, DecodedSigma(floor=0.1)),
        lambda loc, raw: Scipy(stats.t(60, loc, sigma_of(raw))),
        REAL,
    ),
    "log-normal": LikelihoodCase(
        lambda: LogNormal(0.7),
        lambda loc: Scipy(stats.lognorm(0.7, scale=np.exp(loc))),
        POSITIVE, (0.0, -1.0), (1e-30, 1e6),
    ),
    "log-normal-decoded": LikelihoodCase(
        lambda: LogNormal(DecodedSigma(floor=0.1)),
        lambda loc, raw: Scipy(stats.lognorm(sigma_of(raw), scale=np.exp(loc))),
        POSITIVE, (0.0, -1.0), (1e-30, 1e6),
    ),
    "continuous-bernoulli": LikelihoodCase(
        ContinuousBernoulli, Truncated, np.where(INSIDE < 1e-3, 0.0, np.round(INSIDE, 2)),
        (-0.1, 1.1), (0.0, 0.5, 1.0),
    ),
    "beta": LikelihoodCase(
        Beta,
        lambda eta, kappa: Scipy(
            stats.beta(special.expit(eta) * np.exp(kappa), special.expit(-eta) * np.exp(kappa))
        ),
        INSIDE, (0.0, 1.0, 1.5), (1e-30, 0.5, 1 - 1e-7),
        shift=2.0,  # else draws pile up closer to 1 than a float can be
    ),
    "categorical": LikelihoodCase(
        lambda: Categorical(4), categories, CODES, (-1.0, 0.5, 4.0), (0.0, 3.0)
    ),
    "ordinal": LikelihoodCase(lambda: Ordinal(4), levels, CODES, (-1.0, 0.5, 4.0), (0.0, 2.0, 3.0)),
    "poisson": LikelihoodCase(
        Poisson, lambda eta: Scipy(stats.poisson(np.exp(eta))), COUNTS, (-1.0, 0.5), (0.0, 1e6)
    ),
    "negative-binomial": LikelihoodCase(
        lambda: NegativeBinomial(2.5), lambda eta: negative_binomial(eta, 2.5), COUNTS,
        (-1.0, 0.5), (0.0, 1.0, 1e6),
    ),
    "negative-binomial-learned": LikelihoodCase(
        lambda: NegativeBinomial(LearnedDispersion(initial=0.3)),
        lambda eta: negative_binomial(eta, 0.3),
        COUNTS, (-1.0, 0.5), (0.0, 1.0, 1e6),
    ),
    "negative-binomial-decoded": LikelihoodCase(
        lambda: NegativeBinomial(DecodedDispersion()),
        lambda eta, log_r: negative_binomial(eta, np.exp(log_r)),
        COUNTS, (-1.0, 0.5), (0.0, 1.0, 1e6),
    ),
    "zero-inflated-poisson": LikelihoodCase(
        lambda: ZeroInflated(Poisson()),
        lambda eta, gate: Inflated(Scipy(stats.poisson(np.exp(eta))), special.expit(gate)),
        COUNTS, (-1.0, 0.5), (0.0, 1e6),
    ),
    "zero-inflated-negative-binomial": LikelihoodCase(
        lambda: ZeroInflated(NegativeBinomial(DecodedDispersion())),
        lambda eta, log_r, gate: Inflated(
            negative_binomial(eta, np.exp(log_r)), special.expit(gate)
        ),
        COUNTS, (-1.0, 0.5), (0.0, 1.0, 1e6),
    ),
}  # fmt: skip
