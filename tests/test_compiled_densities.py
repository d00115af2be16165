"""Compiled densities and gradients against those of the program, on the same latents."""

import copy
import functools
import warnings
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.compiling import Captured, CompiledDensity, NotCaptured, capture, graphs
from pyro_vae.evidence.annealing import Start, StartFromPrior
from pyro_vae.guides.row_fits import fit_parameters
from pyro_vae.programs import Program, evaluating
from tests.helpers.conformance import PROGRAMS, REPRESENTATIVE
from tests.helpers.graphs import branching, coins, images, shared_level

# These read the indices of a plate that is a loop.
LOOPS = {"loops"}
EVERY = [("dependent", 3), ("covariate", 3)] + [
    pytest.param(name, 2048, marks=[] if name in REPRESENTATIVE else pytest.mark.slow)
    for name in PROGRAMS
]


pytestmark = pytest.mark.filterwarnings("ignore:.*cannot be trusted")


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs run as they were captured: compiling takes seconds, and changes roundings alone."""
    monkeypatch.setattr(Captured, "compiled", lambda captured, *args: captured)


def given(program: Program) -> Program:
    """With values for what all data share."""
    values = {site.name: site.constrain(torch.zeros(site.size))[0] for site in program.global_sites}
    return program.given(values) if values else program


def compared(
    program: Program, fast: CompiledDensity, z: Tensor, batch: Any, tolerance: float
) -> None:
    """Both densities, and the gradient of a sum in which each has weights of its own."""
    answers = []
    weights = torch.randn(
        2, *z.shape[:2], dtype=z.dtype, generator=torch.Generator().manual_seed(0)
    )
    pair: list[Any] = [program, fast]
    for either in pair:
        leaf = z.clone().requires_grad_()
        densities = either.log_densities(leaf, *batch)
        total = sum((w * d).sum() for w, d in zip(weights, densities, strict=True))
        answers.append([*densities, *torch.autograd.grad(total, leaf)])
        with torch.no_grad():
            answers[-1] += either.log_densities(z, *batch)
    for mine, theirs in zip(*answers, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.usefixtures("float64", "user_param_store", "uncompiled")
@pytest.mark.parametrize(("name", "rows"), EVERY)
def test_every_program(name: str, rows: int) -> None:
    """In a piece that has to be filled up, and in pieces that are too few for all draws."""
    case = PROGRAMS[name]
    batch = case.data()
    program = given(Program(case.program, *batch))
    fast = CompiledDensity(program, compile=True, rows=rows)
    z = torch.randn(4, len(batch[0]), program.latent_dim)
    if name in LOOPS:
        with pytest.warns(UserWarning, match="not compiled"):
            compared(program, fast, z, batch, 1e-12)
        return
    with evaluating(case.program):
        compared(program, fast, z, batch, 1e-10)
    assert graphs.kept_with(case.program).graphs


@pytest.mark.slow
def test_compiled() -> None:
    """By the compiler, in float32."""
    model, y = images()
    program = Program(model, y)
    with evaluating(model):
        z = torch.randn(4, len(y), 3)
        compared(program, CompiledDensity(program, compile=True), z, (y,), 1e-5)
    assert len(graphs.kept_with(model).graphs) == 2


@pytest.mark.usefixtures("uncompiled")
def test_a_fit_is_the_same() -> None:
    """Where the rows go does not depend on it, beyond the tolerance; from bad starts, too."""
    model, y = images(40)
    guide = pv.Guide(model, pv.Encoder(pv.nets.MLPEncoder(20, (16,))))
    start = guide.prior_parameters().detach().repeat(len(y), 1)
    fits = [
        fit_parameters(guide.program, guide.family, (y,), start, pv.FitRows(compile=compile))
        for compile in (False, True)
    ]
    assert bool(fits[0].converged.all() & fits[1].converged.all())
    torch.testing.assert_close(fits[1].elbo, fits[0].elbo, rtol=0, atol=1e-4)
    assert graphs.kept_with(model).graphs


@pytest.mark.usefixtures("float64", "uncompiled")
@pytest.mark.parametrize("start", [StartFromPrior(), pv.StartFromGuide()], ids=["prior", "guide"])
def test_chains_are_the_same(start: Start) -> None:
    """Trajectories take their gradients from it: in float64 they end where they did."""
    model, y = images()
    guide = pv.Guide(model.double(), pv.Encoder(pv.nets.MLPEncoder(20, (16,)).double()))
    values = [
        pv.log_marginal_likelihood(
            model,
            guide,
            y.double(),
            pv.AnnealedImportanceSampling(4, 20, start=start, compile=compile),
        ).value
        for compile in (False, True)
    ]
    torch.testing.assert_close(values[1], values[0], rtol=0, atol=1e-8)
    assert graphs.kept_with(model).graphs


@pytest.mark.usefixtures("uncompiled")
def test_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unasked it is compiled once so many eager calls have cost as much; never, if refused."""
    model, y = images()
    guide = pv.Guide(model, pv.Encoder(pv.nets.MLPEncoder(20, (16,))))
    start = guide.prior_parameters().detach().repeat(len(y), 1)
    for seconds, compile, expected in ((0.1, None, 0), (1e-6, False, 0), (1e-6, None, 2)):
        monkeypatch.setattr(graphs, "_COMPILING", seconds)
        fit_parameters(guide.program, guide.family, (y,), start, pv.FitRows(compile=compile))
        assert len(graphs.kept_with(model).graphs) == expected


@pytest.mark.usefixtures("uncompiled")
def test_graphs_follow_the_weights() -> None:
    """A graph that was kept sees weights that have moved."""
    model, y = images()
    program = Program(model, y)
    z = torch.randn(4, len(y), 3)
    with evaluating(model):
        compared(program, CompiledDensity(program, compile=True), z, (y,), 1e-5)
        kept = dict(graphs.kept_with(model).graphs)
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(1.5)
        compared(program, CompiledDensity(program, compile=True), z, (y,), 1e-5)
    assert graphs.kept_with(model).graphs == kept


@pytest.mark.usefixtures("float64", "uncompiled")
def test_graphs_do_not_keep_replaced_weights() -> None:
    """A change too small for the comparison, by tensors that replace those in the graph."""
    model, y = images()
    program, z = Program(model, y), torch.randn(4, len(y), 3)
    with evaluating(model):
        compared(program, CompiledDensity(program, compile=True), z, (y,), 1e-10)
        state = {name: value * (1 + 1e-6) for name, value in model.state_dict().items()}
        model.load_state_dict(state, assign=True)
        compared(program, CompiledDensity(program, compile=True), z, (y,), 1e-10)
    assert len(graphs.kept_with(model).graphs) == 2  # those of the old weights are gone


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("validated", [True, False])
def test_a_change_that_no_tensor_shows_is_caught(validated: bool) -> None:  # noqa: FBT001
    """A fixed sigma is a number in the graph: the graph is dropped, the answer right."""
    model = pv.models.VAE(nn.Linear(2, 4), pv.likelihoods.Gaussian(0.5), latent_dim=2)
    y = model.sample(4, seed=0)
    program = Program(model, y)
    z = torch.randn(3, 4, 2)
    with evaluating(model), pyro.validation_enabled(validated):
        compared(program, CompiledDensity(program, compile=True), z, (y,), 1e-5)
        model.likelihood.sigma.sigma = 1.0  # type: ignore[union-attr]
        with pytest.warns(UserWarning, match="differ from those of the eager program"):
            compared(program, CompiledDensity(program, compile=True), z, (y,), 0)
    assert not graphs.kept_with(model).graphs


@pytest.mark.usefixtures("uncompiled")
def test_missing_entries() -> None:
    """Data with and without holes have graphs of their own."""
    model = pv.models.VAE(nn.Linear(2, 4), pv.likelihoods.Gaussian(0.5), latent_dim=2)
    y = model.sample(4, seed=0)
    holes = y.masked_fill(torch.rand_like(y) < 0.3, torch.nan)
    program = Program(model, y)
    with evaluating(model):
        for data in (y, holes, y):
            compared(
                program, CompiledDensity(program, compile=True), torch.randn(3, 4, 2), (data,), 1e-5
            )
    assert len(graphs.kept_with(model).graphs) == 4


@pytest.mark.usefixtures("uncompiled")
def test_latents_that_all_data_share() -> None:
    """Their values are arguments of the graph, not parts of it."""
    y, model = torch.randn(4, 2), functools.partial(shared_level)  # an object of this test's own
    program = Program(model, y)
    for level in (0.0, 3.0):
        fixed = program.given({"level": torch.tensor(level)})
        compared(fixed, CompiledDensity(fixed, compile=True), torch.randn(3, 4, 2), (y,), 1e-5)
    assert len(graphs.kept_with(model).graphs) == 2


@pytest.mark.usefixtures("uncompiled")
def test_data_are_validated_still() -> None:
    """Data outside of the support are refused, of whatever row."""
    y = torch.zeros(4, 2)
    fast = CompiledDensity(Program(coins, y), compile=True)
    z = torch.randn(3, 4, 2)
    fast.log_joint(z, y)
    y[-1, -1] = 0.5
    with pytest.raises(ValueError, match="support"):
        fast.log_joint(z, y)


@pytest.mark.usefixtures("uncompiled")
def test_a_refusal_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unasked, what cannot be compiled is captured once, in the first evaluation."""
    y, captured = torch.rand(4, 2), []
    program = Program(functools.partial(branching), y)
    monkeypatch.setattr(graphs, "_COMPILING", 0.0)

    def counted(*args: Any, **how: Any) -> Captured:
        captured.append(0)
        return capture(*args, **how)

    monkeypatch.setattr(graphs, "capture", counted)
    for _ in range(4):
        density = CompiledDensity(program, compile=None)
        compared(program, density, torch.randn(3, 4, 2), (y,), 0)
    assert len(captured) == 1


@pytest.mark.usefixtures("uncompiled")
def test_a_program_that_counts_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """What differs from call to call agrees with no graph: unasked it is tried twice in all."""
    calls = []
    monkeypatch.setattr(graphs, "_COMPILING", 0.0)

    def model(y: Tensor) -> None:
        calls.append(0)
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(z, float(len(calls))).to_event(1), obs=y)

    y = torch.rand(4, 2)
    program = Program(model, y)
    for tries in (0, 1, 2, 2, 2):  # the first evaluation counts
        CompiledDensity(program, compile=None).log_joint(torch.randn(3, 4, 2), y)
        assert graphs.kept_with(model).disagreements == tries
    assert not graphs.kept_with(model).graphs


@pytest.mark.usefixtures("uncompiled")
def test_graphs_stay_with_the_very_model(tmp_path: Path) -> None:
    """No copy has them, deep, shallow or saved; nothing that a module shows of itself does."""
    model, y = images()
    names = set(model.state_dict())
    with evaluating(model):
        CompiledDensity(Program(model, y), compile=True).log_joint(torch.randn(3, len(y), 3), y)
    assert graphs.kept_with(model).graphs
    assert set(model.state_dict()) == names
    torch.save(model, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    for other in (copy.deepcopy(model), copy.copy(model), loaded):
        assert not graphs.kept_with(other).graphs
    assert graphs.kept_with(model).graphs


def test_methods_and_wrapped_functions() -> None:
    """A bound method's graphs are with its object; a wrapper has none of what it wraps."""

    class Holder:
        def model(self, y: Tensor) -> None:
            coins(y)

    holder = Holder()
    assert graphs.kept_with(holder.model) is graphs.kept_with(holder.model)
    wrapped = functools.wraps(coins)(lambda y: branching(y))
    assert graphs.kept_with(coins) is not graphs.kept_with(wrapped)


def test_what_cannot_be_compiled() -> None:
    """A branch on the data: one line that says where, and the answer as it is written."""
    y = torch.rand(4, 2)
    program = Program(branching, y)
    with pytest.warns(UserWarning, match=r"not compiled: .*reads a number out of a tensor"):
        compared(program, CompiledDensity(program, compile=True), torch.randn(3, 4, 2), (y,), 0)


# Importance sampling


def with_encoder() -> tuple[pv.models.VAE, pv.Guide, Tensor]:
    """Model, guide and data."""
    model, y = images()
    return model, pv.Guide(model, pv.Encoder(pv.nets.MLPEncoder(20, (16,)))), y


def both(model: object, guide: object, y: Tensor, num_samples: int = 60) -> tuple[Tensor, Tensor]:
    """Log p(y) eagerly, and compiled."""
    values = [
        pv.log_marginal_likelihood(
            model,  # type: ignore[arg-type]
            guide,  # type: ignore[arg-type]
            y,
            pv.ImportanceSampling(num_samples, compile=compile),
        ).value
        for compile in (False, True)
    ]
    return values[0], values[1]


@pytest.mark.slow
def test_draws_have_the_same_densities() -> None:
    """Same draws, same densities, but for rounding; for full pieces and for what is left over."""
    model, guide, y = with_encoder()
    for num_samples in (60, 61):
        eager, found = both(model, guide, y, num_samples)
        torch.testing.assert_close(found, eager, rtol=1e-6, atol=1e-6)
    assert graphs.kept_with(model).graphs


@pytest.mark.usefixtures("uncompiled")
def test_graphs_of_draws_are_of_one_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last data fill a piece up, and the program is run once to compare, on the first piece."""
    model, guide, y = with_encoder()
    monkeypatch.setattr("pyro_vae.evidence.weights._FAST_ROWS", 120)  # of two data
    monkeypatch.setattr("pyro_vae.evidence.weights._FAST_BYTES", 0)
    checked: list[int] = []
    agree = graphs.Graphs.agree

    def noted(self: Any, expected: Any, found: Any) -> bool:
        checked.append(len(expected[0]))
        return agree(self, expected, found)

    monkeypatch.setattr(graphs.Graphs, "agree", noted)
    eager, found = both(model, guide, y[:5])
    torch.testing.assert_close(found, eager, rtol=1e-6, atol=1e-6)
    assert len(graphs.kept_with(model).graphs) == len(checked) == 1


@pytest.mark.usefixtures("uncompiled")
def test_every_graph_of_draws_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph from before a change that no tensor shows, for pieces after the first."""
    model = pv.models.VAE(nn.Linear(2, 4), pv.likelihoods.Gaussian(0.5), latent_dim=2)
    guide = pv.Guide(model, pv.GlobalParameters())
    y = model.sample(4, seed=0)
    holes = y.masked_fill(torch.eye(4, dtype=torch.bool), torch.nan)
    monkeypatch.setattr("pyro_vae.evidence.weights._FAST_ROWS", 120)  # of two data
    monkeypatch.setattr("pyro_vae.evidence.weights._FAST_BYTES", 0)
    both(model, guide, holes)
    model.likelihood.sigma.sigma = 1.0  # type: ignore[union-attr]
    with pytest.warns(UserWarning, match="differ from those of the eager program"):
        eager, found = both(model, guide, torch.cat([y, holes]))
    torch.testing.assert_close(found, eager, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_graphs_of_draws_follow_the_weights() -> None:
    """A second evaluation compiles nothing, and sees weights that have moved."""
    model, guide, y = with_encoder()
    both(model, guide, y)
    (graph,) = graphs.kept_with(model).graphs.values()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.5)
    eager, found = both(model, guide, y)
    torch.testing.assert_close(found, eager, rtol=1e-6, atol=1e-6)
    assert list(graphs.kept_with(model).graphs.values()) == [graph]


@pytest.mark.slow
def test_draws_after_a_change_that_no_tensor_shows() -> None:
    """A fixed sigma is a number in the graph: the graph is dropped, the answer right."""
    model = pv.models.VAE(nn.Linear(2, 4), pv.likelihoods.Gaussian(0.5), latent_dim=2)
    guide = pv.Guide(model, pv.Encoder(nn.Linear(4, 4)))
    y = model.sample(4, seed=0)
    both(model, guide, y)
    model.likelihood.sigma.sigma = 1.0  # type: ignore[union-attr]
    with pytest.warns(UserWarning, match="differ from those of the eager program"):
        eager, found = both(model, guide, y)
    assert torch.equal(found, eager)
    assert not graphs.kept_with(model).graphs


@pytest.mark.slow
def test_draws_with_missing_entries() -> None:
    """Data with and without holes have graphs of their own."""
    model = pv.models.VAE(nn.Linear(2, 4), pv.likelihoods.Gaussian(0.5), latent_dim=2)
    encoder = pv.nets.MissingIndicator(pv.nets.MLPEncoder(8, (4,)))
    guide = pv.Guide(model, pv.Encoder(encoder))
    y = model.sample(4, seed=0)
    holes = y.masked_fill(torch.rand_like(y) < 0.3, torch.nan)
    for data in (y, holes, y):
        eager, found = both(model, guide, data)
        torch.testing.assert_close(found, eager, rtol=1e-6, atol=1e-6)
    assert len(graphs.kept_with(model).graphs) == 2


@pytest.mark.slow
def test_draws_given_latents_that_all_data_share() -> None:
    """Their values are arguments of the graph, not parts of it."""
    y, model = torch.randn(4, 2), functools.partial(shared_level)
    guide = pv.Guide(model, pv.Encoder(nn.Linear(2, 4)), example=y)
    for level in (0.0, 3.0):
        values = [
            pv.log_marginal_likelihood(
                model, guide, y, pv.ImportanceSampling(50, compile=compile),
                given={"level": torch.tensor(level)},
            ).value
            for compile in (False, True)
        ]  # fmt: skip
        torch.testing.assert_close(values[1], values[0], rtol=1e-6, atol=1e-6)
    assert len(graphs.kept_with(model).graphs) == 1


def test_draws_of_what_cannot_be_compiled() -> None:
    """A branch on the data: one line that says where, and the answer eagerly."""
    y = torch.rand(4, 2)
    guide = pv.Guide(branching, pv.Encoder(nn.Linear(2, 4)), example=y)
    with pytest.warns(UserWarning, match=r"not compiled: .*reads a number out of a tensor"):
        eager, found = both(branching, guide, y)
    assert torch.equal(found, eager)


@pytest.mark.slow
def test_data_of_draws_are_validated_still() -> None:
    """What a program refuses it refuses compiled, too."""
    y = torch.zeros(4, 2)

    guide = pv.Guide(coins, pv.Encoder(nn.Linear(2, 4)), example=y)
    both(coins, guide, y)
    with pytest.raises(ValueError, match="support"), warnings.catch_warnings():
        pv.log_marginal_likelihood(coins, guide, y + 0.5, pv.ImportanceSampling(60, compile=True))


def test_when_draws_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """By counts of operations, bytes and draws, from the second block on, within the budget."""
    model, guide, y = with_encoder()
    asked: list[int] = []

    def refused(*args: Any, **how: Any) -> Captured:
        asked.append(0)
        raise NotCaptured("in this test")

    monkeypatch.setattr(graphs, "compiled", refused)
    for memory, seconds, expected in ((512.0, 0.1, 0), (299.0, 0.0, 0), (512.0, 0.0, 1)):
        monkeypatch.setattr(graphs, "_COMPILING", seconds)
        for _ in range(2):
            method = pv.ImportanceSampling(60, memory=memory)
            pv.log_marginal_likelihood(model, guide, y, method)
        assert len(asked) == expected


def two_levels(y: Tensor) -> None:
    """Two values that all data share, and that must not be taken for one another."""
    low, high = (pyro.sample(name, dist.Normal(0.0, 1.0)) for name in ("low", "high"))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(low, 1.0))
        pyro.sample("y", dist.Normal(z + 2 * high, 1.0), obs=y)


@pytest.mark.usefixtures("uncompiled")
def test_values_are_taken_by_name_and_not_by_their_order() -> None:
    """A graph that was captured with the values in one order gets them in another."""
    y, z, model = torch.randn(4), torch.randn(3, 4, 1), functools.partial(two_levels)
    program, names = Program(model, y), ("low", "high")
    for order in (names, names[::-1]):
        fixed = program.given({name: torch.tensor(float(name == "high")) for name in order})
        fast = CompiledDensity(fixed, compile=True)
        fast.log_densities(z, y)
        (graph,) = graphs.kept_with(model).graphs.values()
        prior, likelihood = fast.replayed(graph, z, (y,))
        expected = fixed.log_densities(z, y)
        torch.testing.assert_close(prior, expected.prior, check_dtype=False)
        torch.testing.assert_close(likelihood, expected.likelihood, check_dtype=False)
