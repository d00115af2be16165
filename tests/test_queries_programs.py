"""What a model is for, with programs of other kinds: covariates, shared sites, labels."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import Tensor

import pyro_vae as pv
from pyro_vae.programs import PartlyObserved
from pyro_vae.queries import (
    Correlation,
    MutualInformation,
    conditional_density,
    dependence,
    encode,
    impute,
    outliers,
    reconstruct,
    reconstruction_draws,
)
from tests.helpers.queries import FACTORS, conditional, program, vae, with_holes
from tests.helpers.statistics import FALSE_ALARM

pytestmark = pytest.mark.usefixtures("float64")


def test_a_table_of_fitted_rows(seed: int) -> None:
    """A guide with free parameters per row, fitted to data with holes, is a proposal too."""
    _, y = with_holes(20)
    start = pv.Guide(program, pv.GlobalParameters(), pv.FullRankNormal(), example=FACTORS.sample(2))
    fitted = start.fit_rows(y)
    filled = impute(program, fitted, y, seed=seed)
    exact = torch.stack([conditional(row)[0] for row in y])
    z = ((filled.value - exact) / filled.error)[filled.missing].abs()
    assert float(z.max()) < stats.norm.isf(FALSE_ALARM / 2 / len(z))
    assert float(filled.ess[filled.missing.any(dim=1)].min()) > 1900
    assert encode(program, fitted, y).shape == (20, 2)
    # A table belongs to its rows; dependence asks the model alone.
    assert dependence(program, fitted, y[:1].nan_to_num(), Correlation(200)).names == (
        *("0", "1", "2", "3", "4"),
    )


def regression(y: Tensor, x: Tensor) -> None:
    """Two features whose mean moves with a covariate; the latent is common to both."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        features = PartlyObserved(dist.Normal(5 * x + z.expand(-1, 2), 0.5))
        pyro.sample("y", features.to_event(1), obs=y)


def test_covariates(seed: int) -> None:
    """They go where their row goes."""
    x = torch.linspace(-2, 2, 10).unsqueeze(1)
    y = 5 * x + torch.randn(10, 1) + 0.5 * torch.randn(10, 2)
    holes = y.clone()
    holes[:, 1] = torch.nan
    filled = impute(regression, None, (holes, x), seed=seed)
    exact = 5 * x + (y[:, :1] - 5 * x) / 1.25  # E[z | y_0] = (y_0 - 5 x) / (1 + 0.25)
    z = (filled.value[:, 1:] - exact) / filled.error[:, 1:]
    assert float(z.abs().max()) < stats.norm.isf(FALSE_ALARM / 20)
    curve = conditional_density(regression, None, (y, x), 1, torch.linspace(-15, 15, 301))
    means = torch.trapezoid(curve.density.value * curve.grid, curve.grid)
    torch.testing.assert_close(means, exact[:, 0], atol=0.1, rtol=0)
    torch.testing.assert_close(
        reconstruct(regression, own_guide(regression, (y, x)), (y, x)), (5 * x).expand(10, 2)
    )


def own_guide(model: Any, data: Any) -> pv.Guide:
    """N(0, I) for every datum."""
    return pv.Guide(model, pv.GlobalParameters(), example=data)


def test_outliers_given_covariates(seed: int) -> None:
    """A datum that is ordinary for another covariate is far out for its own."""
    x = torch.linspace(-2, 2, 20).unsqueeze(1)
    y = 5 * x + torch.randn(20, 1) + 0.5 * torch.randn(20, 2)
    y[3] = -y[3]
    method = pv.ImportanceSampling(200, proposal=pv.Fitted())
    result = outliers(regression, None, (y, x), 500, method, seed=seed)
    assert result.most_extreme(1).tolist() == [3]
    assert bool(result.flagged()[3])


def shared_mean(y: Tensor) -> None:
    """All data share a mean."""
    mean = pyro.sample("mean", dist.Normal(torch.zeros(2), 5.0).to_event(1))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        features = PartlyObserved(dist.Normal(mean + z.expand(-1, 2), 0.5))
        pyro.sample("y", features.to_event(1), obs=y)


def test_shared_sites(seed: int) -> None:
    """Results are conditional on their values, and say so; without a guide they must be given."""
    y = torch.tensor([[3.0, torch.nan], [2.0, 2.5]])
    known = {"mean": torch.tensor([1.0, 4.0])}
    filled = impute(shared_mean, None, y, given=known, seed=seed)
    value, error = (float(part[0, 1]) for part in filled.estimate)
    assert abs(value - (4 + 2 / 1.25)) < 6 * error
    assert "conditional on the global site mean" in filled.summary()
    with pytest.raises(ValueError, match=r"share, .*: pass a guide"):
        impute(shared_mean, None, y)
    guide = own_guide(shared_mean, torch.zeros(2, 2))
    assert "at the mean of their posterior" in impute(shared_mean, guide, y).given
    result = dependence(shared_mean, None, y[1:], Correlation(20_000), given=known)
    value, error = (float(part[0, 1]) for part in result.estimate)
    assert abs(value - 0.8) < 6 * error < 0.03  # of 1 / (1 + 0.25)
    with pytest.raises(ValueError, match=r"pass `?given="):
        dependence(shared_mean, None, y[1:])


def labelled(y: Tensor) -> None:
    """A label that nobody gave, besides z."""
    with pyro.plate("data", len(y)):
        label = pyro.sample("label", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        loc = 10 * label.unsqueeze(-1) + z
        pyro.sample("y", dist.Normal(loc, 0.5).to_event(1), obs=y)


@pytest.mark.parametrize(
    "use",
    [
        lambda guide, y: reconstruct(labelled, guide, y),
        lambda guide, y: reconstruction_draws(labelled, guide, y),
        lambda guide, y: dependence(labelled, guide, y, MutualInformation(10, 10, 2)),
    ],
    ids=["mean", "draws", "information"],
)
def test_labels_that_are_summed_out(use: Callable[..., Any]) -> None:
    """Draws of them given the data are unknown, and the prior's would be wrong."""
    y = torch.zeros(3, 1)
    with pytest.raises(ValueError, match=r"\['label'\], which are summed out.*decode"):
        use(own_guide(labelled, y), y)


def test_features_that_are_not_independent() -> None:
    """Of a joint normal given z there is no density of one feature."""

    def joint(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("y", dist.MultivariateNormal(z, torch.eye(2)), obs=y)

    with pytest.raises(ValueError, match="that are independent given z"):
        dependence(joint, None, torch.zeros(1, 2), MutualInformation(10, 10, 2))
    assert dependence(joint, None, torch.zeros(1, 2), Correlation(100)).measure == "correlation"


def in_two_sites(y: Tensor) -> None:
    """Factor analysis whose first two features are a site of their own."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        every = dist.Normal(z @ FACTORS.loadings.T + FACTORS.mean, FACTORS.noise_variance.sqrt())
        for name, columns in (("a", slice(2)), ("b", slice(2, 5))):
            part = dist.Normal(every.loc[:, columns], every.scale[:, columns])
            pyro.sample(name, PartlyObserved(part).to_event(1), obs=y[:, columns])


def test_entries_of_several_sites_are_filled_in(seed: int) -> None:
    """As those of one: means are closed forms, and nothing stays missing."""
    _, y = with_holes(20)
    filled = impute(in_two_sites, None, y, 5, seed=seed)
    exact = torch.stack([conditional(row)[0] for row in y])
    z = ((filled.value - exact) / filled.error)[filled.missing].abs()
    assert float(z.max()) < stats.norm.isf(FALSE_ALARM / 2 / len(z))
    assert bool(filled.draws.isfinite().all())
    guide = pv.Guide(in_two_sites, pv.GlobalParameters(), example=y)
    assert bool(reconstruct(in_two_sites, guide, y).isfinite().all())
    assert bool(reconstruction_draws(in_two_sites, guide, y).isfinite().all())


def test_nothing_moves_the_stream(seed: int) -> None:
    """Every use leaves the caller's random numbers where they were, and the model's mode."""
    model, y = vae().train(), with_holes(3)[1]
    before = torch.get_rng_state()
    impute(model, None, y, 2, seed=seed)
    dependence(model, measure=Correlation(10), seed=seed)
    outliers(model, None, y, 5, pv.ImportanceSampling(40, proposal=pv.Fitted()), seed=seed)
    assert torch.equal(before, torch.get_rng_state())
    assert model.training


def test_a_mean_from_draws_follows_the_seed(seed: int) -> None:
    """The same seed, the same reconstruction; another, another one, as far off as chance has it."""

    def guide(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Gamma(y[:, :1].abs() + 2, 1.0).to_event(1))

    def positive(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Gamma(torch.full((1,), 2.0), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(z.log().expand(-1, 2), 0.5).to_event(1), obs=y)

    y = torch.randn(4, 2)
    one, same, other = (reconstruct(positive, guide, y, seed=own) for own in (seed, seed, seed + 1))
    assert torch.equal(one, same)
    assert bool((one != other).all())
    exact = torch.special.digamma(y[:, :1].abs() + 2).expand(-1, 2)  # E[log z]
    assert float((one - exact).abs().max()) < 0.3  # eleven errors of a mean of 1,000 draws


def test_data_of_one_number() -> None:
    """Without an axis of features they answer as a column does; what needs a second one says so."""

    def single(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", PartlyObserved(dist.Normal(2 * z, 0.5)), obs=y)

    def column(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            features = PartlyObserved(dist.Normal(2 * z.unsqueeze(-1), 0.5))
            pyro.sample("y", features.to_event(1), obs=y)

    y = torch.tensor([0.5, 1.0, -2.0])
    guides = [
        pv.Guide(m, pv.ExactPosterior(), example=d) for m, d in ((single, y), (column, y[:, None]))
    ]
    pairs = list(zip((single, column), guides, (y, y[:, None]), strict=True))
    exact = dist.Normal(0.0, 4.25**0.5).log_prob(y)
    for model, guide, data in pairs:
        torch.testing.assert_close(pv.conditional(model, guide, data, [0]).value, exact)
        assert not impute(model, guide, data).missing.any()
        span = pv.traverse(model, guide, data, levels=(0.1, 0.9)).span
        moved = pv.encode(model, guide, data)[:, 0]
        assert float(span) > 2 * 0.8 * float(moved.max() - moved.min())
        assert dependence(model, guide, data, Correlation(200)).estimate.value.shape == (1, 1)
        with pytest.raises(ValueError, match="no entry besides column 0 is observed"):
            conditional_density(model, guide, data, 0)
    spans = [pv.traverse(model, guide, data).span for model, guide, data in pairs]
    torch.testing.assert_close(spans[0], spans[1])
