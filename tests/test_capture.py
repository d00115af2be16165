"""Captured functions against the programs they were captured from, on the same draws."""

import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import (
    SVI,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from pyro.optim import Adam as PyroAdam  # type: ignore[attr-defined]
from torch import Tensor, nn
from torch.fx import GraphModule

import pyro_vae as pv
from pyro_vae._types import Batch
from pyro_vae.compiling import Captured, NotCaptured, capture, capturing, forms
from pyro_vae.objectives import Objective
from pyro_vae.programs.modes import local_parameters
from tests.helpers.conformance import REPRESENTATIVE, made, triples
from tests.helpers.training import assert_same_state, data, fit, sgd, small, state

float64 = pytest.mark.usefixtures("float64")

# These read numbers out of tensors: line searches, and checks that a posterior has a closed form.
ITERATIVE = {"refined", "refined-local", "exact", "coordinate-ascent"}
# These take the rows that they are told, or move rows of a table.
BY_ROW = {"local"}
# This reads the indices of a plate that is a loop.
LOOPS = {"loops"}
FEW = {(program, map, "diagonal") for program in REPRESENTATIVE for map in ("encoder", "global")}
EVERY = [
    pytest.param(*case.values, marks=case.marks if is_fast else pytest.mark.slow)
    for case in triples()
    for is_fast in ["local" in case.values or case.values in FEW]
]


def gradients(
    objective: Any, model: Any, guide: Any, tensors: Sequence[Tensor], rows: Tensor
) -> Callable[..., list[Tensor]]:
    """The loss of a batch of 50 data, and its gradient."""

    def function(*batch: Tensor) -> list[Tensor]:
        with local_parameters(model, guide), pv.minibatch(rows, 50), torch.enable_grad():
            loss = objective.differentiable_loss(model, guide, *batch)
            found = torch.autograd.grad(
                loss, list(tensors), allow_unused=True, materialize_grads=True
            )
        return [loss.detach(), *found]

    return function


def trainable(*programs: Any) -> list[Tensor]:
    """Parameters of the modules that programs are."""
    modules = [program for program in programs if isinstance(program, nn.Module)]
    return list({id(p): p for module in modules for p in module.parameters()}.values())


def objective_of(model: Any, batch: Batch) -> Any:
    """Pyro's ELBO for a program; the enumerating one where there is something to enumerate."""
    structure = pv.programs.Program(model, *batch).structure
    nesting = structure.nesting
    return TraceEnum_ELBO(max_plate_nesting=nesting) if structure.enumerated else Trace_ELBO()


@float64
@pytest.mark.usefixtures("user_param_store")
@pytest.mark.parametrize(("program", "map", "family"), EVERY)
def test_conformance(program: str, map: str, family: str) -> None:
    """Loss and gradient of every program, map and family, or the line that stands in the way."""
    case, batch, guide = made(program, map, family)
    tensors = trainable(case.program, guide)
    model, objective = case.program, pv.IWAE(3)
    rows = torch.arange(len(batch[0]))
    moved = tuple(part.clone() for part in batch)
    if map in ITERATIVE | BY_ROW or program in LOOPS:
        with pytest.raises(NotCaptured):
            capture(gradients(objective, model, guide, tensors, rows.to("meta")), *batch)
        return
    captured = capture(gradients(objective, model, guide, tensors, rows.to("meta")), *batch)
    with torch.no_grad():  # what is captured holds parameters by reference
        for tensor in tensors:
            tensor.add_(0.01 * torch.randn_like(tensor))
    torch.manual_seed(1)
    expected = gradients(objective, model, guide, tensors, rows)(*moved)
    after = torch.rand(1)
    torch.manual_seed(1)
    for one, other in zip(captured(*moved), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)
    assert torch.equal(torch.rand(1), after)  # as many draws were taken from the stream


OBJECTIVES = {
    "Trace_ELBO": Trace_ELBO(),
    "two particles": Trace_ELBO(num_particles=2),
    "TraceMeanField_ELBO": TraceMeanField_ELBO(),
    "IWAE": pv.IWAE(5),
    "DReG": pv.DReG(5),
    "STL": pv.STL(),
    "Renyi": pv.Renyi(0.5, 5),
    "BetaELBO": pv.BetaELBO(0.5),
}
LIKELIHOODS: dict[str, Callable[[], Any]] = {
    "Bernoulli": pv.likelihoods.Bernoulli,
    "fixed": pv.likelihoods.Gaussian,
    "learned": lambda: pv.likelihoods.Gaussian(pv.likelihoods.LearnedSigma(3)),
}


@float64
@pytest.mark.usefixtures("user_param_store")
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives(name: str, likelihood: str) -> None:
    """Every objective; another batch of the same shape; missing entries where there were some."""
    model, guide = small(LIKELIHOODS[likelihood]())
    objective, tensors, rows = OBJECTIVES[name], trainable(model, guide), torch.arange(10)
    captured = capture(gradients(objective, model, guide, tensors, rows.to("meta")), data())
    for seed in range(2):
        y = data()
        torch.manual_seed(seed)
        expected = gradients(objective, model, guide, tensors, rows)(y)
        torch.manual_seed(seed)
        for one, other in zip(captured(y), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)


@float64
@pytest.mark.usefixtures("user_param_store")
def test_missing_entries() -> None:
    """Captured for data with holes it does with them, and without."""
    encoder = pv.Encoder(pv.nets.MissingIndicator(nn.Linear(6, 4)))
    model, guide = small(pv.likelihoods.Gaussian(), encoder)
    tensors, rows = trainable(model, guide), torch.arange(10)
    holes = data().index_put((torch.tensor([0, 4]), torch.tensor([1, 2])), torch.tensor(torch.nan))
    function = gradients(pv.IWAE(3), model, guide, tensors, rows.to("meta"))
    captured = capture(function, holes, missing=True)
    for y in (holes, data()):
        torch.manual_seed(0)
        expected = gradients(pv.IWAE(3), model, guide, tensors, rows)(y)
        torch.manual_seed(0)
        for one, other in zip(captured(y), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)


# ---------------------------------------------------------------------- what is refused


def branches(y: Tensor) -> tuple[Tensor]:
    """Takes a branch on a value."""
    return (y * 2,) if y.sum() > 0 else (y,)


def reads(read: Callable[[Tensor], Any], *batch: Tensor) -> tuple[Tensor]:
    """Reads a number in some way."""
    return (batch[0] + (1 if read(batch[0].sum()) else 2),)


def test_a_branch_is_refused() -> None:
    """By the line that takes it; and so is a number read in any other way."""
    with pytest.raises(NotCaptured, match=r"test_capture\.py:\d+ reads a number out of a tensor"):
        capture(branches, torch.ones(2))
    for read in (Tensor.item, Tensor.tolist, float, int, bool):
        with pytest.raises(NotCaptured, match="reads a number"):
            capture(partial(reads, read), torch.ones(2))


def test_a_generator_is_refused() -> None:
    """Draws of its own do not advance at a replay."""

    def seeded(y: Tensor) -> tuple[Tensor]:
        return (y + torch.randn(2, generator=torch.Generator().manual_seed(0)),)

    with pytest.raises(NotCaptured, match=r"the program uses a Generator|_C\.Generator"):
        capture(seeded, torch.ones(2))


def test_in_place_and_by_reference() -> None:
    """What is held is seen when it changes, and changed where the function changes it."""
    count, weight = torch.zeros(()), torch.tensor(2.0)

    def function(y: Tensor) -> tuple[Tensor]:
        count.add_(1)
        return (y * weight * count,)

    captured = capture(function, torch.ones(2))
    count.zero_()
    assert captured(torch.ones(2))[0].tolist() == [2.0, 2.0]
    weight.fill_(3.0)
    assert captured(torch.ones(2))[0].tolist() == [6.0, 6.0]
    assert (count.item(), captured.is_current) == (2.0, True)
    weight.data = torch.tensor(5.0)
    assert not captured.is_current


# ---------------------------------------------------------------------- training


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> list[Captured]:
    """Captured steps are replayed as they are, without half a minute of compiling; counted."""
    calls: list[Captured] = []

    def compiled(self: Captured, *args: Tensor) -> Captured:
        calls.append(self)
        return self

    monkeypatch.setattr(Captured, "compiled", compiled)
    return calls


RECIPES: dict[str, dict[str, Any]] = {
    "Trace_ELBO": {},
    "IWAE": {"objective": pv.IWAE(3)},
    "a schedule that ends": {"objective": pv.BetaELBO(pv.LinearWarmup(2))},
    "warm-up": {"objective": pv.BetaELBO(pv.LinearWarmup(1.5))},
    "another optimizer": {"optimizer": sgd(lr=0.01)},
    "Adam with options": {"optimizer": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1)},
    "AMSGrad": {"optimizer": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True)},
    "the guide alone": {"train_model": False},
    "batches of one size": {"batch_size": 5},
    "changed batches": {"augment": lambda y: y + 0.1 * torch.rand_like(y)},
}


@pytest.mark.slow
def test_arguments_of_any_layout() -> None:
    """Compiled operations expect a table row by row in memory: a transposed one is copied."""
    y = torch.randn(5, 4)
    double = capture(lambda y: (2 * y,), torch.zeros(4, 5)).compiled(torch.zeros(4, 5))
    assert torch.equal(double(y.T)[0], 2 * y.T)


@float64
@pytest.mark.parametrize("recipe", RECIPES)
def test_training_is_the_same(recipe: str, replayed: list[Captured]) -> None:
    """Step for step, whatever is optimized and how: history and parameters."""
    results = []
    y = data(20)
    for compile in (False, True):
        torch.manual_seed(0)
        model, guide = small(pv.likelihoods.Gaussian(0.5))
        options = {"num_epochs": 4, "batch_size": 8, "compile": compile, **RECIPES[recipe]}
        result = fit(model, guide, y, **options)
        results.append((result.history.elbo, state(model, guide)))
        assert result.compiled == ("compiled" if compile else "eager: compile=False")
    assert replayed
    (eager, eager_state), (fast, fast_state) = results
    assert np.allclose(fast, eager, rtol=1e-9, atol=0)
    for name, value in fast_state.items():
        torch.testing.assert_close(value, eager_state[name], rtol=1e-6, atol=1e-9)


@float64
def test_a_table_runs_eagerly(replayed: list[Captured]) -> None:
    """With the reason, and a warning only where compiling was asked for."""
    model, guide = small(map=pv.LocalParameters(10))
    assert "rows of a table" in fit(model, guide, data(), num_epochs=1).compiled
    assert not replayed


@float64
def test_a_program_that_branches_runs_eagerly(replayed: list[Captured]) -> None:
    """The line is named in a warning and in the result, and training is what it was."""

    class Branches(pv.models.VAE):
        def forward(self, y: Tensor, *given: Tensor) -> Tensor:
            if y.sum() < -1e9:
                raise AssertionError
            return super().forward(y, *given)

    model = Branches(nn.Linear(2, 3), pv.likelihoods.Gaussian(), latent_dim=2)
    guide = pv.Guide(model, pv.Encoder(nn.Linear(3, 4)))
    with pytest.warns(UserWarning, match=r"not compiled: .*test_capture.py:\d+ reads a number"):
        result = fit(model, guide, data(), num_epochs=2, compile=True)
    assert "reads a number" in result.compiled
    assert not replayed


@float64
def test_a_program_that_counts_is_caught(replayed: list[Captured]) -> None:
    """What a captured step says is held against the program before it is used."""

    class Counts(pv.models.VAE):
        calls = 0

        def forward(self, y: Tensor, *given: Tensor) -> Tensor:
            self.calls += 1
            pyro.factor("count", torch.tensor(float(self.calls)), has_rsample=True)
            return super().forward(y, *given)

    model = Counts(nn.Linear(2, 3), pv.likelihoods.Gaussian(), latent_dim=2)
    guide = pv.Guide(model, pv.Encoder(nn.Linear(3, 4)))
    with pytest.warns(UserWarning, match="depend on something that is not a tensor"):
        fit(model, guide, data(), num_epochs=2, compile=True)


@float64
def test_what_is_not_finite_moves_nothing(replayed: list[Captured]) -> None:
    """The step is taken again eagerly, which names the culprit."""
    model, guide = small(pv.likelihoods.Gaussian())
    calls, before = [0], {}

    def poison(y: Tensor) -> Tensor:
        calls[0] += 1
        before.update(state(model, guide))
        return torch.full_like(y, torch.inf) if calls[0] == 9 else y

    with pytest.raises(FloatingPointError, match=r"step 8 .* is not finite"):
        fit(model, guide, data(), num_epochs=10, augment=poison, compile=True)
    assert replayed
    assert_same_state(state(model, guide), before)


# ---------------------------------------------------------------------- Pyro's SVI


@float64
@pytest.mark.usefixtures("user_param_store")
@pytest.mark.parametrize("elbo", [Trace_ELBO(), pv.IWAE(3)], ids=["Trace_ELBO", "IWAE"])
def test_svi(elbo: Any, replayed: list[Captured]) -> None:
    """A loop written by hand, with mini-batches of two sizes: step for step the same."""
    y, histories = data(10), []
    for compile in (False, True):
        pyro.clear_param_store()
        torch.manual_seed(0)
        model, guide = small(pv.likelihoods.Gaussian(0.5))
        svi = SVI(
            model,
            guide,
            PyroAdam({"lr": 0.01}),
            pv.objectives.CompiledELBO(elbo) if compile else elbo,
        )
        losses = []
        for _ in range(4):
            for rows in torch.arange(10).split(7):
                with pv.minibatch(rows, 10):
                    losses.append(svi.step(y[rows]))
        histories.append((losses, state(model, guide)))
    assert len(replayed) == 2
    assert np.allclose(histories[1][0], histories[0][0], rtol=1e-9, atol=0)
    for name, value in histories[1][1].items():
        torch.testing.assert_close(value, histories[0][1][name], rtol=1e-6, atol=1e-9)


@float64
@pytest.mark.usefixtures("user_param_store")
def test_svi_follows_the_mode_of_the_programs(replayed: list[Captured]) -> None:
    """Dropout ends where evaluation begins, and comes back."""
    decoder = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.9), nn.Linear(8, 3))
    model = pv.models.VAE(decoder, pv.likelihoods.Gaussian(0.5), latent_dim=2)
    guide, y = pv.Guide(model, pv.Encoder(pv.nets.MLPEncoder(3))), data(10)
    elbos: list[Any] = [Trace_ELBO(), pv.objectives.CompiledELBO(Trace_ELBO())]

    def loss(elbo: Any, seed: int) -> float:
        torch.manual_seed(seed)
        return float(elbo.loss_and_grads(model, guide, y))

    for mode in (True, False, True):
        model.train(mode)
        for seed in range(3):
            eager, compiled = (loss(elbo, seed) for elbo in elbos)
            assert compiled == pytest.approx(eager, rel=1e-9)
    assert len(replayed) == 3


@float64
@pytest.mark.usefixtures("user_param_store")
def test_svi_with_rows(replayed: list[Captured]) -> None:
    """A table's rows are others in every batch: eager, with the reason."""
    model, guide = small(map=pv.LocalParameters(10))
    elbo = pv.objectives.CompiledELBO(Trace_ELBO())
    svi = SVI(model, guide, PyroAdam({"lr": 0.01}), elbo)
    assert isinstance(guide.map, pv.LocalParameters)
    before, y = guide.map.table.clone(), data()
    for rows in torch.arange(10).split(5):
        with pv.minibatch(rows, 10):
            svi.step(y[rows])
    assert elbo.reason
    assert not replayed
    assert not torch.equal(guide.map.table, before)


@pytest.mark.usefixtures("user_param_store")
@pytest.mark.parametrize(
    "elbo", [TraceGraph_ELBO(), RenyiELBO(num_particles=2)], ids=["graph", "renyi"]
)
def test_svi_with_an_elbo_that_has_no_loss_to_compile(elbo: Any, replayed: list[Captured]) -> None:
    """Steps are those of the ELBO itself, and the reason names it and what compiles."""
    losses = []
    for one in (elbo, pv.objectives.CompiledELBO(elbo)):
        torch.manual_seed(0)
        pyro.clear_param_store()
        model, guide = small()
        svi = SVI(model, guide, PyroAdam({"lr": 0.01}), one)
        losses.append([svi.step(data()) for _ in range(3)])
    assert losses[0] == losses[1]
    assert re.search(rf"{type(elbo).__name__} .*Use .*Trace_ELBO", one.reason)
    assert not replayed


def test_compiling_has_to_pay(replayed: list[Captured]) -> None:
    """Short runs are left alone."""
    model, guide = small()
    assert "would not have saved time" in fit(model, guide, data(), num_epochs=3).compiled
    assert not replayed


@pytest.mark.slow
@pytest.mark.parametrize("objective", [None, pv.IWAE(3)], ids=["Trace_ELBO", "IWAE"])
def test_compiled_training(objective: Objective | None) -> None:
    """The compiler and all, in float32: as eagerly, up to rounding."""
    results = []
    y = (torch.rand(40, 6) < 0.5).float()
    for compile in (False, True):
        torch.manual_seed(0)
        model = pv.models.VAE(
            pv.nets.MLPDecoder(2, 6, (8,)), pv.likelihoods.Bernoulli(), latent_dim=2
        )
        guide = pv.Guide(model, pv.Encoder(pv.nets.MLPEncoder(6, (8,))))
        options: dict[str, Any] = {"num_epochs": 5, "batch_size": 20, "objective": objective}
        result = fit(model, guide, y, compile=compile, **options)
        results.append((result.history.elbo, state(model, guide)))
    assert result.compiled == "compiled"
    assert np.allclose(results[1][0], results[0][0], rtol=1e-5, atol=0)
    for name, value in results[1][1].items():
        torch.testing.assert_close(value, results[0][1][name], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_compiled_draws_are_fresh_and_repeatable() -> None:
    """Every replay draws anew; the same seed draws the same."""

    def function(y: Tensor) -> tuple[Tensor]:
        return (dist.Normal(y, 1.0).rsample(),)

    run = capture(function, torch.zeros(5)).compiled(torch.zeros(5))
    torch.manual_seed(0)
    first, second = run(torch.zeros(5))[0], run(torch.zeros(5))[0]
    torch.manual_seed(0)
    assert not torch.equal(first, second)
    assert torch.equal(run(torch.zeros(5))[0], first)
    torch.manual_seed(0)
    assert torch.equal(first, dist.Normal(torch.zeros(5), 1.0).sample())


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() == "DEFAULT",
    reason="torch's compiler forgets a header of its own beside an operation without a C++ call",
)
def test_the_compiler_keeps_its_remarks(capfd: pytest.CaptureFixture[str]) -> None:
    """An operation that it has no C++ call for is right, and is no line on the terminal."""

    def solved(left: Tensor, right: Tensor) -> list[Tensor]:
        return [torch.linalg.solve_triangular(left, right, upper=False) * 2]

    left, right = torch.rand(3, 2, 2).tril() + torch.eye(2), torch.rand(3, 2, 2)
    found = capture(solved, left, right).compiled(left, right)(left, right)
    torch.testing.assert_close(found[0], solved(left, right)[0])
    heard = "".join(capfd.readouterr()).splitlines()  # torch for a GPU says that there is none
    assert [line for line in heard if "No CUDA runtime is found" not in line] == []


@pytest.mark.skipif(not torch.set_flush_denormal(False), reason="the processor has no such switch")
@pytest.mark.parametrize("are_zero", [False, True])
def test_the_compiler_keeps_subnormal_numbers(
    *, are_zero: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Libraries that torch 2.4 loads make them zero in the whole process, or keep them so."""

    def loading(graph: GraphModule, inputs: list[Tensor]) -> GraphModule:
        torch.set_flush_denormal(not are_zero)
        return graph

    monkeypatch.setattr(capturing, "_compiled", loading)
    torch.set_flush_denormal(are_zero)
    try:
        capture(lambda y: (y * 2,), torch.ones(3)).compiled(torch.ones(3))
        assert (torch.tensor(1e-40) * 1 == 0) == are_zero
        assert (sys.float_info.min / 2 == 0) == are_zero
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.skipif(
    not torch.backends.mkldnn.is_available()
    or torch.__version__ < "2.13"
    or torch.backends.cpu.get_cpu_capability() == "DEFAULT",
    reason="torch has no oneDNN, or its compiler cannot call it",
)
def test_large_products_by_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on AMD's processors with AVX-512: forward and backward products of any layout."""
    monkeypatch.setattr(forms, "_prefers_onednn", lambda: True)
    weight = torch.randn(300, 200, requires_grad=True)

    @torch.enable_grad()
    def function(x: Tensor) -> list[Tensor]:
        x = x.requires_grad_()
        hidden = (nn.functional.linear(x, weight) @ weight).relu()
        return [hidden.detach(), *torch.autograd.grad(hidden.square().sum(), [x, weight])]

    first, x = torch.randn(150, 200), torch.randn(150, 200)
    captured = capture(function, first)
    targets = [node.target for node in captured.graph.graph.nodes]
    assert targets.count(forms.onednn_product()) == 6
    assert torch.ops.aten.mm.default not in targets
    before = onednn_lowering()
    for found, expected in zip(captured.compiled(x)(x), function(x.clone()), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.std()))
    assert onednn_lowering() is before  # the compiler's own form, for the user's programs


def test_loops_with_strided_reads_use_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """A narrow layer's weights are read in strides; its exponentials were computed one by one."""
    from torch._inductor import compile_fx, config

    seen, own = [], compile_fx.compile_fx

    def watched(*args: Any, **kwargs: Any) -> Any:
        seen.append(config.cpp.enable_tiling_heuristics)
        return own(*args, **kwargs)

    monkeypatch.setattr(compile_fx, "compile_fx", watched)
    capture(lambda x: (x + 1,), torch.zeros(3)).compiled(torch.zeros(3))
    assert set(seen) == {False}  # in some versions the compiler calls itself
    assert config.cpp.enable_tiling_heuristics


def onednn_lowering() -> Any:
    """How torch's compiler compiles oneDNN's product."""
    from torch._inductor.lowering import lowerings

    return lowerings[forms.onednn_product()]
