"""Closed-form posteriors: read off programs, exact, refused where there are none; CAVI."""

import copy
import functools
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

import pyro_vae as pv
from pyro_vae._types import ProgramLike
from pyro_vae.guides.closed_form import (
    CoordinateAscent,
    ExactPosterior,
    coordinate_ascent,
    quadratic_of,
)
from pyro_vae.programs import Program
from pyro_vae.programs.modes import local_parameters
from pyro_vae.programs.polynomials import degree_of
from tests.helpers.cases import CASES, factor_analysis
from tests.helpers.factor_analysis import (
    LinearGaussian,
    amortization_gap,
    posterior_guide,
)
from tests.helpers.statistics import FACTS, FACTS_Y

float64 = pytest.mark.usefixtures("float64")

# In float64; sums of tens of terms of size one.
assert_exact = functools.partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)

GAUSSIAN = (
    "factor-analysis", "scalar", "inner-plate", "outer-data", "missing", "scaled", "covariate",
    "markov", "subsampled",
)  # fmt: skip


# ---------------------------------------------------------------------- read off a program


@float64
@pytest.mark.parametrize("name", GAUSSIAN)
def test_programs_are_read_off(name: str) -> None:
    """The quadratic function is the log density written by hand, at any point."""
    case = CASES[name]
    batch = case.data()
    exact = quadratic_of(Program(case.program, *batch), batch)
    z = 3 * torch.randn(7, len(batch[0]), case.latents)
    step = z - exact.loc
    quadratic = exact.peak - (step[..., None, :] @ exact.precision @ step[..., None])[..., 0, 0] / 2
    assert_exact(quadratic, case.density(z, *batch))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_factor_analysis_is_exact(dtype: torch.dtype) -> None:
    """Mean, precision, linear term and evidence of the instance, in either precision."""
    y = torch.cat([FACTS_Y, 100 * FACTS_Y, FACTS.sample(3)])
    exact = quadratic_of(Program(factor_analysis, y.to(dtype)), (y.to(dtype),))
    posterior, digits = FACTS.posterior(y), 50 * torch.finfo(dtype).eps
    close = functools.partial(torch.testing.assert_close, rtol=digits, atol=digits)
    size = 1 + y.abs().amax(dim=-1, keepdim=True)
    assert exact.loc.dtype == dtype
    close(exact.loc.double() / size, posterior.loc / size)
    close(exact.linear.double() / size, posterior.loc @ FACTS.posterior_precision / size)
    close(exact.precision[0].double(), FACTS.posterior_precision)
    close(exact.log_evidence().double() / size[:, 0] ** 2, FACTS.log_evidence(y) / size[:, 0] ** 2)


def nearly_quadratic(y: Tensor) -> None:
    """Bits whose logits hardly vary: the log joint is off a parabola by hundredths of a nat."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(y.new_zeros(1), 1.0).to_event(1))
        slopes = torch.tensor([0.36, -0.27, 0.18, 0.31], dtype=y.dtype)
        pyro.sample("y", dist.Bernoulli(logits=slopes * z + 0.2).to_event(1), obs=y)


def test_a_nearly_quadratic_program_has_no_closed_form() -> None:
    """Its gradient passes for a linear one in float32; its operations do not.

    The tightest estimator goes on to quadrature.
    """
    y = torch.tensor([[0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    guide = pv.Guide(nearly_quadratic, pv.GlobalParameters(), example=y)
    z, weights = (torch.as_tensor(part) for part in np.polynomial.hermite_e.hermegauss(60))
    with local_parameters(nearly_quadratic):
        joint = Program(nearly_quadratic, y.double()).log_joint(
            z[:, None, None].expand(-1, 2, 1), *(y.double(),)
        )
    prior = dist.Normal(0.0, 1.0).log_prob(z)[:, None]
    truth = (joint - prior + (weights / weights.sum()).log()[:, None]).logsumexp(dim=0)
    exact = quadratic_of(Program(nearly_quadratic, y), (y,)).log_evidence()
    assert ((exact - truth).abs() > 1e-4).all(), "the program is too easy for this test"
    with pytest.raises(ValueError, match=r"ClosedForm\(\) requires .* not a quadratic function"):
        pv.log_marginal_likelihood(nearly_quadratic, guide, y, pv.ClosedForm())
    tightest = pv.log_marginal_likelihood(nearly_quadratic, guide, y, pv.Tightest())
    assert tightest.method != "closed form"
    torch.testing.assert_close(tightest.value, truth, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "gamma",
            r"row 0 is not quadratic in the latents \(affected: 5 of 5 rows.*pv\.Encoder\(net\)",
        ),
        ("interval", r"row 0 is not quadratic .* from a linear function .* rounding explains only"),
        ("factor", r"row 0 is not quadratic .* give the model a method exact_posterior"),
        ("dependent", r"row \d (is not quadratic|has no maximum)"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_other_programs_are_refused(name: str, message: str, dtype: torch.dtype) -> None:
    """With the row, by how much, and what to do."""
    torch.set_default_dtype(dtype)
    try:
        batch = CASES[name].data()
        guide = pv.Guide(CASES[name].program, ExactPosterior(), example=batch)
        with pytest.raises(ValueError, match=message):
            guide.mean(batch)
    finally:
        torch.set_default_dtype(torch.float32)


def bent(size: float) -> Callable[[Tensor], None]:
    """A program whose decoder bends for positive data, by a little or much."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            bend = size * torch.where(y > 0, (z[..., 0] - z[..., 1]) ** 2, 0.0)
            pyro.sample("y", dist.Normal(z.sum(dim=-1) + bend, 1.0), obs=y)

    return model


@float64
def test_the_row_is_named() -> None:
    """The first row that bends, by its position in the data set where that is known."""
    y = torch.tensor([-1.0, -2.0, 3.0, 4.0])
    program = Program(bent(1e-4), y)
    with pytest.raises(
        ValueError, match=r"row 2 is not quadratic in the latents \(affected: 2 of 4 rows"
    ):
        quadratic_of(program, (y,))
    guide = pv.Guide(bent(1e-4), ExactPosterior(), example=y)
    message = r"row 7 is not quadratic in the latents \(affected: 1 of 2 rows"
    with pv.minibatch(torch.tensor([5, 7]), num_data=9), pytest.raises(ValueError, match=message):
        guide.parameters_of(y[1:3])
    message = r"row 1 is not quadratic in the latents \(affected: 2 of 3 rows"  # not the minibatch
    with pv.minibatch(torch.tensor([5, 7]), num_data=9), pytest.raises(ValueError, match=message):
        guide.parameters_of(y[1:4])
    flat = quadratic_of(Program(bent(0.0), y), (y,))
    assert_exact(flat.loc, (y / 3)[:, None].expand(-1, 2))


def test_no_maximum() -> None:
    """A saddle has no posterior to read off; its eigenvalues say so."""

    def saddle(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("pull", z**2 * y)

    y = torch.tensor([0.1, 1.0])
    message = r"row 1 has no maximum .*\(affected: 1 of 2 rows.*: the eigenvalues .* got -1\."
    with pytest.raises(ValueError, match=message):
        quadratic_of(Program(saddle, y), (y,))


@float64
@pytest.mark.parametrize("map", [ExactPosterior(), CoordinateAscent()], ids=["exact", "ascent"])
def test_the_model_is_left_alone(map: pv.InferenceMap) -> None:
    """Modes, weights, gradients and running means; dropout and noise are off, no grad is needed."""
    decoder = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
    model = pv.models.VAE(decoder, pv.likelihoods.Gaussian(sigma=0.5), latent_dim=2)
    guide, y = pv.Guide(model, copy.deepcopy(map)), torch.randn(6, 3)
    before, stream = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    with torch.no_grad():
        first = guide.parameters_of(y)
    second = guide.parameters_of(y)
    assert not second.requires_grad
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), stream)
    assert model.training
    assert decoder.training
    assert all(value.grad is None for value in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert list(guide.parameters()) == []
    one_by_one = torch.cat([guide.parameters_of(row[None]) for row in y])
    assert_exact(one_by_one, first)


# ---------------------------------------------------------------------- a model's own answer


class WithAnswer(LinearGaussian):
    """A model that knows its posterior; `shift` makes the answer wrong."""

    shift = 0.0
    asked = 0

    def exact_posterior(self, y: Tensor) -> Any:
        """Of each datum's flat latents."""
        self.asked += 1
        posterior = self.facts.posterior(y)
        return MultivariateNormal(
            posterior.loc + self.shift, precision_matrix=posterior.precision_matrix
        )

    def program(self, y: Tensor) -> None:
        """The model as a bound method."""
        self(y)


@float64
@pytest.mark.parametrize("bound", [False, True])
def test_a_models_own_answer(bound: bool) -> None:  # noqa: FBT001
    """It is taken from the model, or from the owner of a bound method; a wrong one is refused."""
    owner = WithAnswer(4, 2, 4)
    model: ProgramLike = owner.program if bound else owner
    y = torch.randn(5, 4)
    guide = posterior_guide(model, y)
    assert_exact(guide.mean(y), owner.facts.posterior(y).loc.detach())
    assert owner.asked == 1
    owner.shift = 1e-3
    with pytest.raises(ValueError, match="row 0 is not quadratic"):
        guide.mean(y)


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (dist.Normal(torch.zeros(3, 2), 1.0), TypeError, "return a MultivariateNormal .* a Normal"),
        (
            MultivariateNormal(torch.zeros(3), torch.eye(3)),
            ValueError,
            r"shape \(5,\) and event shape \(2,\); got batch shape \(\) and event shape \(3,\)",
        ),
    ],
    ids=["type", "shape"],
)
def test_answers_that_do_not_fit(
    answer: Any, error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of another type, or for another number of data or latents."""
    model, y = WithAnswer(4, 2, 4), torch.randn(5, 4)
    monkeypatch.setattr(model, "exact_posterior", lambda y: answer)
    with pytest.raises(error, match=message):
        posterior_guide(model, y).mean(y)


# ---------------------------------------------------------------------- coordinate ascent


def gap_of(loc: Tensor, y: Tensor) -> Tensor:
    """The evidence less the ELBO of a mean-field q with these means, exactly, in nats."""
    log_scale = -FACTS.posterior_precision.diagonal().log().expand_as(loc) / 2
    excess = amortization_gap(FACTS, y, torch.cat([loc, log_scale], dim=-1))
    return FACTS.mean_field_gap() + excess


@float64
def test_coordinate_ascent_reaches_the_mean_field_optimum() -> None:
    """Of the instance and of other data, to 1e-8 nats."""
    y = torch.cat([FACTS_Y, FACTS.sample(5)])
    guide = pv.Guide(factor_analysis, CoordinateAscent(), example=y)
    parameters = guide.parameters_of(y)
    loc, log_scale = parameters.chunk(2, dim=-1)
    torch.testing.assert_close(gap_of(loc, y), torch.full((6,), 0.222901746110), rtol=0, atol=1e-8)
    assert_exact((-2 * log_scale).exp(), FACTS.posterior_precision.diagonal().expand(6, -1))
    exact = pv.Guide(factor_analysis, ExactPosterior(), example=y).parameters_of(y)
    torch.testing.assert_close(parameters, exact, rtol=0, atol=1e-5)


@float64
def test_every_sweep_is_a_gauss_seidel_iteration() -> None:
    """So no sweep lowers the ELBO, and the error is the iteration matrix to the power of sweeps."""
    y = torch.cat([FACTS_Y, FACTS.sample(5)])
    best, precision = FACTS.posterior(y).loc, FACTS.posterior_precision
    matrix = torch.eye(2) - torch.linalg.solve(precision.tril(), precision)
    linear, repeated = best @ precision, precision.expand(6, -1, -1)
    gaps, error = [gap_of(torch.zeros(6, 2), y)], best
    for sweeps in range(1, 9):
        answer = coordinate_ascent(linear, repeated, sweeps=sweeps, tolerance=1e-300)
        error = error @ matrix.T
        assert answer.sweeps == sweeps
        assert_exact(best - answer.loc, error)
        gaps.append(gap_of(answer.loc, y))
    falls = torch.stack(gaps).diff(dim=0)
    assert (falls < 0).all()
    rate = torch.linalg.eigvals(matrix).abs().max()  # the gap falls by its square
    assert_exact(falls[-1] / falls[-2], (rate**2).expand(6), rtol=1e-4)


@float64
def test_a_datum_does_not_depend_on_its_batch() -> None:
    """A datum that is done is not moved on for the sake of others."""
    y = torch.cat([1e-3 * FACTS_Y, 1e6 * FACTS_Y])
    guide = pv.Guide(factor_analysis, CoordinateAscent(), example=y)
    alone = torch.cat([guide.parameters_of(row[None]) for row in y])
    torch.testing.assert_close(guide.parameters_of(y), alone, rtol=1e-11, atol=0)


@float64
def test_slow_ascent_warns() -> None:
    """With the number of data, the last move and the remedy; not if few sweeps are wanted."""
    y = torch.cat([torch.zeros(1, 4), FACTS_Y])
    guide = pv.Guide(factor_analysis, CoordinateAscent(sweeps=2), example=y)
    message = (
        r"not converge for 1 of 2 data in 2 sweeps, and a mean still changes by 0\.\d+ standard"
    )
    with pytest.warns(UserWarning, match=message):
        guide.parameters_of(y)
    wanted = CoordinateAscent(sweeps=1, tolerance=math.inf)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pv.Guide(factor_analysis, wanted, example=y).parameters_of(y)
    with pytest.raises(ValueError, match="`sweeps` must be a whole number of at least 1; got 0"):
        CoordinateAscent(sweeps=0)


@float64
def test_single_precision_converges() -> None:
    """Where rounding moves a mean by more than the tolerance, that is enough."""
    y = (1e4 * FACTS_Y).float()
    torch.set_default_dtype(torch.float32)
    parameters = pv.Guide(factor_analysis, CoordinateAscent(), example=y).parameters_of(y)
    loc = FACTS.posterior(y.double()).loc
    torch.testing.assert_close(parameters[:, :2].double(), loc, rtol=1e-5, atol=0)


# ---------------------------------------------------------------------- only nearly quadratic


def mirrored(z: Tensor) -> Tensor:
    """Two modes, of which only one is seen from zero."""
    return dist.Normal((z + 3).abs(), 0.1).log_prob(torch.tensor(1.0))


def spiked(z: Tensor) -> Tensor:
    """A spike of sd 0.01, six away from the mean, of 0.06 of the prior's mass."""
    return (1e7 * dist.Normal(6.0, 0.01).log_prob(z).exp()).log1p()


NARROW_OR_WIDE = dist.Normal(torch.zeros(2), torch.tensor([0.02, 10.0]))
MIXTURE = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), NARROW_OR_WIDE)


@pytest.mark.parametrize(
    ("prior", "log_likelihood"),
    [
        (dist.Normal(0.0, 10.0), mirrored),
        (MIXTURE, lambda z: dist.Normal(z, 0.5).log_prob(torch.tensor(0.0))),
        (dist.Normal(0.0, 1.0), spiked),
    ],
    ids=["kink", "mixture", "spike"],
)
def test_what_is_quadratic_only_near_the_mean_is_no_closed_form(
    prior: Any, log_likelihood: Callable[[Tensor], Tensor]
) -> None:
    """They were accepted, 0.6 and 3 nats too low, and the spike not seen."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", prior)
            pyro.factor("likelihood", log_likelihood(z))
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    y = torch.tensor([0.0, 5.0])
    guide = pv.Guide(model, pv.GlobalParameters(), example=y)
    with pytest.raises(ValueError, match=r"ClosedForm\(\) requires"):
        pv.log_marginal_likelihood(model, guide, y, pv.ClosedForm())
    found = pv.log_marginal_likelihood(model, guide, y, pv.Tightest())
    z = torch.linspace(-80, 80, 320_001, dtype=torch.float64)
    evidence = (prior.log_prob(z) + log_likelihood(z)).logsumexp(dim=0) + math.log(5e-4)
    truth = evidence + dist.Normal(0.0, 1.0).log_prob(y.double())
    assert found.method == "quadrature"
    assert (((found.value - truth).abs() < 1e-3) | ~found.reliable).all()


def followed(z: Tensor) -> Tensor:
    """Written into a part, read from a view, multiplied, summed."""
    x = torch.zeros(*z.shape, 2)
    x[..., 0] = z
    x[..., 1] = 2 * z - 1
    return (x @ torch.tensor([[1.0], [2.0]])).squeeze(-1) + x.flip(-1).mean(-1)


def branching(z: Tensor) -> Tensor:
    """A value decides."""
    return z if bool(z.max() < 6) else -z


POLYNOMIALS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "constant": (torch.zeros_like, 2),
    "followed": (followed, 2),
    "square": (torch.square, 4),
    "product": (lambda z: z * z.flip(-1) ** 2, 6),
    "chosen": (lambda z: z.where(torch.arange(z.shape[-1]) > 0, 0.0), 2),
    "kink": (lambda z: z.where(z < 6, -z), math.inf),
    "quotient": (lambda z: z / (1 + z), math.inf),
    "in place": (lambda z: torch.zeros_like(z).add_(z).tanh_(), math.inf),
    "part": (lambda z: torch.cat([z[:1].exp(), z[1:]]), math.inf),
    "branch": (branching, math.inf),
    "integers": (lambda z: z.long().to(z.dtype), math.inf),
    "rounded": (lambda z: torch.div(z, 2.0, rounding_mode="floor"), math.inf),
    "filled": (lambda z: torch.zeros_like(z).fill_(z[0]).exp(), math.inf),
}


@pytest.mark.parametrize("name", POLYNOMIALS)
def test_the_degree_of_a_program(name: str) -> None:
    """As that of y ~ N(f(z), 1): twice the degree of f, or at least that of the prior."""
    location, expected = POLYNOMIALS[name]

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(location(z), 1.0), obs=y)

    y = torch.randn(3)
    degree, operation = degree_of(Program(model, y), (y,))
    assert degree == expected
    assert bool(operation) == math.isinf(degree)


def test_a_row_is_named_by_its_place_in_the_data() -> None:
    """Rows are read off a few thousand at a time; the message counted from the first of those."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(torch.where(y > 5, z.square(), z), 1.0), obs=y)

    y = torch.zeros(4100)
    y[4098] = 9.0
    guide = pv.Guide(model, pv.ExactPosterior(), example=y)
    with pytest.raises(ValueError, match=r"log joint of row 4098 "):
        guide.mean(y)


def test_a_latent_that_leaves_torch_has_no_closed_form() -> None:
    """Its operations are not seen there; draws of the prior show what they do."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            beyond = torch.from_numpy(np.tanh(z.detach().numpy()))
            pyro.sample("y", dist.Normal(beyond, 1.0), obs=y)

    y = torch.randn(3)
    assert degree_of(Program(model, y), (y,))[0] == 2
    guide = pv.Guide(model, pv.GlobalParameters(), example=y)
    with pytest.raises(
        ValueError, match=r"At a draw of the prior, .* nats from a quadratic function"
    ):
        pv.log_marginal_likelihood(model, guide, y, pv.ClosedForm())
