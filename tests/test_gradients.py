"""Noise of gradients: exact variances, slopes over particles, and errors that cover."""

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import ELBO, Trace_ELBO, TraceGraph_ELBO
from scipy import stats
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae._types import Estimate, ProgramLike
from pyro_vae.diagnostics.gradients import GradientNoise, _Sums, gradient_noise, score_function
from tests.helpers.factor_analysis import mean_field_net, model_of
from tests.helpers.statistics import FACTS, FACTS_Y, FALSE_ALARM, assert_coverage

float64 = pytest.mark.usefixtures("float64")
BLOCKS = 32  # of the jackknife, where there are as many repeats


def assert_estimate(estimate: Estimate, expected: float, blocks: int = BLOCKS) -> None:
    """A correct estimate fails with probability `FALSE_ALARM`: its error has few blocks."""
    value, error = (float(part) for part in estimate)
    z, limit = (value - expected) / error, stats.t.isf(FALSE_ALARM / 2, df=blocks - 1)
    assert abs(z) < limit, f"z = {z:.1f}, limit {limit:.1f}; resolution {limit * error:.2g}"


# ------------------------------------------------------------------------- exact variances

ROWS = 300  # data with a mean of their own each: as many independent gradients a repeat


def quadratic(dim: int) -> ProgramLike:
    r"""A program with :math:`\log p - \log q = -|z|^2 / 2` for the guide N(0, I)."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(torch.zeros(dim), 1.0).to_event(1))
            pyro.factor("f", -z.square().sum(-1) / 2)

    return model


def normal_guide(loc: Tensor, baseline: float | None = None) -> ProgramLike:
    """N(loc, I), a row of `loc` for each datum."""

    def guide(y: Tensor) -> None:
        infer: Any = {}
        if baseline is not None:
            infer["baseline"] = {"baseline_value": torch.full((len(y),), baseline)}
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1), infer=infer)

    return guide


def variance(objective: ELBO, dim: int, wrap: Any, baseline: float | None = None) -> Estimate:
    """Variance of the gradient of one datum by an entry of its mean."""
    loc = torch.zeros(ROWS, dim, requires_grad=True)
    guide = wrap(normal_guide(loc, baseline))
    y = torch.zeros(ROWS, 1)
    noise = gradient_noise(objective, quadratic(dim), guide, y, num_repeats=64)
    return Estimate(*(part * ROWS**2 for part in noise.variance))  # of the mean over data


def as_it_is(guide: ProgramLike) -> ProgramLike:
    """Leaves the path in."""
    return guide


@float64
@pytest.mark.parametrize("dim", [1, 6])
def test_exact_variances(dim: int) -> None:
    """Along the path of f alone 1, score function (d + 2)(d + 4) / 4, with a baseline (d + 2) / 2.

    The plain gradient differentiates the prior too, which doubles it; each is caught as another.
    """
    score = (dim + 2) * (dim + 4) / 4
    found = {
        1.0: variance(pv.STL(), dim, as_it_is),
        4.0: variance(Trace_ELBO(), dim, as_it_is),
        score: variance(Trace_ELBO(), dim, score_function),
        (dim + 2) / 2: variance(TraceGraph_ELBO(), dim, score_function, -(dim + 2) / 2),
    }
    for exact, estimate in found.items():
        assert_estimate(estimate, exact)
        assert float(estimate.error) < 0.1 * exact
    with pytest.raises(AssertionError, match="resolution"):
        assert_estimate(found[4.0], 1.0)
    with pytest.raises(AssertionError, match="resolution"):
        assert_estimate(found[score], (dim + 2) / 2)


# --------------------------------------------------------------------- ratios over particles


def away_from_optimum() -> tuple[ProgramLike, Tensor]:
    """A guide that is too wide, for weights that are bounded, with shared parameters."""
    parameters = (mean_field_net(FACTS)(FACTS_Y).detach()[0] + 0.5).requires_grad_()

    def guide(y: Tensor) -> None:
        loc, log_scale = parameters.chunk(2)
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(loc.expand(len(y), -1), log_scale.exp()).to_event(1))

    return guide, parameters


def norm_ratio(sums: _Sums) -> Tensor:
    """Length of the mean gradient, without its noise, over the root of the summed variances."""
    noise = sums.variance.sum()
    signal = (sums.mean.square().sum() - noise / sums.count).clamp(min=0)
    return (signal / noise).sqrt()


def slope(make: Callable[[int], ELBO], counts: list[int], copies: int) -> Estimate:
    """Slope of the logarithm of the ratio over that of K, by weighted least squares.

    The average over copies of one datum has the root of their number times its ratio.
    """
    model, (guide, _) = model_of(FACTS), away_from_optimum()
    y = FACTS_Y.expand(copies, -1)
    ratios = [
        gradient_noise(make(particles), model, guide, y, num_repeats=64)._estimate(norm_ratio)
        for particles in counts
    ]
    logs = torch.stack([ratio.value.log() for ratio in ratios])
    weights = torch.stack([(ratio.value / ratio.error) ** 2 for ratio in ratios])
    x = torch.tensor(counts).double().log()
    x = x - (weights * x).sum() / weights.sum()
    precision = (weights * x.square()).sum()
    return Estimate((weights * x * logs).sum() / precision, precision.rsqrt())


@pytest.mark.slow
@float64
def test_ratios_over_particles() -> None:
    """That of IWAE falls with the root of K, and that of DReG grows; either is not the other's."""
    plain = slope(pv.IWAE, [8, 32, 128], copies=150)
    double = slope(pv.DReG, [16, 64, 256], copies=20)
    assert_estimate(plain, -0.5)
    assert_estimate(double, 0.5)
    for estimate, wrong in ((plain, 0.5), (double, -0.5)):
        with pytest.raises(AssertionError, match="resolution"):
            assert_estimate(estimate, wrong)


@float64
def test_path_gradients_have_no_noise_at_the_posterior() -> None:
    """STL and DReG are zero for every draw there; the plain gradient is not."""
    posterior = FACTS.posterior(FACTS_Y)
    loc = posterior.loc[0].clone().requires_grad_()
    tril = torch.linalg.cholesky(posterior.covariance_matrix[0]).requires_grad_()

    def guide(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            q = dist.MultivariateNormal(loc.expand(len(y), -1), scale_tril=tril)
            pyro.sample("z", q)

    def noise(objective: ELBO) -> GradientNoise:
        return gradient_noise(objective, model_of(FACTS), guide, FACTS_Y, num_repeats=5)

    for objective in (pv.STL(), pv.DReG(4)):
        assert float(noise(objective).variance.value) < 1e-20
    assert float(noise(pv.IWAE(1)).variance.value) > 1e-2


# ----------------------------------------------------------------------------------- errors


@float64
def test_errors_cover() -> None:
    """Of the mean, the variance and the ratio, each with its t interval, over many gradients."""
    dim, rows, shift = 2, 200, 0.4
    loc = torch.full((rows, dim), shift, requires_grad=True)
    y = torch.zeros(rows, 1)
    noise = gradient_noise(pv.STL(), quadratic(dim), normal_guide(loc), y, num_repeats=128)
    (name,) = noise.shapes
    part = noise.parameter(name)
    # Along the path log p - log q has the derivative -2 z + (z - loc), so the loss z + loc.
    expected = {"mean": 2 * shift / rows, "variance": 1 / rows**2, "signal_to_noise": 2 * shift}
    limit = stats.t.isf(0.025, df=BLOCKS - 1)
    for field, exact in expected.items():
        value, error = getattr(part, field)
        assert_coverage((value - exact).abs() < limit * error)
        with pytest.raises(AssertionError, match="resolution"):
            assert_coverage((value - exact).abs() < 0.6 * limit * error)


@float64
def test_averages_are_those_of_the_entries() -> None:
    """Parts, averages and the floor, against the entries."""
    model = pv.models.VAE(nn.Linear(1, 3), pv.likelihoods.Bernoulli(), latent_dim=1)
    guide = pv.Guide(model, pv.Encoder(nn.Linear(3, 2)))
    y = torch.ones(4, 3)
    noise = gradient_noise(pv.IWAE(3), model, guide, y, num_repeats=40)
    assert [name.split(".")[0] for name in noise.shapes] == ["guide", "guide", "model", "model"]
    parts = [noise.parameter(name) for name in noise.shapes]
    for part, (name, shape) in zip(parts, noise.shapes.items(), strict=True):
        assert part.mean.value.shape == part.variance.error.shape == shape, name
    ratios = torch.cat([part.signal_to_noise.value.flatten() for part in parts])
    torch.testing.assert_close(noise.signal_to_noise.value, ratios.mean())
    own = noise.of("model")
    assert list(own.shapes) == ["model.decoder.weight", "model.decoder.bias"]
    variances = torch.cat([part.variance.value.flatten() for part in parts[2:]])
    torch.testing.assert_close(own.variance.value, variances.mean())
    assert noise.floor == pytest.approx(math.sqrt(2 / (math.pi * 40)))
    with pytest.raises(ValueError, match="no parameter has a name that starts with 'decoder'"):
        noise.of("decoder")


@float64
def test_blocks_do_not_matter_for_values() -> None:
    """Mean and variance are those of all repeats, whatever the origin that is taken off."""
    loc = torch.full((1, 2), 1e6, requires_grad=True)  # a mean far from zero
    guide, y = normal_guide(loc), torch.zeros(1, 1)
    noise = gradient_noise(pv.STL(), quadratic(2), guide, y, num_repeats=192, seed=5)
    (name,) = noise.shapes
    part = noise.parameter(name)
    assert_estimate(Estimate(part.variance.value[0, 0], part.variance.error[0, 0]), 1.0)
    assert_estimate(Estimate(part.mean.value[0, 1], part.mean.error[0, 1]), 2e6)


# --------------------------------------------------------------------------------- plumbing


def table_guide() -> tuple[pv.models.VAE, pv.Guide, Tensor]:
    """A guide with a row per datum, and dropout in the model."""
    decoder = nn.Sequential(nn.Linear(1, 3), nn.BatchNorm1d(3))
    model = pv.models.VAE(decoder, pv.likelihoods.Gaussian(), latent_dim=1)
    return model, pv.Guide(model, pv.LocalParameters(6)), torch.randn(6, 3)


def test_nothing_moves() -> None:
    """Neither the table's rows, nor running means, nor gradients, nor modes, nor the stream."""
    model, guide, y = table_guide()
    before = {name: value.clone() for name, value in guide.state_dict().items()}
    buffers = {name: value.clone() for name, value in model.state_dict().items()}
    weight = next(model.parameters())
    weight.grad = torch.ones(3, 1)
    model.eval()
    stream = torch.get_rng_state()
    noise = gradient_noise(pv.IWAE(2), model, guide, y, num_repeats=4)
    assert torch.equal(torch.get_rng_state(), stream)
    assert not model.training
    for name, value in guide.state_dict().items():
        assert torch.equal(value, before[name]), name
    for name, value in model.state_dict().items():
        assert torch.equal(value, buffers[name]), name
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.ones(3, 1))
    assert (6, 2) in noise.shapes.values()  # the rows are a parameter like another
    again = gradient_noise(pv.IWAE(2), model, guide, y, num_repeats=4)
    assert torch.equal(noise.second, again.second)
    other = gradient_noise(pv.IWAE(2), model, guide, y, num_repeats=4, seed=1)
    assert not torch.equal(noise.second, other.second)


@float64
@pytest.mark.slow
def test_minibatches_are_scaled() -> None:
    """Some rows of many: the gradient of the loss per datum has the mean of all of them."""
    model, (guide, _) = model_of(FACTS), away_from_optimum()
    y = FACTS_Y.expand(10, -1)
    whole = gradient_noise(Trace_ELBO(), model, guide, y, num_repeats=256)
    for objective in (Trace_ELBO(), pv.IWAE(1)):
        with pv.minibatch(torch.arange(5), 10, plate="data"):
            part = gradient_noise(objective, model, guide, y[:5], num_repeats=256, seed=3)
        (name,) = whole.shapes
        means = [noise.parameter(name).mean for noise in (whole, part)]
        difference = means[0].value - means[1].value
        error = (means[0].error ** 2 + means[1].error ** 2).sqrt()
        assert (difference.abs() < 7 * error).all()  # of t with 31 degrees: below 1e-7
        ratio = (part.variance.value / whole.variance.value).item()
        assert 1.1 < ratio < 3.6  # half the data: 2; the bounds are 4 standard errors or more away


def test_objectives_that_only_accumulate() -> None:
    """TraceGraph_ELBO has the gradient of Trace_ELBO here, and leaves `.grad` alone."""
    model, (guide, parameters) = model_of(FACTS), away_from_optimum()
    y = FACTS.sample(3)
    graph = gradient_noise(TraceGraph_ELBO(), model, guide, y, num_repeats=3)
    assert parameters.grad is None
    torch.testing.assert_close(
        graph.origin, gradient_noise(Trace_ELBO(), model, guide, y, num_repeats=3).origin
    )
    table_model, table, rows = table_guide()
    with pytest.raises(ValueError, match="would also train the parameters"):
        gradient_noise(TraceGraph_ELBO(), table_model, table, rows)


def test_score_function_of_a_guide_of_ours() -> None:
    """It has another gradient with the same mean, and objectives that need a path refuse it."""
    model, y = model_of(FACTS), FACTS_Y.expand(50, -1)
    net = mean_field_net(FACTS)
    guide = pv.Guide(model, pv.Encoder(net), example=FACTS_Y)
    with torch.no_grad():
        net.bias.add_(0.3)
    path = gradient_noise(Trace_ELBO(), model, guide, y, num_repeats=64)
    score = gradient_noise(Trace_ELBO(), model, score_function(guide), y, num_repeats=64)
    means = [noise.parameter("guide.map.net.bias").mean for noise in (path, score)]
    error = (means[0].error ** 2 + means[1].error ** 2).sqrt()
    assert ((means[0].value - means[1].value).abs() < 7 * error).all()
    assert score.variance.value > 2 * path.variance.value
    with pytest.raises(ValueError, match="must have a reparameterized distribution"):
        gradient_noise(pv.IWAE(2), model, score_function(guide), y)


def test_score_function_keeps_points_and_sites() -> None:
    """Several sites, a constrained one and a point mass: densities and the point's gradient."""
    point = torch.tensor(0.3, requires_grad=True)
    rate = torch.tensor(1.5, requires_grad=True)

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            a = pyro.sample("a", dist.Gamma(2.0, 1.0))
            b = pyro.sample("b", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(a + b, 1.0), obs=y)

    def guide(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            pyro.sample("a", dist.Gamma(2.0, rate))
            pyro.sample("b", dist.Delta(point.expand(len(y))))

    y = torch.ones(20)
    path = gradient_noise(Trace_ELBO(), model, guide, y, num_repeats=64)
    score = gradient_noise(Trace_ELBO(), model, score_function(guide), y, num_repeats=64)
    difference = path.origin.new_zeros(2)
    error = difference.clone()
    for place, name in enumerate(path.shapes):
        a, b = path.parameter(name).mean, score.parameter(name).mean
        difference[place] = (a.value - b.value).abs().max()
        error[place] = (a.error**2 + b.error**2).sqrt().max()
        assert (b.error > 0).all()
    assert (difference < 7 * error).all()


def test_verdicts() -> None:
    """Drowned, measured, and without noise."""
    with_signal = torch.full((50, 1), 2.0, requires_grad=True)
    without = torch.zeros(1, 1, requires_grad=True)

    def noise(loc: Tensor) -> GradientNoise:
        y = torch.zeros(len(loc), 1)
        return gradient_noise(pv.STL(), quadratic(1), normal_guide(loc), y, num_repeats=50)

    measured = noise(with_signal)
    assert "one draw has more signal than noise" in measured.verdict
    assert "signal-to-noise" in measured.summary()
    weak = noise(torch.full((1, 1), 0.5, requires_grad=True))  # a ratio of 1: 2 on a bad day
    assert 0.3 < float(weak.signal_to_noise.value) < 2
    drowned = noise(without)
    assert float(drowned.signal_to_noise.value) < 5 * drowned.floor
    flat = GradientNoise(3, {"w": torch.Size([1])}, (1, 1, 1), *_constant(1.0))
    assert "no noise" in flat.verdict
    origin, first, second = (
        torch.cat(pair, -1) for pair in zip(_constant(1.0), _constant(0.0), strict=True)
    )
    first[:, 1], second[:, 1] = torch.tensor([-1.0, 0.0, 2.0]), torch.tensor([1.0, 0.0, 4.0])
    partly = GradientNoise(3, {"w": torch.Size([2])}, (1, 1, 1), origin, first, second)
    assert "the gradient of 1 entry is the same for every draw" in partly.verdict
    assert "1 entry has noise" in partly.verdict
    zero = GradientNoise(3, {"w": torch.Size([1])}, (1, 1, 1), *_constant(0.0))
    assert "neither signal nor noise" in zero.verdict


def _constant(value: float) -> tuple[Tensor, Tensor, Tensor]:
    """Three repeats of the same gradient."""
    nothing = torch.zeros(3, 1, dtype=torch.float64)
    return torch.tensor([value], dtype=torch.float64), nothing, nothing


@float64
def test_refusals() -> None:
    """Too few repeats, nothing to differentiate by, and a gradient that is not finite."""
    model, y = model_of(FACTS), FACTS_Y

    def fixed(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    with pytest.raises(ValueError, match=r"must be at least 3, .*; got 2"):
        gradient_noise(pv.IWAE(2), model, fixed, y, num_repeats=2)
    with pytest.raises(ValueError, match="no tensor with requires_grad"):
        gradient_noise(pv.IWAE(2), model, fixed, y)
    root = torch.zeros(2, dtype=torch.float64, requires_grad=True)

    def infinite(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            loc = root.sqrt().expand(len(y), -1)
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    with pytest.raises(FloatingPointError, match="unregistered tensor 0"):
        gradient_noise(pv.IWAE(2), model, infinite, y)
