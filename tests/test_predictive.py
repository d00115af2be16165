"""Predictive checks: exact p-values for data of the model, extreme ones for others, and figures."""

import math
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.diagnostics import default_statistics
from pyro_vae.diagnostics.predictive import (
    Latents,
    PredictiveCheck,
    predictive_check,
)
from pyro_vae.guides.entry import draw_globals
from pyro_vae.plots.checks import plot_predictive_check
from pyro_vae.programs import Program
from pyro_vae.stats import tail_probability
from tests.helpers.factor_analysis import exact_guide, model_of, prior_guide
from tests.helpers.shared_sites import SIGMA, population
from tests.helpers.statistics import FACTS, FactorAnalysis, assert_coverage, assert_mean

pytestmark = pytest.mark.usefixtures("float64")

TIGHT = FactorAnalysis(FACTS.loadings, FACTS.mean, FACTS.noise_variance / 4)


def check(facts: FactorAnalysis, y: Tensor, **asked: object) -> PredictiveCheck:
    """Data against a factor analysis."""
    return predictive_check(model_of(facts), None, y, **asked)  # type: ignore[arg-type]


# Numbers -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_p_values_are_exact(seed: int) -> None:
    """Data of the model: each statistic is below 0.1 in one data set of ten, ties or none."""
    repeats, number = 240, 12
    data = FACTS.sample(repeats * number).view(repeats, number, 4)
    results = [
        check(FACTS, y, num_samples=39, seed=seed + place) for place, y in enumerate(data.unbind())
    ]
    p_values = torch.stack([result.p_values.value for result in results])
    assert results[0].names == (
        "mean", "sd", "smallest", "largest",
        "means of features (largest deviation, sd)", "sds of features (largest deviation, sd)",
    )  # fmt: skip
    for column in p_values.T:  # 4 of 40 ranks are at the ends: 0.1, exactly
        assert_coverage(column > 0.1001, 0.9)
    rejected = torch.tensor([bool((result.adjusted <= 0.3).any()) for result in results])
    assert rejected.double().mean() < 0.3 + 5 * (0.3 * 0.7 / repeats) ** 0.5


@pytest.mark.slow
def test_a_wrong_model_is_caught(seed: int) -> None:
    """Noise half as wide as that of the data: their spread is beyond all replicates."""
    y = FACTS.sample(2000)  # nine standard errors of the spread
    right, wrong = (check(facts, y, num_samples=400, seed=seed) for facts in (FACTS, TIGHT))
    place = wrong.names.index("sd")
    assert float(wrong.p_values.value[place]) == pytest.approx(2 / 401)
    assert float(wrong.adjusted.min()) < 0.05
    assert "do not look like data sets of the model, p(y)" in wrong.verdict()
    assert "sd = " in wrong.verdict()
    assert "above 100.0% of replicates" in wrong.verdict()
    assert float(right.adjusted.min()) > 1e-6
    assert right.verdict(1e-9).endswith("pass `num_samples=12000000000`")
    assert len(wrong.summary().splitlines()) == len(wrong.names) + 1


def test_latents_of_the_guide_are_optimistic(seed: int) -> None:
    """The model's prior of z is too narrow; latents of the guide make up for it, and it says so."""
    narrow = FactorAnalysis(FACTS.loadings / 3, FACTS.mean, FACTS.noise_variance)
    y = FACTS.sample(100) * torch.tensor([1.2, 1.2, 1.0, 1.2])
    guide = exact_guide(FACTS)
    by_prior = predictive_check(model_of(narrow), guide, y, num_samples=200, seed=seed)

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1 / 3).to_event(1))
            loc = z @ FACTS.loadings.T
            pyro.sample("y", dist.Normal(loc, FACTS.noise_variance.sqrt()).to_event(1), obs=y)

    results = {
        latents: predictive_check(model, guide, y, num_samples=200, latents=latents, seed=seed)
        for latents in Latents
    }
    place = by_prior.names.index("sd")
    ratio = [float(r.observed[place] / r.replicated[:, place].mean()) for r in results.values()]
    assert ratio[0] > 1.3  # the model falls short by that much
    assert abs(ratio[1] - 1) < 0.2
    assert float(results[Latents.PRIOR].adjusted.min()) < 0.05
    assert "the guide's latents" in results[Latents.GUIDE].verdict()
    easy = predictive_check(
        model,
        guide,
        y,
        {"size": lambda batch: batch[0].mean()},
        num_samples=50,
        latents=Latents.GUIDE,
    )
    assert "this check is optimistic" in easy.verdict(1e-9)


def test_error_of_a_p_value() -> None:
    """It is the spread over draws around the share that infinitely many would give."""
    repeats, draws, truth = 2000, 400, 0.2
    uniform = torch.rand(repeats, draws)
    value, error = tail_probability(torch.full((repeats,), 1 - truth), uniform.T)
    assert_mean((draws + 1) * value - 1, draws * truth)
    assert_mean((draws * (value - truth) - (1 - truth)).square() / draws**2 - error**2, -3e-6)
    with pytest.raises(AssertionError, match="resolution"):
        assert_mean((value - truth).square() - (error / 2) ** 2, 0.0)


def test_two_sided_p_values_count_ties() -> None:
    """All equal: nothing speaks against the model."""
    ties = tail_probability(torch.tensor(1.0), torch.ones(9), two_sided=True)
    assert float(ties.value) == 1.0
    low = tail_probability(torch.tensor(-1.0), torch.arange(9.0), two_sided=True)
    assert float(low.value) == pytest.approx(0.2)


def test_statistics_are_those_of_the_data() -> None:
    """By hand; zeros count, and a datum of one number has no features."""
    y = torch.tensor([[0.0, 1.0], [0.0, 5.0]])
    values: dict[str, Any] = {
        name: f((y,)).tolist() for name, f in default_statistics((y,)).items()
    }
    assert (values["mean"], values["largest"], values["share of zeros"]) == (1.5, 5.0, 0.5)
    assert values["means of features"] == [0.0, 3.0]
    assert set(default_statistics((y[:, 0],))) == {
        "mean", "sd", "smallest", "largest", "share of zeros",
    }  # fmt: skip


def test_features_without_entries_are_left_out() -> None:
    """A feature has a mean from one entry on, and a standard deviation from two on."""
    y = torch.tensor([[0.0, 1.0, torch.nan], [2.0, torch.nan, torch.nan]])
    values: dict[str, Any] = {
        name: f((y,)).tolist() for name, f in default_statistics((y,)).items()
    }
    assert values["means of features"] == [1.0, 1.0]
    assert values["sds of features"] == pytest.approx([2**0.5])
    alone = default_statistics((y[:, 2:].expand(2, 2),))
    assert not {"means of features", "sds of features"} & set(alone)


def test_what_few_replicates_can_reject() -> None:
    """P-values of vectors are one-sided, so half of the replicates suffice for them."""
    y, model = FACTS.sample(20), model_of(FACTS)

    def said(kind: str, number: int) -> str:
        own = {
            "number": {"a": lambda batch: batch[0].mean()},
            "vector": {"a": lambda batch: batch[0].mean(0)},
        }[kind]
        return predictive_check(model, None, y, own, num_samples=number).verdict(0.2)

    assert "with 4 replicates, nothing can be rejected: pass `num_samples=10`" in said("vector", 4)
    assert "5 replicates, only largest deviations can be rejected" in said("vector", 5)
    assert "with 9 replicates, nothing can be rejected" in said("number", 9)
    for kind in ("number", "vector"):
        assert "can be rejected" not in said(kind, 10)


def test_own_statistics_and_vectors(seed: int) -> None:
    """Functions of the data set; of a vector the entry that is furthest off counts."""
    y = FACTS.sample(50) + torch.tensor([0.0, 0.0, 5.0, 0.0])
    own = {"third": lambda batch: batch[0][:, 2].mean(), "each": lambda batch: batch[0].mean(0)}
    result = predictive_check(model_of(FACTS), None, y, own, num_samples=100, seed=seed)
    assert result.names == ("third", "each (largest deviation, sd)")
    assert result.p_values.value.tolist() == pytest.approx([2 / 101, 1 / 101])
    assert float(result.observed[0]) == pytest.approx(float(y[:, 2].mean()))
    assert result.replicated.shape == (100, 2)


# Programs ----------------------------------------------------------------------------------------


def exposed(y: Tensor, exposure: Tensor) -> None:
    """Counts in proportion to a covariate, in a plate of their own left of that over data."""
    with pyro.plate("data", len(y), dim=-1):
        rate = pyro.sample("rate", dist.Gamma(4.0, 1.0))
        with pyro.plate("times", 3, dim=-2):
            pyro.sample("count", dist.Poisson(rate * exposure), obs=y.T)


def test_covariates_stay(seed: int) -> None:
    """The replicates have the exposure of the data, by datum; and the statistic sees it."""
    exposure = torch.tensor([0.1, 10.0]).repeat(30)
    y = torch.poisson(4 * exposure[:, None].expand(60, 3))
    low = {"low": lambda b: b[0][b[1] < 1].mean(), "high": lambda b: b[0][b[1] > 1].mean()}
    result = predictive_check(exposed, None, (y, exposure), low, num_samples=400, seed=seed)
    assert_mean(result.replicated, torch.tensor([0.4, 40.0]))
    names = predictive_check(exposed, None, (y, exposure), num_samples=10).names
    assert "mean" in names  # of the counts alone: no other tensor is observed
    assert "share of zeros" in names
    assert not any("tensor" in name for name in names)


def population_guide(y: Tensor) -> None:
    """The exact posterior, by hand, of data whose mean is 1."""
    mean = pyro.sample("mean", dist.Normal(1.0, 0.3))
    precision = 1 + 1 / SIGMA**2
    with pyro.plate("data", len(y)):
        pyro.sample("z", dist.Normal((mean + y / SIGMA**2) / precision, precision**-0.5))


@pytest.mark.parametrize("latents", list(Latents))
def test_shared_latents_are_drawn_for_every_data_set(latents: Latents, seed: int) -> None:
    """The mean of a replicate varies with the shared mean, too; not where its value is given."""
    y = 1 + torch.randn(20) * math.sqrt(1 + SIGMA**2)
    average = {"average": lambda batch: batch[0].mean()}
    drawn, fixed = (
        predictive_check(
            population, population_guide, y, average,
            num_samples=200, latents=latents, given=given, seed=seed,
        )
        for given in (None, {"mean": torch.tensor(1.0)})
    )  # fmt: skip
    pull = 1 / (1 + 1 / SIGMA**2)  # of the shared mean on the mean of z, given y
    own = (1 + SIGMA**2) if latents is Latents.PRIOR else pull + SIGMA**2
    reach = 1.0 if latents is Latents.PRIOR else pull
    centre = 1.0 if latents is Latents.PRIOR else pull + (1 - pull) * float(y.mean())
    for result, variance in ((drawn, own / 20 + (0.3 * reach) ** 2), (fixed, own / 20)):
        assert_mean(result.replicated, centre)
        assert_mean((result.replicated - centre).square(), variance)
    assert "draws of their posterior" in drawn.given
    assert "given values" in fixed.given


@pytest.mark.parametrize("own", [True, False], ids=["ours", "by hand"])
def test_shared_draws_have_their_density(*, own: bool) -> None:
    """In the unit of the site, be the guide ours or written by hand."""

    def model(y: Tensor) -> None:
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, scale))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    def by_hand(y: Tensor) -> None:
        pyro.sample("scale", dist.LogNormal(0.3, 0.2))
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(y, 1.0))

    y = torch.randn(4)
    ours = pv.Guide(model, pv.GlobalParameters(), example=y)
    draws = draw_globals(Program(model, y), ours if own else by_hand, (y,), 20, seed=0)
    values = torch.stack([draw.values["scale"].reshape(()) for draw in draws])
    if own:
        assert ours.shared is not None
        expected = ours.shared.distribution().log_prob(values.log()[:, None]) - values.log()
    else:
        expected = dist.LogNormal(0.3, 0.2).log_prob(values)
    torch.testing.assert_close(torch.stack([draw.log_guide for draw in draws]), expected)
    assert len(values.unique()) == 20


def test_a_guide_of_ours_and_of_a_table() -> None:
    """A table has no rows for these data; none are needed for latents from the prior."""
    model = pv.models.VAE(nn.Linear(2, 3), pv.likelihoods.Bernoulli(), latent_dim=2)
    y = torch.bernoulli(torch.full((30, 3), 0.5))
    guide = pv.Guide(model, pv.LocalParameters(5))
    result = predictive_check(model, guide, y, num_samples=20)
    assert "largest" not in result.names  # 1 in all data sets: it says nothing
    guide = pv.Guide(model, pv.GlobalParameters())
    again = predictive_check(model, guide, y, num_samples=20)
    torch.testing.assert_close(again.replicated, result.replicated)
    other = predictive_check(model, guide, y, num_samples=20, seed=1)
    assert not torch.equal(other.replicated, result.replicated)


def test_chunks_keep_data_sets_apart(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """However few rows fit into memory, each replicate has its number of data, and they differ."""
    y = FACTS.sample(10)
    monkeypatch.setattr("pyro_vae.diagnostics.predictive.rows_at_once", lambda *_: 1)
    count = {"count": lambda batch: torch.tensor(float(len(batch[0]))), "sd": lambda b: b[0].std()}
    result = predictive_check(model_of(FACTS), None, y, count, num_samples=15, seed=seed)
    assert result.replicated[:, 0].tolist() == [10.0] * 15
    assert len(result.replicated[:, 1].unique()) == 15


# Refusals ----------------------------------------------------------------------------------------


def test_bad_arguments() -> None:
    """What was expected, and what came."""
    y = FACTS.sample(5)
    with pytest.raises(ValueError, match="at least 2 data sets; got 1"):
        check(FACTS, y, num_samples=1)
    with pytest.raises(ValueError, match=r"must be given .* got None"):
        check(FACTS, y, latents=Latents.GUIDE)
    with pytest.raises(ValueError, match="at least 2 rows"):
        check(FACTS, y[:1])
    with pytest.raises(ValueError, match="'void' must be a finite number"):
        check(FACTS, y, statistics={"void": lambda batch: batch[0].sum() / 0}, num_samples=5)
    with pytest.raises(ValueError, match="at least one statistic"):
        check(FACTS, y, statistics={})


def test_programs_that_cannot_be_simulated() -> None:
    """One that looks at its data beside its own draws; discrete latents given y are unknown."""

    def peeking(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z + y.abs(), 1.0), obs=y)

    def mixture(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            kind = pyro.sample("kind", dist.Bernoulli(0.3))
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z + 5 * kind, 1.0), obs=y)

    y = torch.randn(20)
    with pytest.raises(ValueError, match="data cannot be simulated"):
        predictive_check(peeking, None, y, num_samples=5)
    guide = pv.Guide(mixture, pv.GlobalParameters(), example=y)
    with pytest.raises(ValueError, match=r"\['kind'\], which are summed out"):
        predictive_check(mixture, guide, y, num_samples=5, latents=Latents.GUIDE)
    means = {"mean": lambda batch: batch[0].mean()}
    replicated = predictive_check(mixture, None, y, means, num_samples=300).replicated
    assert_mean(replicated, torch.tensor([1.5]))


# Figures -----------------------------------------------------------------------------------------


def heights(ax: Any) -> list[float]:
    """Of the bars."""
    return [float(bar.get_height()) for bar in ax.patches]


def test_the_plot_shows_the_check() -> None:
    """Every replicate is in a bar, and the line stands at the observed value."""
    result = check(FACTS, FACTS.sample(40), num_samples=60)
    p_values = dict(zip(result.names, result.p_values.value, strict=True))
    figure = Figure(figsize=(8, 5), layout="constrained")
    panels = plot_predictive_check(
        result.observed_by_name, result.replicated_by_name, p_values, figure=figure
    )
    figure.canvas.draw()
    for ax, name in zip(panels, result.names, strict=True):
        assert sum(heights(ax)) == 60
        assert float(np.asarray(ax.lines[0].get_xdata())[0]) == result.observed_by_name[name]
        assert f"p = {float(p_values[name]):.2g}" in ax.get_title()


def test_ties_have_a_bar_each() -> None:
    """Counts: whole numbers stay whole."""
    draws = np.repeat([0.0, 1.0, 3.0], [10, 20, 30])
    (ax,) = plot_predictive_check({"count": 2.0}, {"count": draws}, figure=Figure())
    assert heights(ax) == [10, 20, 0, 30]
    assert ax.get_title() == "count"


def test_values_that_nearly_tie_have_ordinary_bars() -> None:
    """A bar per step of the smallest difference would be ten billion bars."""
    draws = np.repeat([1.0, 1.0 + 1e-10, 2.0], 20)
    (ax,) = plot_predictive_check({"median": 1.0}, {"median": draws}, figure=Figure())
    assert (heights(ax)[0], heights(ax)[-1], len(heights(ax))) == (40, 20, 5)


@pytest.mark.parametrize(
    ("observed", "draws"),
    [({}, {}), ({"a": 1.0}, {"b": np.ones(3)}), ({"a": np.nan}, {"a": np.ones(3)})],
)
def test_bad_plots(observed: dict[str, float], draws: dict[str, NDArray[Any]]) -> None:
    """No statistic, other names, not a number."""
    with pytest.raises(ValueError, match="must"):
        plot_predictive_check(observed, draws, figure=Figure())


def test_a_guide_that_is_the_prior() -> None:
    """Latents of such a guide are latents from the prior: both checks ask the same."""
    y = FACTS.sample(30)
    sd = {"sd": lambda batch: batch[0].std()}
    model = model_of(FACTS)
    pair = [
        predictive_check(
            model, prior_guide, y, sd, num_samples=300, latents=latents, seed=place
        ).replicated
        for place, latents in enumerate(Latents)
    ]
    assert_mean(pair[0] - pair[1], 0.0)
