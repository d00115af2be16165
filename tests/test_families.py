"""Every family is a density with reparameterized draws, whose answers for a row are its own."""

import copy
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal, kl_divergence
from torch.distributions.transforms import AffineTransform

from pyro_vae.guides.families import DiagonalNormal, Family, FullRankNormal, LowRankNormal
from pyro_vae.guides.flows import (
    AffineAutoregressive,
    AffineCoupling,
    ElementwiseSpline,
    FlowTransform,
    NormalizingFlow,
    SplineAutoregressive,
)
from pyro_vae.guides.posteriors import mean_of
from pyro_vae.registry import arguments_of
from tests.helpers.statistics import assert_mean

float64 = pytest.mark.usefixtures("float64")
assert_exact = functools.partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)
# Pyro looks a spline's bin up with a slack of 1e-6, so a point that near to a knot may be taken to
# be in one bin on the way there and in the other on the way back. Slopes agree at knots; what
# differs is their change, times the slack.
assert_inverted = functools.partial(torch.testing.assert_close, rtol=0, atol=1e-5)

ROWS = 4


class Case(NamedTuple):
    """A family and how many latents it is tested with."""

    make: Callable[[], Family]
    latents: int


def flow(transform: FlowTransform, num_transforms: int = 2) -> Callable[[], NormalizingFlow]:
    """Makes flows of this kind."""
    return lambda: NormalizingFlow(transform, num_transforms=num_transforms, context=3)


NORMALS = {
    "diagonal": Case(DiagonalNormal, 3),
    "full-rank": Case(FullRankNormal, 3),
    "full-rank-of-one": Case(FullRankNormal, 1),
    "low-rank": Case(LowRankNormal, 3),
    "low-rank-of-one": Case(LowRankNormal, 1),
}
FLOWS = {
    "affine-autoregressive": Case(flow(AffineAutoregressive((8,))), 3),
    "affine-autoregressive-deep": Case(flow(AffineAutoregressive((8, 6)), 3), 2),
    "spline-autoregressive": Case(flow(SplineAutoregressive((8,), bins=4)), 3),
    "affine-coupling": Case(flow(AffineCoupling((8,))), 3),
    "affine-coupling-of-two": Case(flow(AffineCoupling((8,))), 2),
    "elementwise-spline": Case(flow(ElementwiseSpline((8,), bins=4)), 2),
    "elementwise-spline-of-one": Case(flow(ElementwiseSpline((8,), bins=4)), 1),
}
FAMILIES = {**NORMALS, **FLOWS}


def table(cases: dict[str, Case]) -> pytest.MarkDecorator:
    """Runs a test on every row."""
    return pytest.mark.parametrize("case", cases.values(), ids=cases.keys())


def fresh(case: Case) -> Family:
    """The family as a guide finds it."""
    family = case.make()
    if isinstance(family, NormalizingFlow):
        family.setup(case.latents)
    return family


def bend(family: Family) -> Family:
    """As after some training: nets that are no longer near the identity."""
    if isinstance(family, nn.Module):
        with torch.no_grad():
            for weight in family.parameters():
                weight.add_(0.1 * torch.randn_like(weight))
    return family


def trained(case: Case) -> Family:
    """The family after some training."""
    return bend(fresh(case))


def some_parameters(family: Family, latents: int, rows: int = ROWS) -> Tensor:
    """Different parameters for every row."""
    start = family.initial(torch.zeros(latents), 0.8)
    return start + 0.5 * torch.randn(rows, len(start))


# What the parameters of normals mean, written out.


def diagonal_moments(row: Tensor, latents: int) -> tuple[Tensor, Tensor]:
    """Means, log standard deviations."""
    return row[:latents], (2 * row[latents:]).exp().diag()


def full_rank_moments(row: Tensor, latents: int) -> tuple[Tensor, Tensor]:
    """Means, then the triangle row by row."""
    factor, rest = torch.zeros(latents, latents), row[latents:].tolist()
    for i in range(latents):
        for j in range(i + 1):
            value = rest.pop(0)
            factor[i, j] = math.exp(value) if i == j else value
    assert not rest
    return row[:latents], factor @ factor.T


def low_rank_moments(row: Tensor, latents: int) -> tuple[Tensor, Tensor]:
    """Means, log standard deviations, then two columns."""
    factor = row[2 * latents :].reshape(latents, 2)
    own = (2 * row[latents : 2 * latents]).exp() + 1e-3 * (factor**2).sum(-1)
    return row[:latents], own.diag() + factor @ factor.T


MOMENTS = {
    DiagonalNormal: diagonal_moments,
    FullRankNormal: full_rank_moments,
    LowRankNormal: low_rank_moments,
}


def assert_normal(family: Family, latents: int) -> None:
    """Asserts that the density is the normal's with the moments that the parameters stand for."""
    parameters = some_parameters(family, latents)
    z = torch.randn(5, ROWS, latents)
    log_prob = family(parameters).log_prob(z)
    moments = next(value for kind, value in MOMENTS.items() if isinstance(family, kind))
    for n, row in enumerate(parameters):
        loc, covariance = moments(row, latents)
        error = z[:, n] - loc
        square = (error @ covariance.inverse() * error).sum(dim=-1)
        expected = -(square + covariance.logdet() + latents * math.log(2 * math.pi)) / 2
        assert_exact(log_prob[:, n], expected)


@float64
@table(NORMALS)
def test_normals_have_the_density_that_their_parameters_say(case: Case) -> None:
    """Against the formula, from loops over the parameters."""
    assert_normal(case.make(), case.latents)


class Transposed(FullRankNormal):
    """The wrong twin: the covariance is L'L."""

    def __call__(self, parameters: Tensor) -> Any:
        """With the factor transposed."""
        q = super().__call__(parameters)
        factor = q.scale_tril
        return pyro.distributions.MultivariateNormal(q.mean, factor.mT @ factor)


@float64
def test_a_transposed_factor_is_caught() -> None:
    """It has the same determinant and the same number of parameters."""
    with pytest.raises(AssertionError, match="not close"):
        assert_normal(Transposed(), 3)


def pushed(family: Family, parameters: Tensor, noise: Tensor) -> Tensor:
    """The flow's image of noise."""
    for transform in family(parameters).transforms:
        noise = transform(noise)
    return noise


def assert_change_of_variables(family: Family, latents: int) -> None:
    """Asserts that the density at the image of noise is that of the noise over |det J|."""
    parameters = some_parameters(family, latents)
    noise = torch.randn(ROWS, latents)
    z = pushed(family, parameters, noise)
    jacobians = [
        torch.autograd.functional.jacobian(functools.partial(pushed, family, row), start)
        for row, start in zip(parameters, noise, strict=True)
    ]
    base = Normal(0.0, 1.0).log_prob(noise).sum(dim=-1)
    expected = base - torch.stack(jacobians).det().abs().log()
    assert_inverted(family(parameters).log_prob(z), expected)


@float64
@table(FLOWS)
def test_flows_follow_the_change_of_variables(case: Case) -> None:
    """With the Jacobian from automatic differentiation of the draws."""
    assert_change_of_variables(trained(case), case.latents)


class Unscaled(AffineTransform):
    """The wrong twin: a layer that forgets its Jacobian."""

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Nothing."""
        return torch.zeros_like(x[..., 0])


class Forgetful(NormalizingFlow):
    """A flow whose last layer has none."""

    def _transforms(self, loc: Tensor, log_scale: Tensor, context: Tensor) -> list[Any]:
        last = Unscaled(loc, log_scale.exp(), event_dim=1, cache_size=1)
        return [*super()._transforms(loc, log_scale, context)[:-1], last]


def integral(family: Family, latents: int) -> float:
    """Of the density, over a fine grid in one or two dimensions."""
    parameters = some_parameters(family, latents, rows=1)
    draws = family(parameters).sample(torch.Size((1000,)))[:, 0]
    # Wide enough for the tails of a bent flow; 30 points a standard deviation.
    low, high = (draws.mean(0) + sign * 8 * draws.std(0) for sign in (-1, 1))
    axes = [torch.linspace(float(a), float(b), 480) for a, b in zip(low, high, strict=True)]
    points = torch.cartesian_prod(*axes).reshape(-1, 1, latents)
    cell = math.prod(float(axis[1] - axis[0]) for axis in axes)
    return float(family(parameters).log_prob(points).exp().sum()) * cell


@float64
@table({name: case for name, case in FAMILIES.items() if case.latents < 3})
def test_densities_integrate_to_one(case: Case) -> None:
    """By the midpoints of a grid; half a percent is what the kinks of splines cost."""
    with torch.no_grad():
        assert abs(integral(trained(case), case.latents) - 1) < 5e-3


@float64
def test_a_forgotten_jacobian_is_caught() -> None:
    """By either check."""
    forgetful = Forgetful(AffineCoupling((8,)), context=3)
    forgetful.setup(2)
    with pytest.raises(AssertionError, match="not close"):
        assert_change_of_variables(forgetful, 2)
    with torch.no_grad():
        assert abs(integral(forgetful, 2) - 1) > 0.02


@table(FAMILIES)
def test_number_of_parameters(case: Case) -> None:
    """What the table of families says, and no other number is taken."""
    family, d = fresh(case), case.latents
    expected: dict[type, int] = {
        DiagonalNormal: 2 * d,
        FullRankNormal: d + d * (d + 1) // 2,
        LowRankNormal: 4 * d,
        NormalizingFlow: 2 * d + 3,
    }
    assert family.num_parameters(d) == expected[type(family)] == len(family.initial(torch.ones(d)))
    assert isinstance(family, Family)
    if not isinstance(family, DiagonalNormal):
        with pytest.raises(ValueError, match=r"parameters.* got 1 .*shape \(2, 1\)"):
            family(torch.zeros(2, 1))


@float64
@table(NORMALS)
def test_normals_start_where_told(case: Case) -> None:
    """Exactly, but for the small correlations without which a low rank would not learn any."""
    family, loc = case.make(), torch.randn(case.latents)
    q: Any = family(family.initial(loc, 0.3).unsqueeze(0))
    assert_exact(q.mean[0], loc)
    assert_exact(q.variance[0], torch.full_like(loc, 0.09))
    if isinstance(family, LowRankNormal):
        correlation = (q.covariance_matrix[0] / 0.09 - torch.eye(case.latents)).abs().max()
        assert correlation <= 0.01
    elif isinstance(family, FullRankNormal):
        assert_exact(q.covariance_matrix[0], 0.09 * torch.eye(case.latents))


def fitted_low_rank(start: Tensor, target: MultivariateNormal) -> Tensor:
    """KL(q || target), exactly, after descending from a start, in nats."""
    parameters = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([parameters], lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        divergence = kl_divergence(LowRankNormal(1)(parameters), target)
        divergence.backward()
        optimizer.step()
    return divergence.detach()


@float64
@pytest.mark.parametrize("correlation", [-0.9, 0.9])
def test_a_low_rank_does_not_start_at_a_saddle(correlation: float) -> None:
    """In a symmetric problem, with either sign; W = 0 is one, and so is an eigenvector."""
    target = MultivariateNormal(torch.zeros(2), torch.tensor([[1, correlation], [correlation, 1]]))
    start, sign = LowRankNormal(1).initial(torch.zeros(2)), math.copysign(1.0, correlation)
    assert fitted_low_rank(start, target) < 1e-3
    assert fitted_low_rank(torch.zeros(6), target) > 0.5

    def pull(parameters: Tensor) -> float:
        """The gradient of W towards the correlation."""
        leaf = parameters.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(kl_divergence(LowRankNormal(1)(leaf), target), leaf)
        return abs(float(gradient[4] + sign * gradient[5]))

    eigenvector = torch.tensor([0, 0, 0, 0, 0.1, -0.1 * sign])
    assert pull(eigenvector) < 1e-12 < 1e-3 < pull(start)


@float64
@table(FLOWS)
def test_flows_start_near_where_told(case: Case) -> None:
    """In standard errors; and their log density is the normal's to some hundredths of a nat."""
    family, loc = fresh(case), torch.randn(case.latents)
    with torch.no_grad():
        q = family(family.initial(loc, 0.3).unsqueeze(0))
        z = q.sample(torch.Size((2000,)))[:, 0]
        noise = (z - loc) / 0.3
        log_ratio = q.log_prob(z.unsqueeze(1))[:, 0] - Normal(loc, 0.3).log_prob(z).sum(dim=-1)
    assert_mean(noise, 0.0)
    assert_mean(noise.unsqueeze(-1) * noise.unsqueeze(-2), torch.eye(case.latents))
    assert log_ratio.abs().mean() < 0.05
    assert log_ratio.abs().max() > 1e-8  # not the identity, at which inner layers learn nothing


@float64
@table(FAMILIES)
def test_draws_agree_with_the_density_at_given_points(case: Case) -> None:
    """Of the distribution that drew them, of one made afresh, and after another one has drawn."""
    family = trained(case)
    parameters = some_parameters(family, case.latents)
    q = family(parameters)
    z = q.rsample(torch.Size((3,)))
    family(parameters.flip(0)).rsample(torch.Size((3,)))
    again = family(parameters)
    assert z.shape == (3, ROWS, case.latents)
    assert_inverted(q.log_prob(z), again.log_prob(z.clone()))
    again.rsample()  # fills caches with other values
    assert_inverted(q.log_prob(z), again.log_prob(z))


@table(FLOWS)
def test_a_flow_remembers_the_density_of_its_own_draws(case: Case) -> None:
    """Inverting it would cost a pass for every latent."""
    family = fresh(case)
    q = family(some_parameters(family, case.latents))
    z = q.rsample()
    assert isinstance(family, NormalizingFlow)
    passes: list[int] = []
    for layer in family.layers:
        net: Any = layer.nn
        net.register_forward_hook(lambda *_: passes.append(1))
    q.log_prob(z)
    assert not passes
    q.log_prob(z.clone())
    assert passes


@float64
@table(FAMILIES)
def test_gradients_of_the_density_at_given_points(case: Case) -> None:
    """Against differences, in the point and in the parameters."""
    family = trained(case)
    parameters = some_parameters(family, case.latents, rows=2).requires_grad_()
    z = torch.randn(2, 2, case.latents, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p, z: family(p).log_prob(z), (parameters, z))


@float64
@table(FAMILIES)
def test_gradients_of_draws(case: Case, seed: int) -> None:
    """Against differences, with the noise held fixed."""
    family = trained(case)
    parameters = some_parameters(family, case.latents, rows=2).requires_grad_()

    def draw(parameters: Tensor) -> Tensor:
        torch.manual_seed(seed)
        return family(parameters).rsample(torch.Size((2,)))

    assert torch.autograd.gradcheck(draw, (parameters,))


@table(FAMILIES)
def test_gradients_reach_all_there_is_from_the_start(case: Case) -> None:
    """Every parameter of every datum, and every tensor of the nets."""
    family = fresh(case)
    start = family.initial(torch.zeros(case.latents)).expand(ROWS, -1)
    parameters = start.clone().requires_grad_()
    q = family(parameters)
    z = q.rsample(torch.Size((64,)))
    # A target that is not normal, not centred, and correlated.
    target = -((z.sum(dim=-1) - 1) ** 2) - (z**4).sum(dim=-1) + (z**3).sum(dim=-1)
    (q.log_prob(z) - target).mean(dim=0).sum().backward()
    assert parameters.grad is not None
    assert (parameters.grad != 0).all()
    if isinstance(family, nn.Module):
        for name, weight in family.named_parameters():
            assert weight.grad is not None, name
            assert weight.grad.abs().max() > 0, name


@float64
@table(FAMILIES)
def test_rows_are_independent_of_one_another(case: Case) -> None:
    """In another order, or alone, a row has the same density and mean."""
    family = trained(case)
    parameters, z = some_parameters(family, case.latents), torch.randn(3, ROWS, case.latents)
    order = torch.tensor([2, 0, 3, 1])
    log_prob, mean = family(parameters).log_prob(z), mean_of(family, parameters)
    assert_exact(family(parameters[order]).log_prob(z[:, order]), log_prob[:, order])
    assert_exact(mean_of(family, parameters[order]), mean[order])
    assert_exact(family(parameters[1:2]).log_prob(z[:, 1:2]), log_prob[:, 1:2])
    assert_exact(mean_of(family, parameters[1:2]), mean[1:2])


@float64
@table(FAMILIES)
def test_shapes(case: Case) -> None:
    """Rows may have inner dimensions, a batch may be expanded, and points may be broadcast."""
    family = trained(case)
    parameters, z = some_parameters(family, case.latents), torch.randn(5, ROWS, case.latents)
    expected = family(parameters).log_prob(z)
    assert expected.shape == (5, ROWS)
    inner = family(parameters.unsqueeze(1))
    assert (inner.batch_shape, inner.event_shape) == ((ROWS, 1), (case.latents,))
    assert inner.rsample(torch.Size((5,))).shape == (5, ROWS, 1, case.latents)
    assert_exact(inner.log_prob(z.unsqueeze(2)), expected.unsqueeze(2))
    wide = family(parameters).expand(torch.Size((5, ROWS)))  # as plates do
    assert wide.rsample().shape == (5, ROWS, case.latents)
    assert_exact(wide.log_prob(z), expected)
    assert_exact(family(parameters).log_prob(z[0, 0])[0], expected[0, 0])
    alone = family(parameters[0])
    assert_exact(alone.log_prob(z[:, 0]), expected[:, 0])
    assert alone.rsample().shape == (case.latents,) == mean_of(family, parameters[0]).shape


@table(FAMILIES)
@pytest.mark.parametrize("default", [torch.float32, torch.float64])
def test_dtypes(case: Case, default: torch.dtype, request: pytest.FixtureRequest) -> None:
    """Each dtype works whatever the default is, and both give the same numbers."""
    if default == torch.float64:
        request.getfixturevalue("float64")
    double: Any = trained(case)
    parameters = some_parameters(double, case.latents).double()
    z = torch.randn(3, ROWS, case.latents).double()
    single = copy.deepcopy(double)
    if isinstance(double, nn.Module):
        double, single = double.double(), single.float()
    expected, found = double(parameters).log_prob(z), single(parameters.float()).log_prob(z.float())
    assert (expected.dtype, found.dtype) == (torch.float64, torch.float32)
    assert single(parameters.float()).rsample().dtype == torch.float32
    assert mean_of(double, parameters).dtype == torch.float64
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-3)


@float64
@table(FAMILIES)
def test_copies_and_saved_tensors(case: Case) -> None:
    """A deep copy, and a family of the same config with the same tensors, are the same density."""
    family = trained(case)
    parameters, z = some_parameters(family, case.latents), torch.randn(ROWS, case.latents)
    expected = family(parameters).log_prob(z)
    copied = copy.deepcopy(family)
    assert_exact(copied(parameters).log_prob(z), expected)
    if isinstance(family, NormalizingFlow):
        bend(copied)
        assert (copied(parameters).log_prob(z) != expected).any()
        other = NormalizingFlow(**arguments_of(family))
        other.setup(case.latents)
        assert (other(parameters).log_prob(z) != expected).any()
        other.load_state_dict(family.state_dict())
        assert repr(other) == repr(family)
        assert_exact(other(parameters).log_prob(z), expected)
    assert_exact(family(parameters).log_prob(z), expected)


@float64
@table(FAMILIES)
def test_the_mean_is_that_of_draws(case: Case) -> None:
    """In standard errors; and asking for it touches no random stream."""
    family = trained(case)
    with torch.no_grad():
        parameters = some_parameters(family, case.latents)
        before = torch.get_rng_state()
        mean = mean_of(family, parameters)
        assert torch.equal(torch.get_rng_state(), before)
        assert_mean(family(parameters).sample(torch.Size((2000,))), mean)


@float64
def test_the_location_of_a_flow_is_not_its_mean() -> None:
    """The same check fails on loc, which is what the flow is bent around."""
    family: Any = fresh(FLOWS["elementwise-spline-of-one"])
    with torch.no_grad():
        # Of the 4 widths, 4 heights, ... of the last spline, the first height: all goes up.
        family.layers[-1].nn.layers[-1].bias[4] = 1.5
        parameters = torch.tensor([[0.5, 0.0, 1.0, 1.0, 1.0]])
        draws = family(parameters).sample(torch.Size((2000,)))
        assert_mean(draws, mean_of(family, parameters))
        with pytest.raises(AssertionError, match="resolution"):
            assert_mean(draws, 0.5)


@float64
@table(
    {
        "affine-autoregressive": FLOWS["affine-autoregressive"],
        "elementwise-spline-of-one": FLOWS["elementwise-spline-of-one"],
    }
)
def test_means_do_not_depend_on_how_many_rows_fit_in_memory(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three rows at once, or all."""
    family = trained(case)
    parameters = some_parameters(family, case.latents, rows=7)
    expected = mean_of(family, parameters)
    monkeypatch.setattr("pyro_vae.guides.flows._VALUES_AT_ONCE", 3 * 1024)
    assert_exact(mean_of(family, parameters), expected)


@float64
def test_the_closest_full_rank_normal_of_a_stiff_posterior() -> None:
    """Standard deviations from one to a ten-millionth: the inverse of P has no digits to spare."""
    scales = torch.logspace(0, -7, 4)
    square = torch.randn(4, 4)
    rotation = torch.linalg.qr(square + 0.1 * torch.eye(4)).Q
    precision = rotation @ scales.reciprocal().square().diag() @ rotation.T
    family = FullRankNormal()
    parameters = family.closest_normal(torch.zeros(2, 4), precision.expand(2, 4, 4))
    factor = family(parameters).scale_tril[1]
    # L' P L = I; P itself has sixteen digits, of which its condition takes fourteen. A factor that
    # is off by 3% is caught.
    product = factor.T @ precision @ factor
    torch.testing.assert_close(product, torch.eye(4), rtol=0, atol=0.05)
    assert_exact(family(parameters).mean, torch.zeros(2, 4))


def test_a_factor_close_to_singular() -> None:
    """In float32 the density of a draw is that of its noise; solving for the noise loses it."""
    d, rows = 4, 50
    square = torch.full((d, d), 91.0).tril(-1) + torch.full((d,), -15.0).diag()  # e^-15 = 3e-7
    triangle = torch.cat([square[row, : row + 1] for row in range(d)])
    q = FullRankNormal()(torch.cat([torch.zeros(d), triangle]).expand(rows, -1))
    z = q.rsample()
    # Log q = -|noise|^2 / 2 + 15 d - d/2 log 2 pi, and |noise|^2 has a chi-square distribution.
    noise_square = -2 * (q.log_prob(z) - 15 * d + d / 2 * math.log(2 * math.pi))
    assert_mean(noise_square.double(), d)
    solved = q.log_prob(z.clone())  # the wrong twin: a density that does not know the draw
    assert (solved - q.log_prob(z)).abs().max() > 1e3


@float64
def test_the_density_of_a_draw_is_the_density() -> None:
    """Value and gradient, with many draws; and one draw does not stand for another."""
    parameters = torch.randn(ROWS, 9, requires_grad=True)
    q = FullRankNormal()(parameters)
    first, second = q.rsample(torch.Size((5,))), q.rsample(torch.Size((5,)))
    for z in (first, second):
        expected = MultivariateNormal(q.mean, scale_tril=q.scale_tril).log_prob(z)
        torch.testing.assert_close(q.log_prob(z), expected, rtol=1e-9, atol=1e-9)
        grads = [
            torch.autograd.grad(value.sum(), parameters, retain_graph=True)[0]
            for value in (q.log_prob(z), expected)
        ]
        torch.testing.assert_close(*grads, rtol=1e-8, atol=1e-8)
