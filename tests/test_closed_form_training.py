"""Training under closed-form posteriors: EM by gradients, up to the maximum of the likelihood."""

import copy
import functools
import math
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam  # type: ignore[attr-defined]
from sklearn.datasets import load_iris, load_wine
from sklearn.decomposition import PCA, FactorAnalysis
from torch import Tensor

import pyro_vae as pv
from pyro_vae.guides.closed_form import (
    CoordinateAscent,
    ExactPosterior,
)
from pyro_vae.guides.families import Family, FullRankNormal
from pyro_vae.programs.modes import local_parameters
from pyro_vae.registry import arguments_of
from tests.helpers.cases import factor_analysis
from tests.helpers.factor_analysis import (
    LinearGaussian,
    amortization_gap,
    model_of,
    posterior_guide,
)
from tests.helpers.statistics import FACTS, FACTS_Y, assert_mean

float64 = pytest.mark.usefixtures("float64")

# In float64; sums of tens of terms of size one.
assert_exact = functools.partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)


# ---------------------------------------------------------------------- the E-step

FAMILIES = (FullRankNormal(), pv.DiagonalNormal())


@float64
def test_the_exact_posterior_has_no_gap() -> None:
    """Every weight is the evidence, whatever the draw; mean-field, the gap is the known one."""
    y = torch.cat([FACTS_Y, FACTS.sample(4)])
    model = model_of(FACTS)
    weights = pv.log_weights(model, posterior_guide(model, y), y, num_samples=3)
    assert_exact(weights, FACTS.log_evidence(y).expand(3, -1))
    mean_field = pv.Guide(model, ExactPosterior(), example=y)
    assert_exact(amortization_gap(FACTS, y, mean_field.parameters_of(y)), torch.zeros(5))


def test_families_without_an_answer() -> None:
    """By name, when the guide is made, with the remedy."""

    class Uniform:
        def num_parameters(self, latent_dim: int) -> int:
            return latent_dim

        def initial(self, loc: Tensor, scale: float = 1.0) -> Tensor:
            return loc

        def __call__(self, parameters: Tensor) -> Any:
            return dist.Normal(parameters, 1.0).to_event(1)

    message = r"of ExactPosterior must .* closest_normal\(loc, precision\); got Uniform, .*: use"
    with pytest.raises(TypeError, match=message):
        pv.Guide(factor_analysis, ExactPosterior(), Uniform(), example=FACTS_Y)
    message = r"must be pv\.DiagonalNormal\(\); got FullRankNormal: use pv\.ExactPosterior\(\)"
    with pytest.raises(TypeError, match=message):
        pv.Guide(factor_analysis, CoordinateAscent(), FullRankNormal(), example=FACTS_Y)


def evidence_gradient(model: LinearGaussian, y: Tensor) -> Tensor:
    """Of the sum of log p(y), by automatic differentiation of its closed form, flat."""
    total = model.facts.log_evidence(y).sum()
    parts = torch.autograd.grad(total, list(model.parameters()))
    return torch.cat([part.flatten() for part in parts])


def elbo_gradient(model: LinearGaussian, guide: pv.Guide, y: Tensor) -> Tensor:
    """Of the ELBO summed over data: the mean over q, without noise, flat.

    The log joint is quadratic in z, so its mean over N(m, L L') is its mean over the 2 d points
    m +- sqrt(d) L e_i.
    """
    q: Any = guide.family(guide.parameters_of(y))
    steps = q.scale_tril.permute(2, 0, 1) * q.event_shape[0] ** 0.5  # columns, (d, batch, d)
    z = torch.cat([q.loc + steps, q.loc - steps])
    with local_parameters(model):
        total = guide.program.log_joint(z, y).mean(dim=0).sum()
    parts = torch.autograd.grad(total, list(model.parameters()))
    return torch.cat([part.flatten() for part in parts])


@float64
def test_fishers_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the exact posterior the ELBO's gradient is that of log p(y); at another one it is not."""
    model, y = LinearGaussian(4, 2, 4), FACTS.sample(6)
    exact = evidence_gradient(model, y)
    assert_exact(elbo_gradient(model, posterior_guide(model, y), y), exact)
    stale = pv.Guide(copy.deepcopy(model), ExactPosterior(), FullRankNormal(), example=y)
    with torch.no_grad():
        model.loadings[0, 0] += 0.01
    guide = posterior_guide(model, y)
    assert_exact(elbo_gradient(model, guide, y), evidence_gradient(model, y))
    monkeypatch.setattr(guide.map, "infer", lambda program, batch, rows: stale.map(batch, rows))
    gradient = elbo_gradient(model, guide, y)
    with pytest.raises(AssertionError, match="not close"):
        assert_exact(gradient, evidence_gradient(model, y))


@float64
def test_the_loss_has_that_gradient() -> None:
    """Pyro's estimate of it from one draw per datum is unbiased; a mean-field q biases it."""
    model, y = LinearGaussian(4, 2, 4), FACTS.sample(3)
    with torch.no_grad():
        model.loadings.copy_(FACTS.loadings * 3)  # strong correlations, so a strong bias
    exact = evidence_gradient(model, y)

    def gradient(guide: pv.Guide) -> Tensor:
        with local_parameters(model, guide):
            loss = Trace_ELBO().differentiable_loss(model, guide, y)
        parts = torch.autograd.grad(-loss, list(model.parameters()))
        return torch.cat([part.flatten() for part in parts])

    guides = [pv.Guide(model, ExactPosterior(), family, example=y) for family in FAMILIES]
    full_rank, mean_field = (torch.stack([gradient(guide) for _ in range(100)]) for guide in guides)
    assert_mean(full_rank, exact)
    with pytest.raises(AssertionError, match="resolution"):
        assert_mean(mean_field, exact)


# ---------------------------------------------------------------------- training

MAPS: dict[str, Callable[[], tuple[pv.InferenceMap, Family]]] = {
    "exact": lambda: (ExactPosterior(), FullRankNormal()),
    "mean-field": lambda: (ExactPosterior(), pv.DiagonalNormal()),
    "ascent": lambda: (CoordinateAscent(), pv.DiagonalNormal()),
}


@float64
@pytest.mark.parametrize("name", MAPS)
def test_training_raises_the_evidence(name: str) -> None:
    """By `fit`, on batches; the guide answers for the model as it is now."""
    model, y = LinearGaussian(4, 2, 4), FACTS.sample(60)
    map, family = MAPS[name]()
    guide = pv.Guide(model, map, family, example=y)
    before = model.facts.log_evidence(y).mean()
    pv.fit(
        model, guide, y, num_epochs=25, batch_size=20, progress=False,
        optimizer=functools.partial(torch.optim.Adam, lr=0.05),
    )  # fmt: skip
    assert model.facts.log_evidence(y).mean() > before + 0.2
    torch.testing.assert_close(guide.mean(y), model.facts.posterior(y).loc, atol=1e-4, rtol=0)


@float64
@pytest.mark.usefixtures("user_param_store")
def test_a_loop_of_ones_own() -> None:
    """Pyro's SVI under its default settings, with parameters in its store."""
    model, y = LinearGaussian(4, 2, 4), FACTS.sample(60)
    guide = posterior_guide(model, y)
    before = model.facts.log_evidence(y).mean()
    svi = SVI(model, guide, Adam({"lr": 0.05}), Trace_ELBO())
    for rows in [*torch.arange(60).split(20)] * 20:
        with pv.minibatch(rows, num_data=60):
            svi.step(y[rows])
    assert model.facts.log_evidence(y).mean() > before + 0.2
    assert_exact(guide.mean(y), model.facts.posterior(y).loc.detach())


@float64
def test_compare_takes_them() -> None:
    """Each map trains its own copy of the model; the copy of the guide follows that copy."""
    model, y = LinearGaussian(4, 2, 4), FACTS.sample(40)
    start = copy.deepcopy(model.state_dict())
    table = pv.compare(
        model, {name: make() for name, make in MAPS.items()}, y[:30], y[30:], num_epochs=3,
        evaluation=pv.ImportanceSampling(20), progress=False,
    )  # fmt: skip
    for name, value in model.state_dict().items():
        assert torch.equal(value, start[name]), name
    exact = table.results["exact"]
    trained: Any = exact.model
    assert not torch.equal(trained.loadings, start["loadings"])
    assert_exact(exact.test.bound.elbo.value, trained.facts.log_evidence(y[30:]).detach())


@float64
def test_copies_follow_their_model() -> None:
    """A guide and its model copied together; nothing is kept in the state of either map."""
    model, y = LinearGaussian(4, 2, 4), torch.randn(3, 4)
    copied, guide = copy.deepcopy((model, posterior_guide(model, y)))
    with torch.no_grad():
        copied.loadings.mul_(2)
    assert_exact(guide.mean(y), copied.facts.posterior(y).loc.detach())
    assert list(guide.state_dict()) == []
    assert arguments_of(CoordinateAscent(sweeps=3)) == {"sweeps": 3, "tolerance": 1e-6}
    assert arguments_of(ExactPosterior()) == {}


# ---------------------------------------------------------------------- EM on measurements


def standardized(name: str) -> Tensor:
    """A data set of scikit-learn, every feature with mean 0 and variance 1."""
    values = {"iris": load_iris, "wine": load_wine}[name]().data
    return torch.as_tensor((values - values.mean(axis=0)) / values.std(axis=0))


def em(y: Tensor, latents: int, num_sigmas: int, *, num_epochs: int, seed: int) -> float:
    """The exact mean log-likelihood after EM by gradients, in nats per datum."""
    model = LinearGaussian(y.shape[1], latents, num_sigmas)
    objective = Trace_ELBO(num_particles=20, vectorize_particles=True, max_plate_nesting=1)
    pv.fit(
        model, posterior_guide(model, y), y, num_epochs=num_epochs, batch_size=len(y), seed=seed,
        objective=objective, optimizer=functools.partial(torch.optim.Adam, lr=0.05), progress=False,
    )  # fmt: skip
    return model.facts.log_evidence(y).mean().item()


def most_likely_pca(y: Tensor, latents: int) -> float:
    """The maximum of probabilistic PCA, from the eigenvalues of the covariance."""
    values = torch.linalg.eigvalsh(y.T @ y / len(y)).flip(0)
    values[latents:] = values[latents:].mean()  # the noise
    return -float((math.log(2 * math.pi) + 1 + values.log()).sum()) / 2


@float64
@pytest.mark.parametrize(
    ("name", "latents", "num_epochs", "tolerance"),
    [
        ("iris", 1, 120, 0.01),
        pytest.param("iris", 2, 400, 0.002, marks=pytest.mark.slow),
        pytest.param("wine", 3, 400, 0.002, marks=pytest.mark.slow),
    ],
)
def test_em_reaches_the_maximum_of_pca(
    name: str, latents: int, num_epochs: int, tolerance: float, seed: int
) -> None:
    """Probabilistic PCA: the maximum of the likelihood, which is `PCA.score` up to n - 1.

    scikit-learn divides the covariance by n - 1, which lowers its score by a known amount: at
    covariance c times the best one, c = n / (n - 1), by D (log c + 1 / c - 1) / 2.
    """
    y = standardized(name)
    best, ratio = most_likely_pca(y, latents), len(y) / (len(y) - 1)
    lost = y.shape[1] * (math.log(ratio) + 1 / ratio - 1) / 2
    assert PCA(latents).fit(y.numpy()).score(y.numpy()) == pytest.approx(best - lost, abs=1e-10)
    reached = em(y, latents, 1, num_epochs=num_epochs, seed=seed)
    assert best - tolerance < reached < best + 1e-10


@float64
@pytest.mark.slow
@pytest.mark.parametrize(("name", "latents"), [("iris", 1), ("wine", 3)])
def test_em_reaches_the_maximum_of_factor_analysis(name: str, latents: int, seed: int) -> None:
    """A variance for each feature: the likelihood that scikit-learn's own EM converges to."""
    y = standardized(name)
    theirs = FactorAnalysis(latents, tol=1e-3, max_iter=20_000, svd_method="lapack")
    best = theirs.fit(y.numpy()).score(y.numpy())
    reached = em(y, latents, y.shape[1], num_epochs=400, seed=seed)
    assert reached == pytest.approx(best, abs=0.01)
