r"""Calibration for the data at hand, not on average: three tests, with a p-value per datum.

*Two samples.* Draws of q(z | y_n) are compared with trusted draws of the posterior.

*Posterior SBC.* Calibration of the guide near a datum. If a program draws :math:`z^\star \sim
p(z \mid y_n)` and then :math:`y' \sim p(y \mid z^\star)`, then :math:`z^\star` is a draw from

.. math:: p(z \mid y', y_n) \propto p(z \mid y') \, p(y_n \mid z) .

A guide takes one datum, so it has no posterior given two. But let :math:`z_0 = z^\star` and
:math:`z_1, \ldots, z_L \sim p(z \mid y')`. Given both data and the set of these values, each of
them is the one that made :math:`y'` with probability :math:`\bar w_l \propto p(y_n \mid z_l)`. So
for any function t of z and :math:`y'`, and v uniform on (0, 1),

.. math:: u = \sum_{l : t_l < t_0} \bar w_l + v \sum_{l : t_l = t_0} \bar w_l

is uniform, exactly, for any L, if :math:`q(z \mid y')` is the posterior of :math:`y'`.

*Out of distribution.* The guide's posterior for a datum is compared with those for reference data.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from .. import stats
from .._types import Batch, Data, Estimate, ProgramLike
from ..evidence import Block, ImportanceSampling, draw_rows, in_turn, prepared
from ..guides import for_new_rows, is_tied_to_rows, shared_only
from ..programs import Program, as_batch, device_of, repeat_rows, replicated, simulate
from ..randomness import forked, generator, row_keys, stream
from ..results import Doubt, Doubts, PerDatum
from .calibration import Calibration, Quantity, Ranked, latent_names, log_likelihood

_PER_DRAW = 20.0  # effective draws for each one used: those in common widen the null by 5% at most
_PER_REPLICATE = 4.0  # effective draws for each replicate, likewise
_FEWEST_DRAWS = 20  # with fewer, not even a shift by one standard deviation is seen
_SLIGHT = 1e-3  # nats; weights that vary by less are those of a perfect guide
_FLOOR = 1e-3  # of an eigenvalue of a correlation matrix


@runtime_checkable
class TrustedDraws(Protocol):
    """Draws of every datum's posterior, as :func:`pyro_vae.posterior_draws` makes them."""

    @property
    def z(self) -> Tensor:
        """Flat unconstrained latents, `(draws, batch, latents)`."""

    @property
    def ess(self) -> Tensor:
        """Effective number of draws, `(batch,)`."""

    @property
    def doubts(self) -> Doubts:
        """Data whose draws cannot be trusted, by reason."""


@dataclass(frozen=True, repr=False)
class PValues(PerDatum):
    """P-values of one hypothesis, one per datum.

    Arguments:
        p_value: The p-value, with the Monte Carlo error from the finite number of permutations or
            reference data.
        statistic: The statistic that it was computed from, `(batch,)`.
        hypothesis: The hypothesis that is rejected, in words.
        measure: The statistic, in words.
        doubts: Data that cannot be tested, by reason.
    """

    p_value: Estimate
    statistic: Float64[Tensor, " batch"]
    hypothesis: str
    measure: str
    doubts: Doubts = field(default_factory=dict)

    @property
    def value(self) -> Tensor:
        """The p-values."""
        return self.p_value.value

    @property
    def error(self) -> Tensor:
        """Monte Carlo errors of the p-values."""
        return self.p_value.error

    def rejected(self, control: stats.Control | None = None) -> Tensor:
        """Data for which the hypothesis is rejected; none that cannot be tested.

        Arguments:
            control: :class:`pyro_vae.stats.FalseDiscoveries` at 5% by default, or
                :class:`pyro_vae.stats.FalseAlarms`.
        """
        rejected, tested = torch.zeros_like(self.reliable), self.reliable
        rejected[tested] = (control or stats.FalseDiscoveries())(self.value[tested])
        return rejected

    def columns(self) -> dict[str, Tensor]:
        """The p-value with its error, the statistic, and whether the datum is rejected."""
        return {
            "p_value": self.value,
            "p_value_error": self.error,
            "statistic": self.statistic,
            "rejected": self.rejected(),
        }

    def summary(self, control: stats.Control | None = None) -> str:
        """The number of data for which the hypothesis is rejected, or cannot be tested."""
        control = control or stats.FalseDiscoveries()
        bad = int((~self.reliable).sum())
        untested = f"; {bad} cannot be tested ({self.reasons})" if bad else ""
        return (
            f"{self.hypothesis}: rejected for {int(self.rejected(control).sum())} of {len(self)} "
            f"data at {control}; {self.measure}: median {float(self.statistic.median()):.3g}, "
            f"largest {float(self.statistic.max()):.3g}{untested}"
        )

    def plot(self) -> Any:
        """P-values, lowest first; needs matplotlib."""
        from ..plots import plot_per_datum

        return plot_per_datum(self.value, self.error, self.reliable, name="p-value")


def two_sample_test(
    model: ProgramLike,
    guide: ProgramLike,
    data: Data,
    draws: TrustedDraws,
    *,
    num_samples: int = 200,
    num_permutations: int = 199,
    given: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> PValues:
    r"""Tests for every datum whether the guide's draws could be draws of its posterior.

    .. math:: H_n : q(z \mid y_n) = p(z \mid y_n)

    by the energy distance of two samples and permutations of their labels (see
    :func:`pyro_vae.stats.energy_test`). Unlike importance weights, the test can detect a region of
    the posterior that the guide never visits, provided that `draws` visit it. Draws from importance
    sampling or Markov chains are not independent, so only one in 20 effective draws is used, and
    the level holds. With enough draws, even a guide that is good enough for its purpose is
    rejected: the statistic shows how large the difference is, `draws.value` and `draws.scale` in
    which moments.

    Arguments:
        model: A Pyro program `model(*batch)` with one plate over data.
        guide: A :class:`pyro_vae.Guide`, or a guide program written by hand.
        data: The batch tensor, or a tuple of them.
        draws: Draws of the posterior of these data, from :func:`pyro_vae.posterior_draws`.
        num_samples: Draws of the guide per datum, and at most as many of the posterior.
        num_permutations: Permutations per datum.
        given: Values of the latent sites that all data share, by name.
        seed: Seed of the guide's draws and of the permutations; the caller's random stream is left
            alone.

    Returns:
        A p-value per datum, with the energy distance as a share of the largest possible one. Data
        with fewer than 20 usable draws, or with draws that are not reliable, are doubted.

    Raises:
        ValueError: If the draws are not of these data, or there are too few.

    References:
        | Testing for Equal Distributions in High Dimension (Székely & Rizzo, 2004)
        | Revisiting Classifier Two-Sample Tests (Lopez-Paz & Oquab, 2017)
        | https://arxiv.org/abs/1610.06545
        | L-C2ST: Local Diagnostics for Posterior Approximations (Linhart et al., 2023)
        | https://arxiv.org/abs/2306.03580

    Example:
        >>> import pyro
        >>> import pyro_vae as pv
        >>> def model(y):
        ...     with pyro.plate("data", len(y)):
        ...         z = pyro.sample("z", pyro.distributions.Normal(0.0, 1.0))
        ...         pyro.sample("y", pyro.distributions.Normal(z, 0.3), obs=y)
        >>> guide = pv.Guide(model, pv.GlobalParameters(), example=torch.zeros(1))  # at the prior
        >>> y = torch.tensor([2.0, 1.0])
        >>> draws = pv.posterior_draws(model, guide, y)
        >>> two_sample_test(model, guide, y, draws).rejected()
        tensor([True, True])
    """
    with prepared(model, guide, data, seed, given) as (program, posterior, batch):
        _require_draws(draws, program, batch)
        keys = row_keys(seed, "two_sample.guide", *batch)
        own, _ = draw_rows(posterior, 0, keys, num_samples)
    sizes = (draws.ess / _PER_DRAW).clamp(max=min(num_samples, len(draws.z))).long()
    chance = generator(stream(seed, "two_sample.permutations"))
    pairs = [
        _compared(own[:, row], draws.z[:, row], size, num_permutations, chance)
        for row, size in enumerate(sizes.tolist())
    ]
    value, error, distance = torch.tensor(pairs, dtype=torch.float64).T
    doubts = {**draws.doubts, Doubt.FEW_EFFECTIVE_DRAWS: sizes < _FEWEST_DRAWS}
    return PValues(
        Estimate(value, error), distance, "q(z | y) is the posterior",
        "energy distance as a share of the largest", doubts,
    )  # fmt: skip


def _compared(
    own: Tensor, trusted: Tensor, size: int, num_permutations: int, chance: torch.Generator
) -> tuple[float, float, float]:
    """P-value, its error and the distance for one datum; 1 if there is nothing to compare."""
    if size < 2:
        return 1.0, 0.0, 0.0
    some = trusted[torch.randperm(len(trusted), generator=chance)[:size].to(trusted.device)]
    (value, error), distance = stats.energy_test(own, some, num_permutations, generator=chance)
    return float(value), float(error), distance


def _require_draws(draws: TrustedDraws, program: Program, batch: Batch) -> None:
    expected = (len(batch[0]), program.latent_dim)
    if tuple(draws.z.shape[1:]) != expected:
        raise ValueError(
            f"expected draws of these {expected[0]} data with {expected[1]} latents, "
            f"(draws, {expected[0]}, {expected[1]}), got z of shape {tuple(draws.z.shape)}; "
            "pass pv.posterior_draws(model, guide, data)"
        )


@dataclass(frozen=True, repr=False)
class PosteriorCalibration(PValues):
    """P-values, and ranks of simulated latents among the guide's draws, near every datum.

    The statistic is the largest shift of a mean rank from 1/2, as a share.

    Arguments:
        ranks: From 0 to `num_samples`, `(batch, replicates, quantities)`; uniform if the guide is
            calibrated near the datum.
        ess: Effective number of the guide's draws per replicate, `(batch,)`, the median over
            replicates; if it is small, the test has little power.
        names: Names of the quantities: latents by site, then functions of z and y.
        num_samples: Draws of the guide per replicate.
        given: Global sites that the posterior is conditional on, in words; empty if on nothing.
    """

    ranks: Int[Tensor, "batch replicates quantities"] = field(kw_only=True)
    ess: Float64[Tensor, " batch"] = field(kw_only=True)
    names: tuple[str, ...] = field(kw_only=True, metadata={"axis": None})
    num_samples: int = field(kw_only=True)
    given: str = field(kw_only=True, default="")

    def near(self, row: int) -> Calibration:
        """The ranks near one datum, with a verdict of their own."""
        return Calibration(self.ranks[row], self.names, self.num_samples, (), self.given)

    @property
    def pooled(self) -> Calibration:
        """The ranks near all data that can be tested, together; these should be uniform, too."""
        ranks = self.ranks[self.reliable].flatten(0, 1)
        if not len(ranks):
            raise ValueError(f"no datum can be tested ({self.reasons})")
        return Calibration(ranks, self.names, self.num_samples, (), self.given)

    def columns(self) -> dict[str, Tensor]:
        """The columns of the base class, and the effective number of draws."""
        return {**super().columns(), "ess": self.ess}

    def summary(self, control: stats.Control | None = None) -> str:
        """The pooled ranks, and the number of data near which ranks are not uniform."""
        own = (
            f"{super().summary(control)}; {float(self.ess.median()):.0f} of {self.num_samples} "
            "draws of the guide are effective"
        )
        return f"{self.pooled.summary()}\n{own}" if bool(self.reliable.any()) else own

    def plot(self) -> Any:
        """The distribution of the ranks near all data, and its band; needs matplotlib."""
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
    r"""Simulation-based calibration near every datum, conditional on it (posterior SBC).

    .. math:: z^\star \sim p(z \mid y_n), \quad y' \sim p(y \mid z^\star), \quad
        z_1, \ldots, z_L \sim q(z \mid y'), \quad
        u = \sum_{l : t_l < t_\star} \bar w_l + v \, \bar w_\star , \quad w_l = p(y_n \mid z_l)

    This tests whether :math:`q(z \mid y') = p(z \mid y')` for data :math:`y'` drawn from the
    posterior predictive distribution given :math:`y_n`. If so, u is uniform for any number of
    draws. The weights turn the posterior given :math:`y'` into that given :math:`y'` and
    :math:`y_n`; without them u is not uniform even for the exact posterior. The test does not
    concern :math:`q(z \mid y_n)` itself: use :func:`two_sample_test` for that. If few of the
    guide's draws are effective, as with many latents, the test has little power.

    Arguments:
        model: A Pyro program `model(*batch)` with one plate over data, whose observed sites are
            given tensors of the batch or parts of them.
        guide: A :class:`pyro_vae.Guide`, or a guide program written by hand. One that is tied to
            rows is fitted to the replicates.
        data: The batch tensor, or a tuple of them.
        draws: Draws of the posterior of these data, from :func:`pyro_vae.posterior_draws`.
        num_replicates: Data :math:`y'` per datum.
        num_samples: Draws of the guide per replicate, :math:`L`.
        quantities: Functions of z and :math:`y'` that are ranked beside the latents; by default
            :math:`\log p(y' \mid z)` alone (:func:`log_likelihood`).
        given: Values of the latent sites that all data share, by name.
        seed: Seed of everything; the caller's random stream is left alone.
        progress: Whether to show a progress bar; by default on terminals and in notebooks.

    Returns:
        Ranks, and a p-value per datum (Holm, over the quantities). Data with fewer than 4
        effective draws of the posterior per replicate, or with draws that are not reliable, are
        doubted.

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
    functions = {"log p(y | z)": log_likelihood} if quantities is None else dict(quantities)
    proposal = shared_only(guide) if is_tied_to_rows(guide) else guide
    with prepared(model, proposal, data, seed, given) as (program, _, batch):
        _require_draws(draws, program, batch)
        _require_simulable(program)
        truth = _picked(draws.z, num_replicates, seed)
        with forked(seed, "posterior_calibration.data"):
            simulated = replicated(program, truth, batch)
        observed = repeat_rows(batch, num_replicates)
    guide = for_new_rows(guide, simulated, given=given, seed=seed, progress=progress)
    with prepared(model, guide, simulated, seed, given) as (program, posterior, rows):
        ranked = Ranked(program, posterior, rows, functions, num_samples)
        pieces = ranked.weighed(truth.flatten(0, 1), observed, seed, progress=progress)
        shares, ess = _weighted_shares(pieces, seed)
    ranks = (shares * (num_samples + 1)).long().clamp(max=num_samples)
    ranks = ranks.unflatten(0, truth.shape[:2]).transpose(0, 1).cpu()
    p_values, shift = _uniformity(ranks, num_samples)
    few = draws.ess.cpu() < _PER_REPLICATE * num_replicates
    doubts = {d: mask.cpu() for d, mask in draws.doubts.items()} | {Doubt.FEW_EFFECTIVE_DRAWS: few}
    return PosteriorCalibration(
        Estimate(p_values, torch.zeros_like(p_values)), shift,
        "q(z | y') is the posterior of data y' that are made where y was seen",
        "largest shift of a mean rank, as a share", doubts,
        ranks=ranks, ess=ess.unflatten(0, truth.shape[:2]).median(dim=0).values.cpu(),
        names=(*latent_names(program), *functions), num_samples=num_samples,
        given=program.conditions,
    )  # fmt: skip


def _require_simulable(program: Program) -> None:
    if program.structure.enumerated:
        raise ValueError(
            f"the discrete site(s) {list(program.structure.enumerated)} are summed out, so there "
            "are no draws of them to make data from; take simulation_based_calibration, which "
            "draws them from the model"
        )


def _picked(z: Float[Tensor, "draws batch latents"], number: int, seed: int) -> Tensor:
    """A random choice of every datum's draws, without replacement while there are enough."""
    chance = generator(stream(seed, "posterior_calibration.draws"))
    order = torch.cat([
        torch.rand(len(z), z.shape[1], generator=chance).argsort(dim=0)
        for _ in range(-(-number // len(z)))
    ])[:number].to(z.device)  # fmt: skip
    return z[order, torch.arange(z.shape[1], device=z.device)]


def _weighted_shares(pieces: Iterator[tuple[Tensor, Tensor]], seed: int) -> tuple[Tensor, Tensor]:
    """Share of the weight below the first draw, ties broken at random; and effective draws.

    `pieces` are values `(particles, batch, quantities)` and log weights `(particles, batch)`.
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
    uniform = torch.rand(equal.shape, generator=chance, dtype=torch.float64).to(equal.device)
    shares = (below - total[:, None]).exp() + uniform * (equal - total[:, None]).exp()
    return shares, (2 * total - squares).exp()


def _added(log_sum: Tensor, terms: Float[Tensor, "particles *shape"]) -> Tensor:
    return torch.logaddexp(log_sum, terms.logsumexp(dim=0))


def _uniformity(
    ranks: Int[Tensor, "batch replicates quantities"], num_samples: int
) -> tuple[Tensor, Tensor]:
    """P-value of the hypothesis of uniform ranks for every datum, and the largest shift."""
    p_values = [_p_value(own, num_samples) for own in ranks]
    places = (ranks.double() + 0.5) / (num_samples + 1)
    shift = (places.mean(dim=1) - 0.5).abs().amax(dim=-1)
    return torch.tensor(p_values, dtype=torch.float64), shift


def _p_value(ranks: Int[Tensor, "replicates quantities"], num_samples: int) -> float:
    """The smallest one of all quantities, adjusted for their number."""
    values = [stats.rank_p_value(column, num_samples) for column in ranks.T]
    return float(stats.holm(torch.tensor(values, dtype=torch.float64)).min())


@dataclass(frozen=True, repr=False)
class OutOfDistribution(PValues):
    """P-values, and how much a guide's answers differ from those for reference data.

    The statistic is the Mahalanobis distance of the answer.

    Arguments:
        deviations: Deviation of every feature from its mean over reference data, in standard
            deviations, `(batch, features)`.
        names: Names of the features.
    """

    deviations: Float64[Tensor, "batch features"] = field(kw_only=True)
    names: tuple[str, ...] = field(kw_only=True, metadata={"axis": None})

    def unusual(self, row: int, number: int = 3) -> list[tuple[str, float]]:
        """The most unusual features of an answer, with their deviations."""
        order = self.deviations[row].abs().argsort(descending=True)[:number].tolist()
        return [(self.names[place], float(self.deviations[row, place])) for place in order]


def out_of_distribution(
    model: ProgramLike,
    guide: ProgramLike,
    data: Data,
    reference: Data | int = 1000,
    *,
    num_samples: int = 100,
    given: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> OutOfDistribution:
    r"""Tests for every datum whether the guide's answer is like its answers for reference data.

    An encoder may return anything for data unlike those that it was trained on. The features f of
    its answer are the means and log standard deviations of all latents, the rate, the distortion,
    and the log spread of the log weights. Their mean m and covariance S come from one half of the
    reference data; the distance of a datum is ranked among those of the other half:

    .. math:: d_n^2 = (f_n - m)^\top S^{-1} (f_n - m), \qquad
        \hat p_n = \frac{1 + \#\{r : d_r \ge d_n\}}{R / 2 + 1}

    P-values are exact for a datum that is exchangeable with the reference, whatever the guide. If
    the reference is simulated from the model, a rejected datum is one that the model does not
    produce, or that the guide was not trained for: do not use the guide alone for it, and check the
    model. If the reference is held-out data, a rejected datum is unlike these. A datum that passes
    may still have a poor posterior, as may all of the reference; importance weights reveal that.

    Arguments:
        model: A Pyro program `model(*batch)` with one plate over data.
        guide: A :class:`pyro_vae.Guide`, or a guide program written by hand.
        data: The batch tensor, or a tuple of them.
        reference: Held-out data; or the number of data to simulate from the model, at least 20
            (with the covariates and missing entries of `data`, row by row in turn).
        num_samples: Draws of the guide per datum, at least 2.
        given: Values of the latent sites that all data share, by name.
        seed: Seed of everything; the caller's random stream is left alone.
        progress: Whether to show a progress bar; by default on terminals and in notebooks.

    Returns:
        A p-value and a distance per datum, and the features that are unusual.

    Raises:
        ValueError: If there are fewer than 20 reference data, or the program cannot be simulated.

    References:
        | Detecting Model Misspecification in Amortized Bayesian Inference with Neural Networks
          (Schmitt et al., 2024)
        | https://arxiv.org/abs/2112.08866
        | An Amortized Bayesian Workflow (Schmitt et al., 2024)
        | https://arxiv.org/abs/2409.04332

    Example:
        >>> import pyro_vae as pv
        >>> model = pv.models.VAE(torch.nn.Linear(1, 3), pv.likelihoods.Gaussian(), latent_dim=1)
        >>> guide = pv.Guide(model, pv.Encoder(torch.nn.Linear(3, 2)))
        >>> y = torch.cat([model.sample(9, seed=1), 50 * torch.ones(1, 3)])
        >>> result = out_of_distribution(model, guide, y, reference=100)
        >>> int(result.statistic.argmax()), bool(result.value[9] < 0.02)
        (9, True)
    """
    batch = as_batch(data, device_of(model, guide))
    held = _reference(model, guide, batch, reference, given, seed)
    if len(held[0]) < _FEWEST_DRAWS:
        raise ValueError(f"expected at least 20 reference data, got {len(held[0])}")
    estimator = ImportanceSampling(num_samples)

    def answers(rows: Batch, name: str) -> tuple[Tensor, tuple[str, ...]]:
        own = for_new_rows(guide, rows, given=given, seed=seed, progress=progress)
        with prepared(model, own, rows, seed, given) as inference:
            blocks = estimator.blocks(inference, seed=stream(seed, name), progress=progress)
            parts = [_features(block) for block in blocks]
        return torch.cat(parts), _feature_names(inference.program)

    known, names = answers(held, "out_of_distribution.reference")
    features, _ = answers(batch, "out_of_distribution.data")
    fitted, ranked = known[::2], known[1::2]
    distances = _distances(fitted, ranked)
    own = _distances(fitted, features)
    p_value = stats.tail_probability(own, distances[:, None].expand(-1, len(own)))
    return OutOfDistribution(
        p_value, own, "the guide's answer is like those for reference data",
        "Mahalanobis distance of the answer",
        deviations=_standardized(fitted, features), names=names,
    )  # fmt: skip


def _reference(
    model: ProgramLike,
    guide: ProgramLike,
    batch: Batch,
    reference: Data | int,
    given: Mapping[str, Tensor] | None,
    seed: int,
) -> Batch:
    """Held-out data, or simulated ones."""
    if not isinstance(reference, int):
        return as_batch(reference, device_of(model, guide))
    asked = shared_only(guide) if is_tied_to_rows(guide) else guide
    with prepared(model, asked, in_turn(batch, reference), seed, given) as (program, _, rows):
        return simulate(program, rows, stream(seed, "out_of_distribution.simulated"))[1]


def _features(block: Block) -> Float64[Tensor, "rows features"]:
    """Features that describe the guide's posterior for each row."""
    z, weights = block.z.double(), block.weights
    spread = z.std(dim=0)
    parts = [
        z.mean(dim=0),
        spread.clamp(min=torch.finfo(spread.dtype).tiny).log(),
        (weights.log_guide - weights.log_prior).mean(dim=0)[:, None],
        -weights.log_likelihood.mean(dim=0)[:, None],
        weights.log_weights.std(dim=0).clamp(min=_SLIGHT).log()[:, None],
    ]
    return torch.cat(parts, dim=1).cpu()


def _feature_names(program: Program) -> tuple[str, ...]:
    latents = latent_names(program)
    return (
        *(f"mean of {name}" for name in latents),
        *(f"log sd of {name}" for name in latents),
        *("rate", "distortion", "log spread of log weights"),
    )


def _standardized(fitted: Tensor, features: Tensor) -> Tensor:
    mean, spread = fitted.mean(dim=0), fitted.std(dim=0)
    # What is the same for all reference data has no unit; any other value is far out.
    smallest = torch.finfo(spread.dtype).eps ** 0.5 * (1 + mean.abs())
    return (features - mean) / spread.maximum(smallest)


def _distances(fitted: Tensor, features: Tensor) -> Float64[Tensor, " rows"]:
    """Mahalanobis distances; infinite for an answer that is not finite."""
    own = _standardized(fitted, fitted)
    values, vectors = torch.linalg.eigh(own.T @ own / len(own))
    turned = _standardized(fitted, features) @ vectors
    distances = (turned.square() / values.clamp(min=_FLOOR)).sum(dim=1).sqrt()
    return distances.nan_to_num(nan=torch.inf)
