"""Probabilistic PCA and factor analysis: against closed forms, scikit-learn and linear VAEs."""

import math
import warnings
from typing import Any

import pytest
import torch
from scipy import stats
from sklearn import datasets, decomposition
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

import pyro_vae as pv
from pyro_vae.models import Diagonal, Isotropic, LinearGaussian
from pyro_vae.models import expectation_maximization as em
from tests.helpers.models import assert_compares, assert_works_under_every_guide
from tests.helpers.statistics import FACTS, FALSE_ALARM, assert_mean

float64 = pytest.mark.usefixtures("float64")
NOISES = pytest.mark.parametrize("noise", [Isotropic(), Diagonal()], ids=["isotropic", "diagonal"])


def made(noise: Isotropic | Diagonal, latents: int = 2, features: int = 5) -> LinearGaussian:
    """A model with parameters in no particular place."""
    model = LinearGaussian(latents, features, noise)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


def of_facts() -> LinearGaussian:
    """The factor analysis whose every answer is known."""
    model = LinearGaussian(2, 4, Diagonal(1e-6))
    with torch.no_grad():
        model.loadings.copy_(FACTS.loadings)
        model.mean.copy_(FACTS.mean)
        model.log_noise.copy_((FACTS.noise_variance - 1e-12).log())
    return model


def holes(y: Tensor, share: float = 0.3) -> Tensor:
    """The data with entries removed at random, at least one left in every row."""
    missing = torch.rand(y.shape) < share
    missing[torch.arange(len(y)), torch.arange(len(y)) % y.shape[1]] = False
    return y.masked_fill(missing, torch.nan)


def by_hand(model: LinearGaussian, y: Tensor) -> Tensor:
    """Log density of the observed entries, row by row, from the covariance."""
    covariance, mean = model.covariance().detach(), model.mean.detach()
    values = []
    for row in y:
        seen = ~row.isnan()
        part = MultivariateNormal(mean[seen], covariance[seen][:, seen])
        values.append(part.log_prob(row[seen]))
    return torch.stack(values)


def score(model: LinearGaussian, y: Tensor) -> float:
    """Mean log density per datum, in nats, as scikit-learn has it."""
    return float(model.log_evidence(y).detach().mean())


# ---------------------------------------------------------------------- exact answers


@float64
@NOISES
def test_log_evidence(noise: Isotropic | Diagonal) -> None:
    """It is the normal density with covariance W W' + Psi, whole and of what was observed."""
    model, y = made(noise), torch.randn(7, 5)
    covariance = model.covariance().detach().numpy()
    expected = stats.multivariate_normal(model.mean.detach().numpy(), covariance).logpdf(y)
    torch.testing.assert_close(model.log_evidence(y).detach(), torch.tensor(expected))
    y = holes(y)
    torch.testing.assert_close(model.log_evidence(y), by_hand(model, y), rtol=1e-10, atol=1e-10)
    assert (model.log_evidence(y) - by_hand(model, y + 0.1)).abs().min() > 1e-4  # the wrong twin


@float64
@NOISES
def test_the_library_finds_the_same(noise: Isotropic | Diagonal) -> None:
    """The posterior and the evidence that are read off the program are those of the methods."""
    model, y = made(noise), holes(torch.randn(7, 5))

    def program(y: Tensor) -> Tensor:
        z: Tensor = model(y)  # a function of its own has no methods to ask
        return z

    guide = pv.Guide(program, pv.ExactPosterior(), pv.FullRankNormal(), example=y)
    exact = model.exact_posterior(y)
    torch.testing.assert_close(guide.mean(y), exact.mean, rtol=1e-8, atol=1e-8)
    read = pv.log_marginal_likelihood(program, guide, y, pv.ClosedForm()).value
    torch.testing.assert_close(read, model.log_evidence(y), rtol=1e-9, atol=1e-9)
    told = pv.log_marginal_likelihood(model, guide, y, pv.ClosedForm()).value
    torch.testing.assert_close(told, model.log_evidence(y), rtol=1e-12, atol=1e-12)


@float64
def test_known_instance() -> None:
    """The posterior of factor analysis by another hand."""
    model, y = of_facts(), FACTS.sample(6)
    ours, theirs = model.exact_posterior(y), FACTS.posterior(y)
    torch.testing.assert_close(ours.mean, theirs.mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours.covariance_matrix, theirs.covariance_matrix.expand(6, 2, 2))
    torch.testing.assert_close(model.log_evidence(y), FACTS.log_evidence(y))


@NOISES
def test_single_precision(noise: Isotropic | Diagonal) -> None:
    """Products in float32 are not symmetric to the last bit; the posterior's precision is."""
    y = torch.tensor(datasets.load_breast_cancer().data)
    y = ((y - y.mean(0)) / y.std(0)).float()
    model = LinearGaussian(8, 30, noise)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # twenty steps are not all
        model.fit_em(y, max_steps=20)
    posterior = model.exact_posterior(y[:20])
    assert posterior.loc.shape == (20, 8)
    assert torch.equal(posterior.precision_matrix, posterior.precision_matrix.mT)


@float64
def test_coordinate_ascent() -> None:
    """CAVI ends at the best factors: the mean, and the mean-field gap of every datum."""
    model, y = of_facts(), FACTS.sample(6)
    guide = pv.Guide(model, pv.CoordinateAscent(tolerance=1e-10))
    torch.testing.assert_close(guide.mean(y), FACTS.posterior(y).mean, rtol=1e-8, atol=1e-8)
    bound = pv.elbo(model, guide, y, 2000).elbo
    z = (model.log_evidence(y) - bound.value - FACTS.mean_field_gap()) / bound.error
    assert z.abs().max() < stats.norm.isf(FALSE_ALARM / 2 / len(y))
    assert (FACTS.mean_field_gap() / bound.error).min() > 10  # no gap is caught


@float64
def test_draws() -> None:
    """Mean and covariance of p(y); a wrong noise is seen."""
    model = of_facts()
    y = model.sample(20_000, seed=3)
    assert_mean(y[:, :, None] * y[:, None, :], model.covariance().detach())
    with pytest.raises(AssertionError, match="resolution"):
        assert_mean(y[:, :, None] * y[:, None, :], 1.1 * model.covariance().detach())
    assert torch.equal(model.decode(torch.zeros(3, 2)), model.mean.detach().expand(3, 4))


# ---------------------------------------------------------------------- maximum likelihood


def standardized(name: str) -> Tensor:
    """A data set of scikit-learn, without its constant columns, in units of their deviations."""
    y = torch.as_tensor(getattr(datasets, f"load_{name}")().data, dtype=torch.float64)
    y = y[:, y.std(dim=0) > 0]
    return (y - y.mean(dim=0)) / y.std(dim=0, correction=0)


SETS = pytest.mark.parametrize("name", ["iris", "wine", "breast_cancer", "digits"])


@float64
@SETS
@pytest.mark.parametrize("latents", [1, 3])
def test_probabilistic_pca_of_scikit_learn(name: str, latents: int) -> None:
    r"""The closed form and EM agree, and are above `PCA.score` by exactly what its N - 1 costs.

    Its covariance is the maximum's times :math:`c = N / (N - 1)`, whose mean log density is lower
    by :math:`\frac{D}{2} (\log c + 1 / c - 1)`: 1e-6 to 1e-4 nats per datum here.
    """
    y = standardized(name)
    model = LinearGaussian(latents, y.shape[1], Isotropic(1e-6))
    model.fit_closed_form(y)
    closed = score(model, y)
    fit = model.fit_em(y)
    assert fit.converged
    assert abs(score(model, y) - closed) < 1e-9
    c = len(y) / (len(y) - 1)
    theirs = decomposition.PCA(latents, svd_solver="full").fit(y.numpy()).score(y.numpy())
    assert abs(closed - y.shape[1] / 2 * (math.log(c) + 1 / c - 1) - theirs) < 1e-6
    assert closed > theirs


@float64
@SETS
@pytest.mark.parametrize("latents", [1, 3])
def test_factor_analysis_of_scikit_learn(name: str, latents: int) -> None:
    """EM reaches `FactorAnalysis.score`, or more where that one stops short of a Heywood case."""
    y = standardized(name)
    reference = decomposition.FactorAnalysis(latents, tol=1e-10, max_iter=1000, svd_method="lapack")
    with warnings.catch_warnings():  # it says when it has not converged
        warnings.simplefilter("ignore")
        theirs = reference.fit(y.numpy()).score(y.numpy())
    model = LinearGaussian(latents, y.shape[1], Diagonal(1e-6))  # its floor of the variance: 1e-12
    fit = model.fit_em(y)
    ours = score(model, y)
    assert fit.converged
    assert abs(float(fit.log_evidence[-1]) - ours) < 1e-9
    assert ours > theirs - 1e-6
    if name != "iris" or latents == 3:  # with one latent a noise variance of iris goes to zero
        assert ours < theirs + 1e-6


@float64
def test_data_in_another_unit() -> None:
    """A change of units moves log p by the Jacobian and nothing else: EM starts alike."""
    y = standardized("wine")
    scales = torch.linspace(0.01, 100.0, y.shape[1])
    model, other = (LinearGaussian(2, y.shape[1], Diagonal(1e-7)) for _ in range(2))
    model.fit_em(y)
    other.fit_em(y * scales + 7)
    shift = score(model, y) - score(other, y * scales + 7)
    assert abs(shift - float(scales.log().sum())) < 1e-6


@float64
def test_em_never_falls() -> None:
    """Neither with holes nor without, and with a jump or not."""
    y = FACTS.sample(50)
    for data in (y, holes(y)):
        for noise in (Isotropic(), Diagonal()):
            model = LinearGaussian(2, 4, noise)
            fit = model.fit_em(data, tolerance=1e-7)
            assert (fit.log_evidence.diff() > 0).all()
            last = score(model, data)
            assert abs(float(fit.log_evidence[-1]) - last) < 1e-6


@float64
@NOISES
def test_em_is_at_a_maximum(noise: Isotropic | Diagonal) -> None:
    """The gradient of the log likelihood of what was observed is zero there, and not nearby."""
    y = holes(FACTS.sample(200))
    model = LinearGaussian(1, 4, noise)
    model.fit_em(y, tolerance=1e-13)

    def steepest() -> float:
        model.zero_grad()
        model.log_evidence(y).mean().backward()
        return max(float(value.grad.abs().max()) for value in model.parameters())  # type: ignore[union-attr]

    assert steepest() < 1e-5
    with torch.no_grad():
        model.loadings.mul_(1.1)
    assert steepest() > 1e-3


@float64
@NOISES
def test_holes_and_none_have_the_same_fixed_point(noise: Isotropic | Diagonal) -> None:
    """One EM step with holes, at the maximum found without any, does not move it."""
    y = standardized("wine")
    model = LinearGaussian(2, y.shape[1], noise)
    model.fit_em(y, tolerance=1e-14)
    now = em.LinearGaussianParameters(model.loadings, model.mean, model.variance())
    with torch.no_grad():
        answer = em.posterior(now, y)
        isotropic = isinstance(noise, Isotropic)
        again = em.regression(y, answer.loc, answer.precision, isotropic=isotropic)
    for old, new in zip(now, again, strict=True):
        torch.testing.assert_close(new, old.detach(), rtol=1e-4, atol=1e-5)


@float64
def test_missing_entries_are_recovered() -> None:
    """Fitted to 30% of holes, the model is close to the truth: in each loading's covariance."""
    y = holes(FACTS.sample(5000))
    model = LinearGaussian(2, 4, Diagonal())
    model.fit_em(y, tolerance=1e-7)
    found, truth = model.covariance().detach(), FACTS.marginal.covariance_matrix
    # Half of the pairs were observed; the errors of covariances are then at most about 0.04.
    assert (found - truth).abs().max() < 0.3
    filled = y.nan_to_num(0.0)
    assert (filled.mT @ filled / len(y) - truth).abs().max() > 0.3  # zeros for holes are caught


# ---------------------------------------------------------------------- linear VAEs


@pytest.mark.slow
def test_gradient_training_reaches_the_closed_form() -> None:
    """EM with gradient M-steps on a small data set: 0.01 nats per datum."""
    y = standardized("iris").float()[::3]
    model = LinearGaussian(2, 4)
    model.fit_closed_form(y)
    best = score(model, y)
    model.reset_parameters()
    guide = pv.Guide(model, pv.ExactPosterior(), pv.FullRankNormal())
    start = score(model, y)
    pv.fit(
        model, guide, y, num_epochs=250, batch_size=50, progress=False,
        objective=pv.objectives.STL(), optimizer=lambda values: torch.optim.Adam(values, lr=0.05),
    )  # fmt: skip
    assert best - 0.01 < score(model, y) < best + 1e-5
    assert start < best - 0.1


@pytest.mark.slow
@SETS
@pytest.mark.parametrize("kind", ["exact", "encoder"])
def test_linear_vae_reaches_pca(name: str, kind: str) -> None:
    """A VAE with a linear decoder and one learned sigma is probabilistic PCA, once trained."""
    y = standardized(name).float()
    features = y.shape[1]
    reference = LinearGaussian(2, features)
    reference.fit_closed_form(y)
    best = score(reference, y)
    likelihood = pv.likelihoods.Gaussian(pv.likelihoods.LearnedSigma())
    model = pv.models.VAE(nn.Linear(2, features), likelihood, latent_dim=2)
    maps: dict[str, pv.InferenceMap] = {
        "exact": pv.ExactPosterior(),
        "encoder": pv.Encoder(nn.Linear(features, 4)),
    }
    family = pv.FullRankNormal() if kind == "exact" else pv.DiagonalNormal()
    guide = pv.Guide(model, maps[kind], family)
    epochs = 300 if kind == "exact" else 1000
    objective: Any = pv.objectives.STL()  # no noise at the optimum
    pv.fit(
        model, guide, y, num_epochs=epochs, batch_size=len(y), progress=False,
        objective=objective, optimizer=lambda values: torch.optim.Adam(values, lr=0.02),
    )  # fmt: skip
    value = pv.log_marginal_likelihood(model, guide, y, pv.ClosedForm()).value
    assert best - 0.01 < float(value.mean()) < best + 1e-4


# ---------------------------------------------------------------------- what is refused


def test_what_is_refused() -> None:
    """With what was expected and what to do."""
    y = torch.randn(10, 3)
    with pytest.raises(ValueError, match="for a closed form, the noise must be isotropic"):
        LinearGaussian(1, 3, Diagonal()).fit_closed_form(y)
    with pytest.raises(ValueError, match="latents must be fewer than the features"):
        LinearGaussian(3, 3).fit_closed_form(y)
    with pytest.raises(ValueError, match=r"1 missing \(nan\) entry out of 30: use fit_em"):
        LinearGaussian(1, 3).fit_closed_form(
            torch.where(torch.eye(10, 3) * y == y[0, 0], torch.nan, y)
        )
    with pytest.raises(ValueError, match=r"got none in 1 of 3 columns \(first in column 2\)"):
        LinearGaussian(1, 3).fit_em(torch.cat([y[:, :2], y[:, 2:] * torch.nan], dim=1))
    with pytest.raises(ValueError, match=r"3 features; got shape \(10, 2\)"):
        LinearGaussian(1, 3).fit_em(y[:, :2])
    with pytest.raises(ValueError, match="`max_steps` must be a whole number of at least 1"):
        LinearGaussian(1, 3).fit_em(y, max_steps=0)
    with pytest.raises(ValueError, match="`floor`, the smallest sigma"):
        Diagonal(0.0)
    with pytest.raises(ValueError, match="`features` must be a whole number"):
        LinearGaussian(1, 0)


def test_slow_em_warns() -> None:
    """A few steps do not do, and the message says what to raise."""
    model = LinearGaussian(2, 4, Diagonal())
    with pytest.warns(UserWarning, match="EM did not converge in 3 steps"):
        model.fit_em(FACTS.sample(50).float(), max_steps=3)


@float64
@pytest.mark.parametrize("holes", [False, True], ids=["complete", "holes"])
@pytest.mark.parametrize("noise", [Isotropic(0.03), Diagonal(0.03)], ids=["isotropic", "diagonal"])
@pytest.mark.parametrize("of", ["one-hot", "pairs"])
@pytest.mark.filterwarnings("ignore:EM did not converge")
def test_columns_that_determine_each_other(
    of: str, noise: Isotropic | Diagonal, *, holes: bool
) -> None:
    """The jumps of EM stay where variances are, however small the noise becomes."""
    codes = torch.eye(3)[torch.arange(12) % 3]
    y = codes if of == "one-hot" else torch.tensor([[0.0, 1.0, 2.0], [1.0, 3.0, 1.0]])
    y = torch.cat([y, -y], dim=1)
    if holes:
        y[0, 0] = torch.nan
    found = LinearGaussian(2, 6, noise)
    history = found.fit_em(
        (y - y.nanmean(dim=0)) / y.nanmean(dim=0).abs(), max_steps=200
    ).log_evidence
    assert history.isfinite().all()
    assert (history.diff() >= 0).all()
    assert (found.variance() >= noise.floor**2).all()


def test_constant_columns_stop_at_the_floor() -> None:
    """A column without spread gets the smallest noise there is, and nothing else breaks."""
    y = torch.randn(50, 4)
    y[:, 2] = 3.0
    model = LinearGaussian(1, 4, Diagonal(0.01))
    model.fit_em(y)
    assert abs(float(model.variance()[2].detach().sqrt()) - 0.01) < 1e-5
    assert abs(float(model.mean[2].detach()) - 3) < 1e-5
    assert model.log_evidence(y).isfinite().all()


@pytest.mark.parametrize("noise", [Isotropic(), Diagonal()], ids=str)
def test_few_rows_with_holes_of_large_numbers(noise: Isotropic | Diagonal) -> None:
    """The noise tends to zero, the loadings are 1e8 times the floor: nothing is singular."""
    finite = []
    for seed in (22, 82, 88, 122, 131):  # the first that could not be factorized with either noise
        torch.manual_seed(seed)
        y = 1e5 * (torch.randn(9, 2) @ torch.randn(2, 4) + 1).double()
        y = y.masked_fill(torch.rand(9, 4) < 0.3, torch.nan)
        y = y[~y.isnan().all(dim=1)]
        how = LinearGaussian(2, 4, noise).fit_em(y, max_steps=1000, tolerance=1e-6)
        finite.append(bool(how.log_evidence.isfinite().all()))
    assert all(finite)


def test_more_latents_than_features() -> None:
    """Those without use have no loadings."""
    model = LinearGaussian(5, 2, Diagonal())
    model.fit_em(torch.randn(40, 2) @ torch.tensor([[1.0, 0.5], [0.0, 1.0]]))
    assert (model.loadings[:, 2:] == 0).all()


@pytest.mark.filterwarnings("ignore")
@NOISES
def test_every_guide(noise: Isotropic | Diagonal) -> None:
    """It trains and evaluates as every other program, holes included."""
    y = holes(torch.randn(6, 5))
    indicator = pv.nets.MissingIndicator
    assert_works_under_every_guide(
        made(noise), (y,), lambda: indicator(pv.nets.MLPEncoder(10, (4,)))
    )


@pytest.mark.filterwarnings("ignore")
def test_comparison() -> None:
    """Guides side by side."""
    net = pv.nets.MLPEncoder
    assert_compares(made(Diagonal()), (torch.randn(6, 5),), lambda: net(5, (4,)))
