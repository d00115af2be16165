"""Margins and conditionals of features: closed forms, and twins that forget to condition."""

from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal

import pyro_vae as pv
from pyro_vae.evidence import Bound, LogMarginal
from pyro_vae.queries import conditional, conditional_density, marginal
from tests.helpers.queries import FACTORS, guide, program, vae, with_holes
from tests.helpers.queries import conditional as exact_conditional
from tests.helpers.statistics import FALSE_ALARM, assert_mean

pytestmark = pytest.mark.usefixtures("float64")

NAMES = ["a", "b", "c", "d", "e"]
METHOD = pv.ImportanceSampling(2000, proposal=pv.Widened(2.0))  # the guide is mean-field


def log_p(y: Tensor, columns: list[int]) -> Tensor:
    """Exact log density of some columns."""
    covariance = FACTORS.marginal.covariance_matrix[columns][:, columns]
    value: Tensor = MultivariateNormal(FACTORS.mean[columns], covariance).log_prob(y[:, columns])
    return value


def assert_within(result: LogMarginal, exact: Tensor) -> None:
    """Every value within its errors; a false alarm once in a million, errors being Gaussian."""
    z = ((result.value - exact) / result.error).abs().max()
    allowed = stats.norm.isf(FALSE_ALARM / 2 / len(exact))
    assert float(z) < allowed, f"|z| = {float(z):.1f} > {allowed:.1f}"


@pytest.mark.parametrize("model", [program, vae()], ids=["program", "vae"])
@pytest.mark.parametrize("columns", [[0], [1, 3], [0, 1, 2, 3, 4]], ids=str)
def test_margins(model: Any, columns: list[int], seed: int) -> None:
    """Of any columns, with what the guide knows of holes."""
    y = FACTORS.sample(20)
    result = marginal(model, guide(model), y, columns, METHOD, seed=seed)
    assert_within(result, log_p(y, columns))
    by_name = marginal(
        model, guide(model), y, [NAMES[c] for c in columns], METHOD, names=NAMES, seed=seed
    )
    torch.testing.assert_close(by_name.value, result.value)


def test_margins_have_holes_of_their_own(seed: int) -> None:
    """An entry that is missing in the data leaves the density."""
    y = FACTORS.sample(15)
    y[:, 2] = torch.nan
    result = marginal(program, guide(program), y, [1, 2], METHOD, seed=seed)
    assert_within(result, log_p(y, [1]))


def test_no_guide_is_needed(seed: int) -> None:
    """Every row is then fitted."""
    y = FACTORS.sample(8)
    assert_within(marginal(vae(), None, y, [0, 4], seed=seed), log_p(y, [0, 4]))


@pytest.mark.parametrize("on", [[2], [3, 4], None], ids=str)
def test_conditionals(on: list[int] | None, seed: int) -> None:
    """Ratios of two margins; the margin itself is off by many errors."""
    y = FACTORS.sample(20)
    given = [2, 3, 4] if on is None else on
    exact = log_p(y, [0, 1, *given]) - log_p(y, given)
    result = conditional(program, guide(program), y, [0, 1], on, METHOD, seed=seed)
    assert_within(result, exact)
    assert result.bound is Bound.TWO_SIDED
    assert int(result.num_samples[0]) == 4000
    forgets = marginal(program, guide(program), y, [0, 1], METHOD, seed=seed)
    with pytest.raises(AssertionError):
        assert_within(forgets, exact)


def test_conditionals_chain(seed: int) -> None:
    """The chain rule: log p(a, b) = log p(a | b) + log p(b), for exact evidence to rounding."""
    y = FACTORS.sample(5)
    grid = pv.Quadrature()
    left = marginal(program, guide(program), y, [0, 1], grid)
    right = conditional(program, guide(program), y, [0], [1], grid)
    last = marginal(program, guide(program), y, [1], grid)
    torch.testing.assert_close(left.value, right.value + last.value)
    torch.testing.assert_close(left.value, log_p(y, [0, 1]), atol=1e-3, rtol=0)


def test_conditions_that_are_missing(seed: int) -> None:
    """A row without any condition has the margin; one with some has those."""
    y = FACTORS.sample(3)
    y[0, 1:] = torch.nan
    y[1, 2] = torch.nan
    result = conditional(program, guide(program), y, [0], None, METHOD, seed=seed)
    exact = torch.stack(
        [
            log_p(y[:1], [0])[0],
            (log_p(y[1:2], [0, 1, 3, 4]) - log_p(y[1:2], [1, 3, 4]))[0],
            (log_p(y[2:], [0, 1, 2, 3, 4]) - log_p(y[2:], [1, 2, 3, 4]))[0],
        ]
    )
    assert_within(result, exact)
    alone = conditional(program, guide(program), y[:1], [0], None, METHOD, seed=seed)
    assert_within(alone, exact[:1])


@pytest.mark.parametrize("model", [program, vae()], ids=["program", "vae"])
def test_curves(model: Any, seed: int) -> None:
    """The density of one feature given the others is the closed form's at every point."""
    _, y = with_holes(4)
    y[:, 0] = torch.randn(4)
    y[:, 2] = 99.0  # not looked at
    grid = torch.linspace(-3.0, 7.0, 41)
    curve = conditional_density(model, guide(model), y, 2, grid, seed=seed)
    assert int(curve.reliable.sum()) >= 3  # the draws of one row may look bad
    y[:, 2] = torch.nan
    rows = [exact_conditional(row) for row in y]
    exact = torch.stack([Normal(m[2], v[2, 2].sqrt()).log_prob(grid).exp() for m, v in rows])
    value, error = curve.density
    seen = exact > 1e-2  # farther out a few draws make the density, and errors are not Gaussian
    z = ((value - exact) / error)[seen].abs().max()
    assert float(z) < stats.norm.isf(FALSE_ALARM / 2 / int(seen.sum()))
    plain = Normal(FACTORS.mean[2], FACTORS.marginal.covariance_matrix[2, 2].sqrt())
    twin = (plain.log_prob(grid).exp() - exact) / error  # does not condition
    assert float(twin[seen].abs().max()) > 20


def test_curves_of_their_own_range() -> None:
    """A grid that nobody chose holds all but a little of the mass."""
    y = FACTORS.sample(3)
    curve = conditional_density(vae(), None, y, "b", names=NAMES)
    mass = torch.trapezoid(curve.density.value, curve.grid)
    torch.testing.assert_close(mass, torch.ones(3), atol=2e-3, rtol=0)
    assert curve.column == "b"
    assert not curve.is_discrete


@pytest.mark.slow
def test_curves_are_unbiased_under_repetition() -> None:
    """Errors are the spread over seeds, to within a third."""
    y = FACTORS.sample(1)
    grid = torch.tensor([1.0, 2.0])
    runs = [
        conditional_density(program, guide(program), y, 2, grid, estimator=METHOD, seed=s)
        for s in range(40)
    ]
    values = torch.stack([run.density.value[0] for run in runs])
    errors = torch.stack([run.density.error[0] for run in runs])
    mean, covariance = exact_conditional(y[0].index_fill(0, torch.tensor(2), torch.nan))
    assert_mean(values, Normal(mean[2], covariance[2, 2].sqrt()).log_prob(grid).exp())
    ratio = errors.square().mean(dim=0) / values.var(dim=0)
    low, high = stats.f.ppf([FALSE_ALARM / 4, 1 - FALSE_ALARM / 4], 10_000, 39)
    assert bool(((ratio > low) & (ratio < high)).all())


def test_curves_of_zeros_and_ones(seed: int) -> None:
    """Whole draws make a grid of whole numbers, whose probabilities add up to one exactly."""
    model = pv.models.VAE(nn.Linear(2, 4), pv.likelihoods.Bernoulli(), latent_dim=2)
    curve = conditional_density(model, None, model.sample(3, seed=1), 0, seed=seed)
    assert curve.grid.tolist() == [0.0, 1.0]
    assert curve.is_discrete
    torch.testing.assert_close(curve.density.value.sum(dim=1), torch.ones(3))


def test_curves_of_many_counts(seed: int) -> None:
    """Only some of many whole numbers are evaluated, and none below 0."""
    net = nn.Linear(1, 2)
    nn.init.constant_(net.weight, 2.0)
    nn.init.constant_(net.bias, 3.0)
    model = pv.models.VAE(net, pv.likelihoods.Poisson(), latent_dim=1)
    y = torch.full((1, 2), 20.0)
    curve = conditional_density(model, None, model.sample(50, seed=1), 0, seed=seed)
    assert curve.is_discrete
    assert 150 < len(curve.grid) <= 201
    assert float(curve.grid.min()) >= 0
    assert bool((curve.grid == curve.grid.round()).all())
    assert conditional_density(model, None, y, 0, torch.arange(3.0), seed=seed).is_discrete


def test_a_grid_of_whole_numbers_makes_no_probabilities() -> None:
    """The feature decides what its densities are."""
    curve = conditional_density(vae(), guide(vae()), FACTORS.sample(1), 0, torch.arange(3.0))
    assert not curve.is_discrete
    assert curve.summary().startswith("density of")


@pytest.mark.parametrize(
    ("columns", "names", "message"),
    [
        ([], None, "at least one"),
        ([5], None, "from 0 to 4"),
        (["a"], None, "pass the columns' `names`"),
        (["z"], NAMES, r"column 'z' is unknown: choose from .*'a', 'b'"),
        (["a"], ["a", "a", "b", "c", "d"], "of which 4 are different"),
        (["a"], ["a"], "must be 5 different names"),
    ],
)
def test_bad_columns(columns: Any, names: Any, message: str) -> None:
    """In words."""
    with pytest.raises(ValueError, match=message):
        marginal(vae(), None, FACTORS.sample(2), columns, names=names)


def test_a_table_of_rows_is_as_no_guide(seed: int) -> None:
    """Its rows were fitted to all entries, and it has none for a part of the data."""
    y = FACTORS.sample(3)
    model = vae()
    own = pv.Guide(model, pv.LocalParameters(3), example=y)
    for asked in (
        lambda guide: marginal(model, guide, y, [0], seed=seed).value,
        lambda guide: conditional(model, guide, y[:2], [0], on=[1], seed=seed).value,
        lambda guide: conditional_density(model, guide, y, 1, seed=seed).density.value,
    ):
        torch.testing.assert_close(asked(own), asked(None), rtol=0, atol=0)


def test_bad_conditions() -> None:
    """A feature given itself, and the density of what is missing."""
    y = FACTORS.sample(2)
    with pytest.raises(ValueError, match="in both `columns` and `on`"):
        conditional(vae(), None, y, [0], [0, 1])
    y[1, 0] = torch.nan
    with pytest.raises(ValueError, match=r"in 1 of \d+ rows, the first at row 1"):
        conditional(vae(), None, y, [0], [1])
    with pytest.raises(ValueError, match="no entry is observed in"):
        marginal(vae(), None, y, [0])  # the second row has nothing of it


def test_a_curve_needs_another_entry() -> None:
    """The column itself is not seen: a row without any other entry is named, with that reason."""
    y = FACTORS.sample(3)
    y[1, 1:] = torch.nan
    with pytest.raises(
        ValueError, match="no entry besides a is observed in 1 of 3 rows, the first"
    ):
        conditional_density(program, None, y, "a", names=NAMES)


@pytest.mark.parametrize("by_hand", [False, True], ids=["vae", "program"])
def test_columns_of_a_model_of_missingness_are_refused(*, by_hand: bool) -> None:
    """Leaving a column out would say something about its values; a plain likelihood answers."""

    def by_columns(features: pv.likelihoods.Likelihood) -> None:
        model = pv.models.VAE(torch.nn.Linear(1, 3), features, latent_dim=1)

        def of_ones_own(y: Tensor) -> None:
            model(y)

        one = of_ones_own if by_hand else model
        few, y = pv.ImportanceSampling(50), torch.zeros(2, 3)
        for call in (
            lambda: pv.queries.conditional_density(one, None, y, 1, estimator=few),
            lambda: marginal(one, None, y, [1], few),
            lambda: conditional(one, None, y, [1], [0], few),
        ):
            if isinstance(features, pv.likelihoods.SelfMasking):
                with pytest.raises(TypeError, match="Train a model without SelfMasking"):
                    call()
            else:
                call()

    by_columns(pv.likelihoods.SelfMasking(pv.likelihoods.Gaussian(), (3,)))
    by_columns(pv.likelihoods.Gaussian())
