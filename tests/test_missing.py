"""Data with holes: factor analysis, whose answers for the observed entries are all exact."""

import math
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

import pyro_vae as pv
from pyro_vae.programs import PartlyObserved, Program
from tests.helpers.statistics import FALSE_ALARM, FactorAnalysis, assert_coverage

pytestmark = pytest.mark.usefixtures("float64")

NAN = math.nan
SIGMA = 0.5
NUM_DATA = 60
SHARE = 0.3  # of the entries that are removed


def facts_of(fitted: pv.models.VAE, observed: Tensor) -> FactorAnalysis:
    """The factor analysis of some of the features, which is what is left of the whole."""
    assert isinstance(fitted.decoder, nn.Linear)
    assert isinstance(fitted.likelihood, pv.likelihoods.Gaussian)
    assert isinstance(fitted.likelihood.sigma, pv.likelihoods.FixedSigma)
    weight, bias = fitted.decoder.weight.detach(), fitted.decoder.bias.detach()
    count = int(observed.sum())
    return FactorAnalysis(
        weight[observed], bias[observed], torch.full((count,), fitted.likelihood.sigma.sigma**2)
    )


def with_holes(y: Tensor) -> Tensor:
    """The same without some of its entries, and without rows that are left empty."""
    holes = y.masked_fill(torch.rand_like(y) < SHARE, NAN)
    return holes[~holes.isnan().all(dim=1)]


def exact(fitted: pv.models.VAE, y: Tensor) -> tuple[Tensor, Tensor]:
    """Log p of the observed entries of each row, and the means of the posterior."""
    evidence, means = torch.zeros(len(y)), torch.zeros(len(y), 2)
    patterns, kinds = torch.unique(~y.isnan(), dim=0, return_inverse=True)
    for kind, observed in enumerate(patterns):
        facts, seen = facts_of(fitted, observed), y[kinds == kind][:, observed]
        evidence[kinds == kind] = facts.log_evidence(seen)
        means[kinds == kind] = facts.posterior(seen).loc
    return evidence, means


def made(num_data: int = NUM_DATA, sigma: float = SIGMA) -> tuple[pv.models.VAE, Tensor]:
    """Factor analysis of five features on two factors, and data of it, with holes."""
    factors = pv.models.VAE(nn.Linear(2, 5), pv.likelihoods.Gaussian(sigma), latent_dim=2)
    return factors, with_holes(factors.sample(num_data))


def exact_guide(factors: pv.models.VAE) -> pv.Guide:
    """The posterior in closed form."""
    return pv.Guide(factors, pv.ExactPosterior(), pv.FullRankNormal())


# ---------------------------------------------------------------------- the closed form


def test_log_p_of_what_was_observed() -> None:
    """In closed form that of the sub-block of the covariance; a row filled with means has not."""
    factors, y = made()
    assert 0.2 < y.isnan().double().mean() < 0.4
    ours = pv.log_marginal_likelihood(factors, exact_guide(factors), y, pv.ClosedForm())
    weight = facts_of(factors, torch.ones(5) > 0)
    for row, value in zip(y, ours.value, strict=True):
        observed = ~row.isnan()
        covariance = weight.marginal.covariance_matrix[observed][:, observed]
        marginal = MultivariateNormal(weight.mean[observed], covariance)
        torch.testing.assert_close(value, marginal.log_prob(row[observed]), rtol=1e-9, atol=1e-9)
    filled = torch.where(y.isnan(), y.nanmean(dim=0), y)
    twin = pv.log_marginal_likelihood(factors, exact_guide(factors), filled, pv.ClosedForm())
    assert ((twin.value - ours.value).abs() > 1e-3)[y.isnan().any(dim=1)].all()


def test_conditional_means() -> None:
    """The exact guide is the posterior given the observed entries, and every weight is p(y)."""
    factors, y = made()
    guide = exact_guide(factors)
    evidence, means = exact(factors, y)
    torch.testing.assert_close(guide.mean(y), means, rtol=1e-9, atol=1e-9)
    weights = pv.log_weights(factors, guide, y, num_samples=3)
    torch.testing.assert_close(weights, evidence.expand(3, -1), rtol=1e-8, atol=1e-8)


@pytest.mark.slow
def test_importance_sampling(seed: int) -> None:
    """From a guide that is too wide, within its errors; those of rows filled with zeros are not."""
    factors, y = made(300, sigma=1.0)

    def guide(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(exact(factors, y)[1], 1.0).to_event(1))

    sampling = pv.ImportanceSampling(600)
    estimate = pv.log_marginal_likelihood(factors, guide, y, sampling, seed=seed)
    truth, twin = (exact(factors, rows)[0] for rows in (y, y.nan_to_num(nan=0.0)))
    assert_coverage((estimate.value - truth).abs() < 1.96 * estimate.error)
    with pytest.raises(AssertionError, match="resolution"):
        assert_coverage((estimate.value - twin).abs() < 1.96 * estimate.error)


@pytest.mark.slow
def test_an_encoder_that_is_told(seed: int) -> None:
    """With the mask beside the data an encoder trains on holes, towards log p and not above it."""
    factors, y = made()
    net = pv.nets.MissingIndicator(pv.nets.MLPEncoder(10, hidden=(32,)))
    guide = pv.Guide(factors, pv.Encoder(net), pv.FullRankNormal())
    settings: Any = {"num_epochs": 60, "batch_size": 50, "seed": seed, "progress": False}
    optimizer = lambda parameters: torch.optim.Adam(parameters, lr=1e-2)  # noqa: E731
    pv.fit(factors, guide, y, optimizer=optimizer, train_model=False, **settings)
    gap = pv.inference_gap(factors, guide, y[:50])
    evidence = exact(factors, y[:50])[0].sum()
    assert abs(gap.total.log_marginal.value - evidence) < 5 * gap.total.log_marginal.error + 1e-6
    assert 0 < evidence - gap.total.elbo.value < 0.5 * 50  # nats per datum, 1.3 before training


# ---------------------------------------------------------------------- programs of one's own


def lengths_and_counts(y: Tensor, counts: Tensor, covariate: Tensor) -> None:
    """Two tensors are observed, each with holes; a third one is not."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        loc = z @ torch.tensor([[1.0, -1.0, 0.5], [0.5, 0.5, 2.0]]) + covariate
        pyro.sample("y", PartlyObserved(dist.Normal(loc, 0.5)).to_event(1), obs=y)
        rate = dist.Poisson((0.3 * z).exp())
        pyro.sample("counts", PartlyObserved(rate, 1.0).to_event(1), obs=counts)


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Data for it, with a hole or more in every row."""
    y, counts, covariate = torch.randn(6, 3), torch.poisson(torch.ones(6, 2)), torch.randn(6, 3)
    y[torch.arange(6), torch.arange(6) % 3] = NAN
    counts[::2, 0] = NAN
    return y, counts, covariate


def test_a_program_of_ones_own() -> None:
    """A function with two observed sites: each leaves out what it has not seen."""
    y, counts, covariate = batch()
    z = torch.randn(4, 6, 2)
    loc = z @ torch.tensor([[1.0, -1.0, 0.5], [0.5, 0.5, 2.0]]) + covariate
    expected = dist.Normal(0.0, 1.0).log_prob(z).sum(dim=-1)
    expected = expected + dist.Normal(loc, 0.5).log_prob(y.nan_to_num()).where(
        ~y.isnan(), torch.zeros(())
    ).sum(dim=-1)
    log_prob = dist.Poisson((0.3 * z).exp()).log_prob(counts.nan_to_num())
    expected = expected + log_prob.where(~counts.isnan(), torch.zeros(())).sum(dim=-1)
    ours = Program(lengths_and_counts, y, counts, covariate).log_joint(z, y, counts, covariate)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)
    shape = torch.Size([4, 6])
    assert ours.shape == shape


class Encoded(nn.Module):
    """Zeros for holes, and where they are, for two tensors."""

    num_features = 16

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(13, 16), nn.Tanh())

    def forward(self, y: Tensor, counts: Tensor, covariate: Tensor) -> Tensor:
        """Features."""
        seen = [part for part in (y, counts) for part in (part.nan_to_num(), part.isnan())]
        features: Tensor = self.net(torch.cat([*seen, covariate], dim=1).to(y))
        return features


def test_a_program_of_ones_own_is_fitted(seed: int) -> None:
    """Trained and evaluated like any other; log p agrees with quadrature."""
    data = batch()
    guide = pv.Guide(lengths_and_counts, pv.Encoder(Encoded()), example=data)
    result = pv.fit(lengths_and_counts, guide, data, num_epochs=3, seed=seed, progress=False)
    assert np.isfinite(result.history.elbo).all()
    quadrature = pv.log_marginal_likelihood(lengths_and_counts, guide, data, pv.Quadrature())
    grid = torch.linspace(-7, 7, 281)
    z = torch.cartesian_prod(grid, grid)[:, None, :].expand(-1, 6, -1)
    log_joint = Program(lengths_and_counts, *data).log_joint(z, *data)
    expected = log_joint.logsumexp(dim=0) + 2 * math.log(14 / 280)
    torch.testing.assert_close(quadrature.value, expected, rtol=1e-4, atol=1e-4)


def test_where_holes_are_refused() -> None:
    """In a covariate, in a site that does not take them, and in rows with nothing else."""
    y, counts, covariate = batch()
    guide = pv.Guide(lengths_and_counts, pv.GlobalParameters(), example=(y, counts, covariate))
    holed = covariate.clone()
    holed[3, 2] = NAN
    with pytest.raises(ValueError, match=r"tensor 2 of the data has 1 nan .* at row 3, column 2"):
        pv.log_marginal_likelihood(lengths_and_counts, guide, (y, counts, holed))
    with pytest.raises(ValueError, match=r"tensor 2 of the data has 1 nan"):
        pv.fit(lengths_and_counts, guide, (y, counts, holed), num_epochs=1, progress=False)

    def plain(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(z, 1.0).to_event(1), obs=y)

    guide = pv.Guide(plain, pv.GlobalParameters(), example=covariate)
    with pytest.raises(ValueError, match=r"tensor 0 of the data has 6 nan"):
        pv.log_marginal_likelihood(plain, guide, y)
    factors, data = made()
    data[7] = NAN
    with pytest.raises(ValueError, match=r"no entry is observed in 1 of \d+ rows .* row 7"):
        pv.log_marginal_likelihood(factors, exact_guide(factors), data, pv.ClosedForm())


def test_an_encoder_that_is_not_told() -> None:
    """It answers nan, and the error says how to tell it."""
    factors, y = made()
    guide = pv.Guide(factors, pv.Encoder(pv.nets.MLPEncoder(5)))
    with pytest.raises(ValueError, match="with a net that takes twice as many inputs"):
        guide.mean(y)


# ---------------------------------------------------------------------- the distribution itself


def test_partly_observed() -> None:
    """Without holes it is the distribution; draws have none; events are refused."""
    normal = dist.Normal(torch.zeros(3), torch.ones(3))
    features = PartlyObserved(normal)
    y = torch.randn(4, 3)
    assert torch.equal(features.log_prob(y), normal.log_prob(y))
    assert torch.equal(features.mean, normal.mean)
    assert features.has_rsample
    assert not features.sample((5,)).isnan().any()
    assert features.expand([2, 3]).rsample().shape == (2, 3)
    assert features.support is normal.support
    with pytest.raises(ValueError, match=r"write PartlyObserved\(features\)"):
        PartlyObserved(normal.to_event(1))


def test_holes_have_no_gradient() -> None:
    """Neither nan nor anything else, though the density there is evaluated at a placeholder."""
    rate = torch.ones(2, 3, requires_grad=True)
    y = torch.tensor([[NAN, 1.5, NAN], [0.5, NAN, 1.0]])
    features = PartlyObserved(dist.Gamma(2.0, rate), placeholder=1.0)
    features.log_prob(y).sum().backward()
    assert rate.grad is not None
    assert rate.grad.isfinite().all()
    assert torch.equal(rate.grad == 0, y.isnan())


# ---------------------------------------------------------------------- what is made of the data


def test_calibration_with_holes(seed: int) -> None:
    """The exact posterior is calibrated on simulated data; one that ignores the data is not."""
    factors, y = made(200)
    right = pv.diagnostics.simulation_based_calibration(
        factors, exact_guide(factors), y, num_samples=19, seed=seed
    )
    assert (right.p_values > FALSE_ALARM).all()
    point = pv.Guide(factors, pv.GlobalParameters())
    with torch.no_grad():
        for value in point.parameters():
            value.sub_(2.0)
    wrong = pv.diagnostics.simulation_based_calibration(
        factors, point, y, num_samples=19, seed=seed
    )
    assert (wrong.p_values < FALSE_ALARM).any()


def test_checks_and_inference_data_with_holes(seed: int) -> None:
    """The data and their replicates keep their holes, and log likelihoods have none."""
    factors, y = made()
    own = {"missing": lambda batch: batch[0].isnan().double().mean(dim=0)}
    check = pv.diagnostics.predictive_check(factors, None, y, own, num_samples=5, seed=seed)
    assert (check.replicated == check.observed).all()
    own = {"mean": lambda batch: batch[0].mean()}
    with pytest.raises(ValueError, match=r"leave out missing entries \(nan\) of the data"):
        pv.diagnostics.predictive_check(factors, None, y, own, num_samples=5, seed=seed)
    idata = pv.to_inference_data(factors, exact_guide(factors), y[:20], num_samples=20, seed=seed)
    assert np.isnan(np.asarray(idata["observed_data"]["y"])).sum() == int(y[:20].isnan().sum())
    assert np.isfinite(np.asarray(idata["log_likelihood"]["y"])).all()
    assert np.isfinite(np.asarray(idata["posterior_predictive"]["y"])).all()


@pytest.mark.slow
def test_predictive_p_values_with_holes(seed: int) -> None:
    """Data of the model are below 0.1 once in ten; with twice the noise they are always found."""
    factors, _ = made()
    right: list[Tensor] = []
    wrong: list[Tensor] = []
    for repeat in range(150):
        y = with_holes(factors.sample(30))
        noisy = y + 3 * SIGMA * torch.randn_like(y)
        for data, p_values in ((y, right), (noisy, wrong)):
            check = pv.diagnostics.predictive_check(
                factors, None, data, num_samples=39, seed=seed + repeat
            )
            assert "sds of features (largest deviation, sd)" in check.names
            p_values.append(check.p_values.value)
    for column in torch.stack(right).T:
        assert_coverage(column > 0.1001, 0.9)
    with pytest.raises(AssertionError):
        assert_coverage(torch.stack(wrong)[:, 1] > 0.1001, 0.9)


def test_training_says_how_much_is_missing() -> None:
    """A guide that does not look at the data would say nothing of a nan that slipped in."""
    factors, y = made()
    guide = pv.Guide(factors, pv.GlobalParameters())
    result = pv.fit(factors, guide, y, num_epochs=1, progress=False)
    share = float(y.isnan().double().mean())
    assert result.missing == pytest.approx(share)
    assert f"{share:.2%} of the entries are missing (nan)" in result.summary()
    whole = pv.fit(factors, guide, factors.sample(20), num_epochs=1, progress=False)
    assert whole.missing == 0
    assert "missing" not in whole.summary()


def holes_of_its_own(kind: str) -> Any:
    """A program that masks holes by itself."""

    def program(y: Tensor) -> None:
        seen = ~y.isnan()
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            loc = z[:, None].expand(y.shape)
            if kind == "its own distribution":
                pyro.sample("y", dist.NanMaskedNormal(loc, SIGMA).to_event(1), obs=y)
            elif kind == "mask":
                masked = dist.Normal(loc, SIGMA).mask(seen).to_event(1)
                pyro.sample("y", masked, obs=torch.where(seen, y, 0.0))
            else:
                pyro.sample("y", dist.Normal(loc, SIGMA).to_event(1), obs=y)

    return program


def constant(y: Tensor) -> None:
    """A guide that looks at nothing."""
    loc = pyro.param("loc_of_all", torch.tensor(0.3))
    with pyro.plate("data", len(y)):
        pyro.sample("z", dist.Normal(loc.expand(len(y)), 1.0))


@pytest.mark.usefixtures("user_param_store")
def test_programs_that_mask_holes_by_themselves() -> None:
    """Log p of what was seen; a program that does not mask is refused, and a row without data."""
    y = torch.tensor([[0.3, NAN], [1.0, 0.5], [0.2, -0.4]])
    exact = torch.tensor(
        [
            MultivariateNormal(torch.zeros(n), torch.eye(n) * SIGMA**2 + 1).log_prob(row[:n])
            for n, row in ((1, y[0]), (2, y[1]), (2, y[2]))
        ]
    )
    for kind in ("mask", "its own distribution"):
        program = holes_of_its_own(kind)
        found = pv.log_marginal_likelihood(program, constant, y, pv.Tightest())
        torch.testing.assert_close(found.value, exact, rtol=0, atol=1e-4)
        assert pv.elbo(program, constant, y).elbo.value.isfinite().all()
        pv.fit(program, constant, y, num_epochs=1, batch_size=2, progress=False)
        with pytest.raises(
            ValueError, match=r"no entry is observed in .*, the first at row 0.*drop these rows"
        ):
            pv.elbo(program, constant, torch.full_like(y, NAN))
    for ask in (pv.elbo, pv.log_marginal_likelihood):
        with pytest.raises(ValueError, match=r"tensor 0 of the data has 1 nan"):
            ask(holes_of_its_own("none"), constant, y)
