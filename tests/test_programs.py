"""A program as a density per datum: against densities written by hand, and what is refused."""

import inspect
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.reparam import LocScaleReparam, TransformReparam
from pyro.optim import Adam  # type: ignore[attr-defined]
from scipy import stats
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae._types import ProgramLike
from pyro_vae.programs import Program, evaluating
from tests.helpers.cases import (
    CASES,
    NUM_DATA,
    Case,
    factor_analysis,
    normal,
    numbers,
    scalar,
    subsampled,
)
from tests.helpers.idioms import IDIOMS
from tests.helpers.statistics import FACTS, FACTS_Y, FALSE_ALARM

NUM_PARTICLES = 3


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    """Makes each dtype the default one."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(before)


def tolerance(dtype: torch.dtype) -> float:
    """Rounding of a sum of some tens of terms of size one."""
    return 1e-4 if dtype == torch.float32 else 1e-11


EVERY = {**CASES, **IDIOMS}
user_param_store = pytest.mark.usefixtures("user_param_store")  # one of the programs fills it
every_case = pytest.mark.parametrize("case", EVERY.values(), ids=EVERY)


def draws(case: Case) -> Tensor:
    """Flat latents `(particles, batch, latents)` at which densities are compared."""
    return torch.randn(NUM_PARTICLES, NUM_DATA, case.latents)


# ---------------------------------------------------------------------- densities


@every_case
@user_param_store
def test_log_joint(case: Case, dtype: torch.dtype) -> None:
    """Log p(y_n, z_kn) is what it is on paper, Jacobian included, for each particle and datum."""
    batch, z = case.data(), draws(case)
    log_joint = pv.log_joint(case.program, z, *batch)
    assert log_joint.dtype == dtype
    torch.testing.assert_close(
        log_joint, case.density(z, *batch), rtol=tolerance(dtype), atol=tolerance(dtype)
    )


@every_case
@user_param_store
@pytest.mark.usefixtures("float64")
def test_particles_are_a_loop(case: Case) -> None:
    """Repeating the rows is the same as asking for one particle, and one datum, at a time."""
    batch, z = case.data(), draws(case)
    program = Program(case.program, *batch)

    def one(k: int, n: int) -> Tensor:
        row = (part[n : n + 1] for part in batch)
        return program.log_joint(z[k : k + 1, n : n + 1], *row)[0, 0]

    with evaluating(case.program), torch.no_grad():
        loop = [[one(k, n) for n in range(NUM_DATA)] for k in range(NUM_PARTICLES)]
        together = program.log_joint(z, *batch)
    torch.testing.assert_close(together, torch.tensor(loop), rtol=1e-12, atol=1e-12)


@every_case
@user_param_store
@pytest.mark.usefixtures("float64")
def test_outer_handlers_do_nothing(case: Case) -> None:
    """Whatever runs around the call neither scales the numbers nor sees the program."""
    batch, z = case.data(), draws(case)
    alone = pv.log_joint(case.program, z, *batch)
    with (
        poutine.trace() as trace,
        poutine.scale(scale=0.1),
        poutine.mask(mask=False),
        pv.minibatch(torch.arange(NUM_DATA), 100),
    ):
        inside = pv.log_joint(case.program, z, *batch)
    assert torch.equal(inside, alone)
    assert len(trace.trace.nodes) == 0


@every_case
@user_param_store
@pytest.mark.usefixtures("float64")
def test_flatten_is_the_inverse(case: Case) -> None:
    """Values go to flat vectors and back, with the same Jacobian."""
    program = Program(case.program, *case.data())
    z = draws(case)[0]
    values, jacobian = program.constrain(z)
    flat, again = program.flatten(values)
    torch.testing.assert_close(flat, z, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(again, jacobian, rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("float64")
def test_densities_add_up() -> None:
    """Prior and likelihood are apart; their sum is the joint density."""
    batch, z = numbers(), torch.randn(NUM_PARTICLES, NUM_DATA, 1)
    prior, likelihood = Program(scalar, *batch).log_densities(z, *batch)
    torch.testing.assert_close(prior, normal(z[..., 0], 0.5, 2.0))
    torch.testing.assert_close(likelihood, normal(batch[0], z[..., 0], 1.0))


@pytest.mark.usefixtures("float64")
def test_exact_posterior_gives_the_evidence() -> None:
    """Log p(y, z) - log p(z | y) is log p(y) at every z."""
    y = torch.cat([FACTS_Y, FACTS.sample(4)])
    posterior = FACTS.posterior(y)
    z = posterior.sample((7,))
    log_weights = pv.log_joint(factor_analysis, z, y) - posterior.log_prob(z)
    exact = FACTS.log_evidence(y).expand(7, -1)
    torch.testing.assert_close(log_weights, exact, rtol=0, atol=1e-11)


def test_gradients_reach_latents_and_weights() -> None:
    """The density is differentiable in z and in what the program's modules hold."""
    decoder = nn.Linear(2, 3)
    model = pv.models.VAE(decoder, pv.likelihoods.Bernoulli(), latent_dim=2)
    z = torch.randn(NUM_PARTICLES, NUM_DATA, 2, requires_grad=True)
    pv.log_joint(model, z, torch.ones(NUM_DATA, 3)).sum().backward()
    for tensor in (z, decoder.weight, decoder.bias):
        assert tensor.grad is not None
        assert tensor.grad.abs().min() > 0


# ---------------------------------------------------------------------- minibatches


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "at least one row; got none"),
        ([0, 10], r"`rows` must be between 0 and 9 for num_data=10; got rows from 0 to 10"),
        ([-1, 2], r"got rows from -1 to 2"),
    ],
)
def test_wrong_rows_are_refused(rows: list[int], message: str) -> None:
    """A row that the data do not have is never taken for another."""
    with (
        pytest.raises(ValueError, match=message),
        pv.minibatch(torch.tensor(rows, dtype=torch.int64), num_data=10),
    ):
        pass


def same_size_inside(y: Tensor) -> None:
    """An inner plate as long as the batch, and a site in it that is not a datum's."""
    features = pyro.plate("features", 2, dim=-2)
    with features:
        pyro.sample("shift", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with features:
            pyro.sample("y", dist.Normal(z, 1.0), obs=y.expand(2, -1))


def same_size_subsampled(y: Tensor) -> None:
    """An inner plate as long as the batch of a plate that subsamples by itself."""
    with pyro.plate("data", 10, subsample_size=len(y), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("features", 2, dim=-2):
            pyro.sample("y", dist.Normal(z, 1.0), obs=y.expand(2, -1))


SCALES: dict[str, tuple[ProgramLike, str | None, dict[str, float]]] = {
    "plate of the batch": (scalar, None, {"z": 5.0, "y": 5.0}),
    "plate that subsamples": (subsampled, None, {"z": 5.0, "y": 5.0}),  # it says it has six data
    "inner plate of the same size": (same_size_subsampled, None, {"z": 5.0, "y": 5.0}),
    "named": (same_size_inside, "data", {"shift": 1.0, "z": 5.0, "y": 5.0}),
}


@pytest.mark.parametrize("case", SCALES)
def test_sites_are_scaled_once(case: str) -> None:
    """Two rows of ten: every site of a datum by five, whoever says so, and no other site."""
    program, plate, expected = SCALES[case]
    with pv.minibatch(torch.tensor([7, 2]), num_data=10, plate=plate):
        nodes = poutine.trace(program).get_trace(torch.zeros(2)).nodes
    assert {name: nodes[name]["scale"] for name in expected} == expected


@pytest.mark.usefixtures("user_param_store")
def test_a_look_at_a_program_leaves_its_statistics_alone() -> None:
    """The batch norm of a flow counts what it inverts in training, also for a log density."""
    flow = dist.transforms.BatchNorm(2)

    def program(y: Tensor) -> None:
        pyro.module("flow", flow)
        base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.TransformedDistribution(base, [flow]))
            pyro.sample("y", dist.Normal(z, 1.0).to_event(1), obs=y)

    before = {name: value.clone() for name, value in flow.state_dict().items()}
    Program(program, torch.randn(3, 2))
    assert flow.training
    assert all(torch.equal(value, before[name]) for name, value in flow.state_dict().items())


def test_a_block_ends() -> None:
    """Afterwards, and after an error, nothing is scaled and no rows are known."""
    with pytest.raises(KeyError), pv.minibatch(torch.tensor([1]), num_data=10):
        raise KeyError
    nodes = poutine.trace(scalar).get_trace(torch.zeros(1)).nodes
    assert nodes["y"]["scale"] == 1.0


# ---------------------------------------------------------------------- plates and arguments


def test_a_plate_without_a_size_holds_the_batch() -> None:
    """Its one plate is that of the data, and a guide of ours fits it."""

    def unsized(y: Tensor) -> None:
        with pyro.plate("data"):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(y)), 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    y, z = torch.randn(4), torch.randn(3, 4, 1)
    expected = normal(z[..., 0], 0.0, 1.0) + normal(y, z[..., 0], 1.0)
    torch.testing.assert_close(pv.log_joint(unsized, z, y), expected)
    guide = pv.Guide(unsized, pv.LocalParameters(4), example=y)
    svi = SVI(unsized, guide, Adam({"lr": 0.01}), Trace_ELBO())
    with pv.minibatch(torch.arange(2), num_data=4):
        assert math.isfinite(svi.step(y[:2]))
    pyro.clear_param_store()


def genes(y: Tensor) -> None:
    """Cells at dim -2, and what is right of them in no plate, as cell2location has it."""
    with pyro.plate("cells", len(y), dim=-2):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(y), 2), 1.0))
        pyro.sample("y", dist.Normal(z @ torch.ones(2, 3), 1.0), obs=y)


def test_dimensions_right_of_the_plate_belong_to_a_datum() -> None:
    """They are summed over; where they follow the batch the plate is at the wrong dimension."""
    y, z = torch.randn(4, 3), torch.randn(5, 4, 2)
    mean = z.sum(-1, keepdim=True).expand(5, 4, 3)
    expected = normal(z, 0.0, 1.0).sum(-1) + normal(y, mean, 1.0).sum(-1)
    torch.testing.assert_close(pv.log_joint(genes, z, y), expected)


# As users have it: without the types' own checks, which the tests switch on.
as_batch: Any = inspect.unwrap(pv.programs.as_batch)
X = torch.tensor([0.5, 2.0, -1.0])
NOT_ROWS: dict[str, Any] = {
    "None": (X, None),
    "number": (X, 0.5),
    "constants before and between": (None, X, True, X / 2),
    "dict": {"y": X, "x": X / 2},
    "dict beside tensors": (X, {"x": X / 2, "name": "a", "y": None}),
    "dict with other names": {0: X, "a b": {"lambda": X}},
}


@pytest.mark.parametrize("name", NOT_ROWS)
def test_what_is_not_a_tensor_of_rows_is_bound(name: str) -> None:
    """The refusal's line runs, and its program gets what was passed."""
    data, got = NOT_ROWS[name], []

    def model(*arguments: Any) -> None:
        got.append(arguments)
        location(X)

    with pytest.raises(TypeError) as refusal:
        as_batch(data)
    found = re.search(r"pass only (\(?[\w, ]+\)?), with .* as in (lambda .*)", str(refusal.value))
    assert found is not None
    line = eval(found[2], {"model": model})
    count = found[1].count(",") + 1
    line(*[tensor for tensor in (X, X / 2)[:count]])
    expected = data if isinstance(data, tuple) else (data,)
    assert str(got[0]) == str(expected) or (count == 2 and name.endswith("other names"))


def location(y: Tensor) -> None:
    """Z ~ N(0, 1), y ~ N(z, 1)."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def test_an_encoder_of_one_tensor_is_told_of_the_others() -> None:
    """The refusal's line runs, with one number a row too."""

    def model(y: Tensor, x: Tensor) -> None:
        location(y[:, 0] - x)

    y, x = torch.randn(4, 2), torch.randn(4)
    one = pv.Guide(model, pv.Encoder(pv.nets.MLPEncoder(2)), example=(y, x))
    with pytest.raises(TypeError, match=r"MLPEncoder, .* 2 tensors.*Concatenated.* has 3 inputs"):
        pv.elbo(model, one, (y, x))
    net = pv.nets.Concatenated(pv.nets.MLPEncoder(3))
    both = pv.Guide(model, pv.Encoder(net), example=(y, x))
    assert pv.elbo(model, both, (y, x)).elbo.value.isfinite().all()


def _certain(y: Tensor) -> None:
    """A `Delta` site: its value follows, it is no latent."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        twice = pyro.sample("twice", dist.Delta(2 * z))
        pyro.sample("y", dist.Normal(twice, 1.0), obs=y)


def _mixture(y: Tensor) -> None:
    """A prior that is a mixture, its components not a site."""
    with pyro.plate("data", len(y)):
        parts = dist.Normal(torch.tensor([-1.0, 2.0]), 0.5)
        shares = dist.Categorical(torch.tensor([0.3, 0.7]))
        z = pyro.sample("z", dist.MixtureSameFamily(shares, parts))
        pyro.sample("y", dist.Normal(z, 0.5), obs=y)


def _pareto(y: Tensor) -> None:
    """Bounds that a plate repeats for its rows are the same for all data."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Pareto(1.0, 2.0))
        pyro.sample("y", dist.Normal(z.log(), 1.0), obs=y)


def _two_normals(y: Tensor) -> Tensor:
    """The mixture's evidence."""
    parts = dist.Normal(torch.tensor([-1.0, 2.0]), 0.5**0.5).log_prob(y.unsqueeze(-1))
    return (parts + torch.tensor([0.3, 0.7]).log()).logsumexp(-1)


def _exponential_and_normal(y: Tensor) -> Tensor:
    """Log z is exponential with rate 2: the sum with a normal is an exponentially modified one."""
    tail = dist.Normal(0.0, 1.0).cdf(y - 2)
    return torch.tensor(2.0).log() + 2 - 2 * y + tail.log()


@pytest.mark.parametrize(
    ("model", "truth"),
    [
        (_certain, dist.Normal(0.0, 5**0.5).log_prob),
        (_mixture, _two_normals),
        (_pareto, _exponential_and_normal),
    ],
)
def test_kinds_of_latent_sites(
    model: Callable[[Tensor], None], truth: Callable[[Tensor], Tensor]
) -> None:
    """Their evidence by quadrature is the closed form."""
    y = torch.tensor([0.3, -1.2, 2.0])
    guide = pv.Guide(model, pv.GlobalParameters(), example=y)
    found = pv.log_marginal_likelihood(model, guide, y, pv.Quadrature())
    assert bool(found.reliable.all())
    assert bool(((found.value - truth(y)).abs() <= found.error + 1e-4).all())  # float32


def test_a_point_with_a_density_of_its_own_is_no_certain_site() -> None:
    """As guides have them; a model with one has a latent there."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("d", dist.Delta(z, log_density=torch.ones(len(y))))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    assert [site.name for site in Program(model, torch.zeros(2)).latent_sites] == ["z", "d"]


@pytest.mark.parametrize("reparam", [TransformReparam(), LocScaleReparam(0.5)])
def test_a_reparameterized_site_is_no_data(reparam: Any) -> None:
    """Pyro leaves a point in its place, which observes itself; what is drawn for it has a mean."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            normal = isinstance(reparam, LocScaleReparam)
            prior = dist.Normal(1.0, 0.5) if normal else dist.LogNormal(0.0, 0.5)
            rate = pyro.sample("rate", prior)
            pyro.sample("y", dist.Normal(rate, 1.0), obs=y)

    program, y = poutine.reparam(model, config={"rate": reparam}), torch.randn(5)
    assert Program(program, y).observed_names == ("y",)
    guide = pv.Guide(program, pv.GlobalParameters(), example=y)
    means = pv.reconstruct(program, guide, y)
    assert means.shape == (5,)
    assert len(set(means.tolist())) == 1  # the guide is the same for all data
    pv.outliers(program, guide, y, reference=9, progress=False)


def test_noise_of_a_row_is_a_latent_of_it(seed: int) -> None:
    """Dropout that is always on: copies that draw alike by accident are no refusal.

    y = w + e, and w is 0 with probability 0.5 and else 2 z, where z ~ N(0, 1).
    """

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(nn.functional.dropout(z, 0.5), 1.0), obs=y)

    y = torch.linspace(-2.0, 2.0, 16)  # a pair of each, one that differs in another call
    guide = pv.Guide(model, pv.GlobalParameters(), example=y)
    found = pv.log_marginal_likelihood(
        model, guide, y, pv.ImportanceSampling(20_000), seed=seed, progress=False
    )
    normals = [dist.Normal(0.0, scale).log_prob(y.double()) for scale in (1.0, 5**0.5)]
    exact = torch.stack(normals).logsumexp(0) + math.log(0.5)
    z = ((found.value - exact) / found.error).abs()
    assert float(z.max()) < stats.norm.isf(FALSE_ALARM / 2 / len(y))
