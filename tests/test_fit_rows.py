"""Fitting q to every datum: noise that stays fixed, and the climb to the optimum of each.

The exact answers are the mean-field optimum of factor analysis, which whitened noise reaches to
rounding and plain noise misses, and that of a Gamma-Poisson model.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.transforms import AffineAutoregressive, AffineTransform
from pyro.nn import AutoRegressiveNN
from scipy import stats
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae._types import Distribution
from pyro_vae.guides import Family, optimization
from pyro_vae.guides.optimization import Problem
from pyro_vae.guides.reparameterization import (
    NormalNoise,
    even_noise,
    fixed_noise,
    noise_size,
    reparameterize,
)
from pyro_vae.guides.row_fits import RowFit, fit_parameters, refine_parameters
from pyro_vae.programs import Program, evaluating
from tests.helpers.cases import gamma
from tests.helpers.factor_analysis import amortization_gap, model_of
from tests.helpers.statistics import FACTS, FactorAnalysis, assert_coverage, assert_mean

float64 = pytest.mark.usefixtures("float64")

# ------------------------------------------------------------------------------------- noise


@pytest.mark.parametrize(("points", "size"), [(4, 2), (32, 2), (40, 20), (7, 1)])
def test_even_noise_is_white(seed: int, points: int, size: int) -> None:
    """Mean zero and covariance one, to rounding; an odd number is rounded up."""
    stream = torch.get_rng_state()
    noise = even_noise(points, size, seed=seed)
    assert torch.equal(torch.get_rng_state(), stream)
    assert len(noise) == points + points % 2
    assert noise.mean(dim=0).abs().max() < 1e-14
    covariance = noise.T @ noise / len(noise)
    assert (covariance - torch.eye(size, dtype=torch.float64)).abs().max() < 1e-10
    assert torch.equal(noise, even_noise(points, size, seed=seed))
    assert size == points or not torch.equal(noise, even_noise(points, size, seed=seed + 1))


def test_few_points_have_unit_variances() -> None:
    """Fewer than two a dimension cannot have the covariance of a normal."""
    noise = even_noise(6, 5)
    assert (noise.square().mean(dim=0) - 1).abs().max() < 1e-12
    with pytest.raises(ValueError, match="must be at least 1; got 0"):
        even_noise(0, 2)


def flow(base: Any) -> Any:
    """An affine autoregressive flow over a normal, then a shift and a scale of every datum."""
    pyro.set_rng_seed(0)
    autoregressive = AffineAutoregressive(AutoRegressiveNN(2, [8]), stable=True)
    affine = AffineTransform(base.mean, base.stddev, event_dim=1)
    normal = dist.Normal(torch.zeros(3, 2), 1.0).to_event(1)
    return dist.TransformedDistribution(normal, [autoregressive, affine])


def distributions() -> dict[str, tuple[Any, int]]:
    """Three rows of two latents each, and the normals that a draw is made of."""
    loc, scale = torch.arange(6.0).view(3, 2), torch.tensor([[1.0, 2.0], [0.1, 3.0], [1.0, 1.0]])
    diagonal = dist.Normal(loc, scale).to_event(1)
    affine = AffineTransform(1.0, torch.tensor([2.0, -3.0]), event_dim=1)
    tril = torch.tensor([[2.0, 0.0], [-1.0, 0.5]])
    factor = torch.tensor([[1.0, 0.0, 2.0], [-1.0, 0.5, 0.0]])
    return {
        "normal": (diagonal, 2),
        "full-rank": (dist.MultivariateNormal(loc, scale_tril=tril), 2),
        "low-rank": (dist.LowRankMultivariateNormal(loc, factor, scale), 5),
        "affine": (dist.TransformedDistribution(diagonal, [affine]), 2),
        "log-normal": (dist.LogNormal(loc, scale).to_event(1), 2),
        "flow": (flow(diagonal), 2),
    }


NAMES = ["normal", "full-rank", "low-rank", "affine", "log-normal", "flow"]


@float64
@pytest.mark.parametrize("name", ["normal", "full-rank", "low-rank", "affine"])
def test_pushed_moments_are_exact(name: str) -> None:
    """White noise pushed through a normal has its mean and covariance, to rounding."""
    q, size = distributions()[name]
    z = reparameterize(q, even_noise(32, size).unsqueeze(1))
    flip = torch.tensor([2.0, -3.0])
    if name == "affine":
        base = q.base_dist
        mean, covariance = 1 + flip * base.mean, (flip**2 * base.variance).diag_embed()
    else:
        mean = q.mean
        covariance = q.variance.diag_embed() if name == "normal" else q.covariance_matrix
    centred = z - z.mean(dim=0)
    torch.testing.assert_close(z.mean(dim=0), mean)
    torch.testing.assert_close(
        torch.einsum("kni,knj->nij", centred, centred) / 32, covariance.expand(3, 2, 2)
    )


@float64
@pytest.mark.parametrize("name", NAMES)
def test_push_is_what_rsample_does(name: str) -> None:
    """The density of what comes out is that of the noise less the log determinant of the map."""
    q, size = distributions()[name]
    assert noise_size(q) == size
    noise = torch.randn(4, 3, size)
    z = reparameterize(q, noise)
    assert z.shape == (4, 3, 2)
    if size != 2:
        return  # more normals than latents: no change of variables; the moments say all
    jacobian: Any = torch.autograd.functional.jacobian(partial(reparameterize, q), noise)
    rows = torch.stack(
        [torch.stack([jacobian[k, n, :, k, n, :] for n in range(3)]) for k in range(4)]
    )
    expected = dist.Normal(0.0, 1.0).log_prob(noise).sum(-1) - rows.det().abs().log()
    torch.testing.assert_close(q.log_prob(z), expected)


def test_what_is_not_made_of_normals() -> None:
    """It is drawn from by seed: the same for every row, and whatever rows are beside it."""
    q = dist.Laplace(torch.zeros(3, 2), 1.0).to_event(1)
    assert noise_size(q) is None
    with pytest.raises(TypeError, match="Laplace is not known to be"):
        reparameterize(q, torch.zeros(1, 3, 2))
    noise = fixed_noise(q, 5, torch.zeros(0), seed=3)
    _, z = noise(lambda loc: dist.Laplace(loc, 1.0).to_event(1), torch.zeros(3, 2))
    assert torch.equal(z[:, 0], z[:, 2])


# --------------------------------------------------------------------------------- the optimum


class Plain:
    """The diagonal normal as a user may write it, who knows nothing of closest normals."""

    def num_parameters(self, latent_dim: int) -> int:
        """Two a latent."""
        return 2 * latent_dim

    def initial(self, loc: Tensor, scale: float = 1.0) -> Tensor:
        """This location, and the same scale for all."""
        return torch.cat([loc, torch.full_like(loc, math.log(scale))])

    def __call__(self, parameters: Tensor) -> Distribution:
        """Means, and log standard deviations."""
        loc, log_scale = parameters.chunk(2, dim=-1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)


class Laplace(Plain):
    """A family whose draws are no transformation of normals that the library knows."""

    def __call__(self, parameters: Tensor) -> Distribution:
        """Locations, and log scales."""
        loc, log_scale = parameters.chunk(2, dim=-1)
        return dist.Laplace(loc, log_scale.exp()).to_event(1)


def fitted(
    y: Tensor,
    start: Tensor,
    method: pv.FitRows | None = None,
    *,
    model: Callable[..., Any] | None = None,
    family: Family | None = None,
    seed: int = 0,
    refit: bool = True,
) -> RowFit:
    """Fits rows of factor analysis, unless told otherwise."""
    program = Program(model or model_of(FACTS), y[:1])
    how = method or pv.FitRows()
    own = family or pv.DiagonalNormal()
    return fit_parameters(program, own, (y,), start, how, seed=seed, refit=refit)


def at_prior(y: Tensor, latents: int = 2) -> Tensor:
    """N(0, I) for every datum."""
    return y.new_zeros(len(y), 2 * latents)


def far_off(y: Tensor) -> Tensor:
    """Means five prior standard deviations away, and scales from a tenth of it to ten."""
    return torch.cat([5 * torch.randn(len(y), 2), torch.empty(len(y), 2).uniform_(-2.3, 2.3)], -1)


@float64
@pytest.mark.parametrize("start", [at_prior, far_off])
def test_every_datum_reaches_its_optimum(start: Callable[[Tensor], Tensor]) -> None:
    """The best mean-field q of factor analysis, to rounding, and nothing global is touched."""
    y = FACTS.sample(50)
    first = start(y)
    stream = torch.get_rng_state()
    fit = fitted(y, first)
    assert torch.equal(torch.get_rng_state(), stream)
    assert fit.converged.all()
    assert fit.steps <= 3
    assert amortization_gap(FACTS, y, fit.parameters).max() < 1e-8


def plain_noise(q: Distribution, num_points: int, like: Tensor, *, seed: int = 0) -> NormalNoise:
    """Independent normals, as they come."""
    return NormalNoise(torch.randn(num_points, 1, q.event_shape[0]).to(like))


@float64
def test_plain_noise_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same check fails where the noise was not made white."""
    monkeypatch.setattr(optimization, "fixed_noise", plain_noise)
    y = FACTS.sample(50)
    fit = fitted(y, at_prior(y))
    assert amortization_gap(FACTS, y, fit.parameters).max() > 1e-4


@float64
@pytest.mark.parametrize("noise", [1.0, 1e-2, 1e-4])
@pytest.mark.parametrize("latents", [2, 8, 20])
def test_posteriors_narrow_and_correlated(latents: int, noise: float) -> None:
    """From the prior to a hundredth of its width; points are raised to two a latent."""
    shape = (3 * latents, latents)
    facts = FactorAnalysis(torch.randn(shape), torch.zeros(shape[0]), torch.full(shape[:1], noise))
    y = facts.sample(20)
    fit = fitted(y, at_prior(y, latents), model=model_of(facts))
    assert fit.converged.all()
    assert amortization_gap(facts, y, fit.parameters).max() < 1e-8


@float64
def test_a_family_of_ones_own() -> None:
    """Without `closest_normal` L-BFGS gets as far as its tolerance says, and to the same place."""
    y = FACTS.sample(50)
    start = far_off(y)
    rough = fitted(y, start, family=Plain())
    assert rough.converged.all()
    # The promised gain leaves out what neighbours in q's metric do not know of one another.
    assert amortization_gap(FACTS, y, rough.parameters).max() < 10 * pv.FitRows().tolerance
    fine = fitted(y, start, pv.FitRows(tolerance=1e-10), family=Plain())
    assert amortization_gap(FACTS, y, fine.parameters).max() < 1e-8


def test_float32() -> None:
    """Single precision costs what its rounding does."""
    y = FACTS.sample(50)
    facts = FactorAnalysis(FACTS.loadings.float(), FACTS.mean.float(), FACTS.noise_variance.float())
    fit = fitted(y.float(), at_prior(y.float()), model=model_of(facts))
    assert fit.parameters.dtype == torch.float32
    assert fit.elbo.dtype == torch.float64
    assert fit.converged.all()
    assert amortization_gap(FACTS, y, fit.parameters.double()).max() < 1e-6


@float64
def test_a_constrained_latent() -> None:
    """A normal q of the log rate, where E[e^z] is known: see test_local_parameters.py."""
    y = torch.tensor([0.0, 1.0, 3.0, 20.0])
    shape = 2 + y
    for num_particles, tolerance in ((32, 2e-3), (512, 2e-4)):  # what the points leave, in nats
        fit = fitted(y, at_prior(y, 1), pv.FitRows(num_particles, tolerance=1e-8), model=gamma)
        assert fit.converged.all()
        loc, log_scale = fit.parameters.unbind(-1)
        elbo = shape * loc - 4 * (loc + (2 * log_scale).exp() / 2).exp() + log_scale
        best_loc, best_log_scale = (shape / 4).log() - 1 / (2 * shape), -shape.log() / 2
        best = shape * best_loc - shape + best_log_scale
        assert (best - elbo).min() >= -1e-12
        assert (best - elbo).max() < tolerance


@float64
@pytest.mark.parametrize("family", [Plain(), Laplace()], ids=["Plain", "Laplace"])
def test_what_is_found_is_a_maximum(family: Family) -> None:
    """Over the noise of the fit: no slope, and lower all around."""
    y = FACTS.sample(5)
    method = pv.FitRows(tolerance=1e-9)
    stream = torch.get_rng_state()
    fit = fitted(y, at_prior(y), method, family=family, refit=False)
    assert torch.equal(torch.get_rng_state(), stream)
    assert fit.converged.all()
    program = Program(model_of(FACTS), y)
    problem = Problem.of(program, family, (y,), at_prior(y), method, 0)
    with torch.random.fork_rng():
        top = problem(fit.parameters)
        assert top.gradient.abs().max() < 1e-3
        for move in 0.01 * torch.cat([torch.eye(4), -torch.eye(4)]):
            assert (problem(fit.parameters + move).elbo < top.elbo).all()


# --------------------------------------------------------------------------- rows are independent


@float64
@pytest.mark.parametrize("family", [pv.DiagonalNormal(), Plain(), Laplace()], ids=type)
def test_order_pieces_and_company_do_not_matter(family: Family) -> None:
    """The same datum has the same answer, to rounding, and the same draws in its estimate."""
    y = torch.cat([FACTS.sample(6), FACTS.sample(1).expand(1, -1)])
    start, few = at_prior(y), pv.FitRows(max_steps=5)
    whole = fitted(y, start, few, family=family)
    backward = fitted(y.flip(0), start, few, family=family)
    pieces = fitted(y, start, pv.FitRows(max_steps=5, max_rows=200), family=family)
    alone = fitted(y[2:3], start[:1], few, family=family)
    for name in ("parameters", "elbo", "error", "converged"):
        expected = getattr(whole, name)
        torch.testing.assert_close(getattr(backward, name).flip(0), expected)
        torch.testing.assert_close(getattr(pieces, name), expected)
        torch.testing.assert_close(getattr(alone, name), expected[2:3])


def test_the_seed_says_it_all(seed: int) -> None:
    """The same seed the same answer, whatever the stream does; another seed another estimate."""
    y = FACTS.sample(3)
    first, second, other = (fitted(y, at_prior(y), seed=each) for each in (seed, seed, seed + 1))
    assert torch.equal(first.elbo, second.elbo)
    assert torch.equal(first.parameters, second.parameters)
    assert not torch.equal(first.elbo, other.elbo)


@float64
def test_a_second_fit_moves_nothing() -> None:
    """A datum that is done at the start stays there, bit by bit; one that is not is fitted."""
    y = FACTS.sample(20)
    first = fitted(y, at_prior(y))
    start = first.parameters.clone()
    start[3] += 1.0
    again = fitted(y, start)
    others = torch.arange(20) != 3
    assert torch.equal(again.parameters[others], first.parameters[others])
    torch.testing.assert_close(again.parameters, first.parameters, rtol=0, atol=1e-6)


# ------------------------------------------------------------------------------ what it reports


def exact_elbo(y: Tensor, parameters: Tensor) -> Tensor:
    """Of a mean-field q of factor analysis, `(batch,)`."""
    best = FACTS.log_evidence(y) - FACTS.mean_field_gap()
    return best - amortization_gap(FACTS, y, parameters)


@float64
def test_error_bars_cover() -> None:
    """Over data, whose fresh draws are independent."""
    y = FACTS.sample(600)
    fit = fitted(y, at_prior(y))
    width = stats.t.ppf(0.975, df=63) * fit.error
    assert_coverage((fit.elbo - exact_elbo(y, fit.parameters)).abs() < width)


@float64
@pytest.mark.parametrize("is_fresh", [True, False], ids=["fresh", "of-the-fit"])
@pytest.mark.slow
def test_the_value_over_the_noise_of_the_fit_is_optimistic(
    monkeypatch: pytest.MonkeyPatch,
    is_fresh: bool,  # noqa: FBT001
) -> None:
    """Over few plain points the optimum looks better than it is; fresh draws tell the truth.

    The chance of the points themselves is taken out: how good the true optimum looks over them.
    """
    y, program = FACTS.sample(1), Program(model_of(FACTS), FACTS.sample(1))
    start, few = at_prior(y), pv.FitRows(num_particles=8)
    best = fitted(y, start).parameters
    monkeypatch.setattr(optimization, "fixed_noise", plain_noise)
    excess = []
    for seed in range(40):
        problem = Problem.of(program, pv.DiagonalNormal(), (y,), start, pv.FitRows(8), seed)
        optimizer = optimization.maximize(problem, start, few)
        if is_fresh:
            value, chance = (
                problem.fresh_elbo(optimizer.parameters, torch.tensor([seed]))[0],
                torch.zeros(1),
            )
        else:
            value, chance = optimizer.elbo, problem(best).elbo - exact_elbo(y, best)
        excess.append(value - exact_elbo(y, optimizer.parameters) - chance)
    if is_fresh:
        assert_mean(torch.stack(excess), 0.0)
    else:
        with pytest.raises(AssertionError, match="resolution"):
            # A few are very large: cutting them lowers the mean, and the spread by far more.
            assert_mean(torch.stack(excess).clamp(max=0.5), 0.0)


@float64
def test_a_short_fit_says_so() -> None:
    """Of ten data one starts at its optimum: it alone is done without a step."""
    y = FACTS.sample(10)
    start = at_prior(y)
    start[4] = fitted(y, start).parameters[4]
    short = fitted(y, start, pv.FitRows(max_steps=0))
    assert short.steps == 0
    assert torch.equal(short.parameters, start)
    assert short.converged.tolist() == [row == 4 for row in range(10)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_particles": 0}, "`num_particles` must be a whole number of at least 1; got 0"),
        ({"max_steps": -1}, "`max_steps` must be a whole number of at least 0; got -1"),
        ({"history": 0}, "`history` must be a whole number of at least 1"),
        ({"max_rows": 0}, "`max_rows` must be a whole number of at least 1"),
        ({"tolerance": 0.0}, "`tolerance` must be a number above 0; got 0"),
    ],
)
def test_numbers_that_mean_nothing(options: dict[str, Any], message: str) -> None:
    """They are refused."""
    with pytest.raises(ValueError, match=message):
        pv.FitRows(**options)


# ----------------------------------------------------------------------------- hard programs


def factor_model(log_likelihood: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor], None]:
    """One standard normal latent, and any log likelihood."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(y.new_zeros(()), 1.0, validate_args=False))
            pyro.factor("likelihood", log_likelihood(y, z))

    return model


def square(y: Tensor, z: Tensor) -> Tensor:
    """Two modes, at the roots of y, and a minimum between them."""
    return -50 * (y - z**2) ** 2


def cliff(y: Tensor, z: Tensor) -> Tensor:
    """Nan below minus five, and a slope that draws far beyond it."""
    return torch.where(z < -5, torch.nan, -y * z)


@float64
@pytest.mark.parametrize("likelihood", [square, cliff])
@pytest.mark.parametrize("family", [pv.DiagonalNormal(), Plain()], ids=type)
def test_never_below_the_start(
    likelihood: Callable[[Tensor, Tensor], Tensor], family: Family
) -> None:
    """Between two modes, where Newton's method would go down; and beside a cliff of nan."""
    y, model = torch.tensor([0.5, 1.0, 2.0]), factor_model(likelihood)
    start = torch.tensor([[0.3, -3.0]]).expand(3, -1)
    fit = fitted(y, start, model=model, family=family)
    problem = Problem.of(Program(model, y), family, (y,), start, pv.FitRows(), 0)
    with pyro.validation_enabled(is_validate=False):  # far from the fit the cliff is nan
        assert (problem(fit.parameters).elbo > problem(start).elbo).all()
    if likelihood is square:
        assert fit.converged.all()
        # The maximum of the ELBO, in closed form by the moments of z of order 2 and 4.
        optimum = torch.tensor([[0.692354, 0.072217], [0.993682, 0.050318], [1.411111, 0.035433]])
        torch.testing.assert_close(fit.parameters[:, 0], optimum[:, 0], rtol=0, atol=0.003)
        torch.testing.assert_close(fit.parameters[:, 1].exp(), optimum[:, 1], rtol=0.03, atol=0)


def broken(y: Tensor, z: Tensor) -> Tensor:
    """Nan for a negative datum."""
    return torch.where(y < 0, torch.nan, -((y - z) ** 2))


def test_a_start_that_is_not_finite() -> None:
    """Its row is named, also in a later piece."""
    y = torch.tensor([1.0, 1.0, 1.0, -1.0])
    for max_rows in (10_000, 128):  # all at once, and in twos
        with pytest.raises(FloatingPointError, match=r"first in row 3 \(ELBO nan"):
            fitted(y, at_prior(y, 1), pv.FitRows(max_rows=max_rows), model=factor_model(broken))


def test_data_outside_the_support() -> None:
    """They are refused by the likelihood, as anywhere else, and no fit goes on without it."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(y.new_zeros(()), 1.0))
            pyro.sample("y", dist.Bernoulli(logits=z), obs=y)

    program, family = Program(model, torch.ones(1)), pv.DiagonalNormal()
    y = torch.tensor([1.0, 7.0])
    with pytest.raises(ValueError, match="support"):
        fit_parameters(program, family, (y,), at_prior(y, 1), pv.FitRows())


def test_pictures() -> None:
    """A decoder with hidden units, in single precision: all converge, none below its start."""
    last = nn.Linear(16, 20)
    nn.init.normal_(last.weight)  # so large that posteriors are far from normal
    decoder = nn.Sequential(nn.Linear(2, 16), nn.ELU(), last)
    model = pv.models.VAE(decoder, pv.likelihoods.Bernoulli(), latent_dim=2)
    y, start = model.sample(50), far_off(torch.zeros(50, 1))
    fit = fitted(y, start, model=model)
    assert fit.converged.float().mean() > 0.9
    program = Program(model, y)
    problem = Problem.of(program, pv.DiagonalNormal(), (y,), start, pv.FitRows(), 0)
    with evaluating(model):
        after, before = problem(fit.parameters).elbo, problem(start).elbo
    assert (after >= before - 1e-4).all()


# ------------------------------------------------------------------------------- a few steps only


def test_refined_parameters() -> None:
    """More steps never do worse; the same answer always, without a gradient or a draw."""
    decoder = nn.Sequential(nn.Linear(2, 16), nn.ELU(), nn.Linear(16, 20))
    model = pv.models.VAE(decoder, pv.likelihoods.Bernoulli(), latent_dim=2)
    y, start = model.sample(8), 0.1 * torch.randn(8, 4)
    program, family = Program(model, y), pv.DiagonalNormal()
    start.requires_grad_()
    stream = torch.get_rng_state()
    answers = [refine_parameters(program, family, (y,), start, steps) for steps in (0, 1, 2, 4)]
    assert torch.equal(torch.get_rng_state(), stream)
    assert model.training
    assert all(value.grad is None for value in [*model.parameters(), start])
    with torch.no_grad():
        again = refine_parameters(program, family, (y,), start, 1)
    assert torch.equal(again, answers[1])
    assert not any(answer.requires_grad for answer in answers)
    assert torch.equal(answers[0], start)
    problem = Problem.of(program, family, (y,), start, pv.FitRows(8), 0)
    with evaluating(model):
        values = torch.stack([problem(answer).elbo for answer in answers])
    assert (values.diff(dim=0) > -1e-4).all()
    assert (values[1] > values[0]).all()
