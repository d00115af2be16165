"""P-values per datum, and a test of a guide's draws for the data at hand.

The test in this module is a two-sample test: draws of q(z | y_n) are compared with trusted draws of
the posterior. Other modules test whether the guide is calibrated near a datum
(:mod:`pyro_vae.diagnostics.posterior_sbc`), and whether a datum is unlike reference data
(:mod:`pyro_vae.diagnostics.distribution_shift`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from jaxtyping import Float64
from torch import Tensor

from .. import stats
from .._types import Batch, Data, Estimate, ProgramLike
from ..evidence.weights import conditioned, draw_rows
from ..formatting import count_of
from ..programs import Program
from ..randomness import generator, row_keys, stream
from ..results import Doubt, Doubts, PerDatum, with_errors

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PER_DRAW = 20.0  # ESS for each draw used; repeated draws then widen the null by at most 5%
FEWEST_DRAWS = 20  # with fewer draws, not even a shift by one standard deviation is detected


@runtime_checkable
class TrustedDraws(Protocol):
    """Draws of every datum's posterior, as returned by :func:`pyro_vae.posterior_draws`."""

    @property
    def z(self) -> Tensor:
        """Flat unconstrained latents, `(draws, batch, latents)`."""

    @property
    def ess(self) -> Tensor:
        """Effective number of draws, `(batch,)`."""

    @property
    def doubts(self) -> Doubts:
        """Masks of the data whose draws cannot be trusted, one mask per reason."""


@runtime_checkable
class _Conditional(Protocol):
    """Draws with a text `given`, which names the global sites on which they are conditional."""

    @property
    def given(self) -> str: ...


def doubts_of_draws(draws: TrustedDraws) -> Doubts:
    """Returns the doubts about draws, except the doubts about their standard deviations.

    No test that uses these draws depends on standard deviations.
    """
    return {doubt: mask for doubt, mask in draws.doubts.items() if doubt is not Doubt.SD_TAIL}


@dataclass(frozen=True, repr=False)
class PValues(PerDatum):
    """P-values of one hypothesis, one per datum.

    Arguments:
        p_value: The p-value, with the Monte Carlo error from the finite number of permutations or
            reference data.
        statistic: The statistic from which the p-value was computed, `(batch,)`.
        hypothesis: The hypothesis that is tested, in words.
        measure: Name of the statistic.
        doubts: Masks of the data that cannot be tested, one mask per reason.
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
        """Returns a mask of the rejected data. Data that cannot be tested are never rejected.

        Arguments:
            control: :class:`pyro_vae.stats.FalseDiscoveries` at 5% by default, or
                :class:`pyro_vae.stats.FalseAlarms`.
        """
        rejected, tested = torch.zeros_like(self.reliable), self.reliable
        rejected[tested] = (control or stats.FalseDiscoveries())(self.value[tested])
        return rejected

    def columns(self) -> dict[str, Tensor]:
        """Returns p-values with errors, the statistic, and the rejections, by name."""
        columns = {"statistic": self.statistic, "rejected": self.rejected()}
        return with_errors({"p_value": self.p_value}) | columns

    def summary(self, control: stats.Control | None = None) -> str:
        """States for how many data the hypothesis is rejected, and how many cannot be tested."""
        control = control or stats.FalseDiscoveries()
        bad = int((~self.reliable).sum())
        untested = f"; {count_of(bad, 'datum')} cannot be tested ({self.reasons})" if bad else ""
        size, tested = "", self.statistic[self.reliable]
        if len(tested):
            median, largest = float(tested.median()), float(tested.max())
            size = f"; {self.measure}: median {median:.3g}, largest {largest:.3g}"
        return (
            f"{self.hypothesis}: rejected for {int(self.rejected(control).sum())} of "
            f"{count_of(len(self), 'datum')} at {control}{size}{untested}"
        )

    def plot(self) -> "Axes":
        """Plots the p-values, lowest first; needs matplotlib."""
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
    r"""Tests whether the guide's draws for each datum could be draws of the datum's posterior.

    .. math:: H_n : q(z \mid y_n) = p(z \mid y_n)

    The test uses the energy distance between two samples and permutations of their labels (see
    :func:`pyro_vae.stats.energy_test`). Unlike importance weights, the test can detect a region of
    the posterior that the guide never visits, provided that `draws` visit it. Draws from importance
    sampling or Markov chains are not independent. To keep its level, the test uses only as many
    posterior draws as the effective sample size divided by 20 (and at most `num_samples`). With
    enough draws, even a guide that is good enough for its purpose is rejected: the statistic shows
    how large the difference is, and `draws.value` and `draws.scale` show which moments differ.

    Arguments:
        model: A Pyro program `model(*batch)` with one plate over data.
        guide: A :class:`pyro_vae.Guide`, or a guide program written by hand.
        data: The batch tensor, or a tuple of tensors.
        draws: Draws of the posterior of these data, from :func:`pyro_vae.posterior_draws`.
        num_samples: Draws of the guide per datum, and limit on the posterior draws that are used.
        num_permutations: Permutations per datum.
        given: Values of the latent sites that all data share, by name.
        seed: Seed of the guide's draws and of the permutations; the caller's random stream is left
            alone.

    Returns:
        A p-value per datum, with the energy distance divided by its largest possible value. Data
        with fewer than 20 posterior draws to use (an ESS below 400), or with draws that are not
        reliable, cannot be tested.

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
    with conditioned(model, guide, data, seed, given) as (program, posterior, batch):
        require_draws(draws, program, batch)
        keys = row_keys(seed, "two_sample.guide", *batch)
        own, _ = draw_rows(posterior, 0, keys, num_samples)
    sizes = (draws.ess / _PER_DRAW).clamp(max=min(num_samples, len(draws.z))).long()
    chance = generator(stream(seed, "two_sample.permutations"))
    pairs = [
        _compared(own[:, row], draws.z[:, row], size, num_permutations, chance)
        for row, size in enumerate(sizes.tolist())
    ]
    value, error, distance = torch.tensor(pairs, dtype=torch.float64, device=own.device).T
    doubts = {**doubts_of_draws(draws), Doubt.FEW_EFFECTIVE_DRAWS: sizes < FEWEST_DRAWS}
    return PValues(
        Estimate(value, error), distance, "q(z | y) is the posterior",
        "energy distance relative to its maximum", doubts,
    )  # fmt: skip


def _compared(
    own: Tensor, trusted: Tensor, size: int, num_permutations: int, chance: torch.Generator
) -> tuple[float, float, float]:
    """Compares the guide's draws for one datum with `size` of the trusted draws.

    Returns the p-value, its error, and the energy distance; the p-value is 1 if `size` is below 2.
    """
    if size < 2:
        return 1.0, 0.0, 0.0
    order = torch.randperm(len(trusted), generator=chance, device="cpu")
    some = trusted[order[:size].to(trusted.device)]
    (value, error), distance = stats.energy_test(own, some, num_permutations, generator=chance)
    return float(value), float(error), distance


def require_draws(draws: TrustedDraws, program: Program, batch: Batch) -> None:
    """Refuses draws whose shape or conditions (`given`) differ from those of the program."""
    expected = (len(batch[0]), program.latent_dim)
    if tuple(draws.z.shape[1:]) != expected:
        raise ValueError(
            f"`draws.z` must have the shape (draws, {expected[0]}, {expected[1]}), for "
            f"{count_of(expected[0], 'datum')} with {count_of(expected[1], 'latent')}; got "
            f"{tuple(draws.z.shape)}: pass pv.posterior_draws(model, guide, data)"
        )
    if isinstance(draws, _Conditional) and draws.given != program.conditions:
        conditions = (draws.given, program.conditions)
        theirs, ours = (each or "conditional on nothing" for each in conditions)
        raise ValueError(
            f"`draws` are {theirs}, but the test is {ours}: pass the same `given` to "
            "pv.posterior_draws and to the test"
        )
