"""Several compiled steps in one call, against the same steps taken one by one.

The loops are replayed as they are captured, without a compiler, which takes none of their time.
"""

import contextlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

import pyro_vae as pv
from pyro_vae.compiling import CompiledSteps, NotCaptured, capture, graphs, loops
from pyro_vae.compiling.capturing import Captured


@pytest.fixture(autouse=True)
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of steps that were taken by calls of loops."""
    counts: list[int] = []
    whole = CompiledSteps.several

    def several(one: CompiledSteps, *args: Any) -> loops.Taken | None:
        found = whole(one, *args)
        counts.append(0 if found is None else found.steps)
        return found

    monkeypatch.setattr(CompiledSteps, "several", several)
    monkeypatch.setattr(Captured, "compiled", lambda run, *args: run)
    return counts


class Centred(nn.Module):
    """Subtracts a running average, which it changes in place or replaces; counts its calls."""

    mean: Tensor
    calls: Tensor
    shared: Tensor

    def __init__(self, *, in_place: bool = True) -> None:
        super().__init__()
        self.in_place = in_place
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("calls", torch.tensor(0))
        self.register_buffer("shared", torch.zeros(1).expand(3), persistent=False)  # one number

    def forward(self, x: Tensor) -> Tensor:
        """Moves the average only while training."""
        if self.training:
            moved = 0.9 * self.mean + 0.1 * x.detach().mean(dim=0)
            self.mean = self.mean.copy_(moved) if self.in_place else moved
            self.calls.add_(1)
        return x - self.mean - self.shared


def trained(
    y: Tensor, first: nn.Module | None = None, **settings: Any
) -> tuple[pv.training.Fit, list[Tensor]]:
    """Result and state of three epochs of seven steps, the last one with fewer rows."""
    torch.manual_seed(1)
    net = nn.Sequential(first or nn.Identity(), nn.Linear(3, 4))
    model = pv.models.VAE(nn.Linear(2, 3), pv.likelihoods.Bernoulli(), latent_dim=2)
    guide = pv.Guide(model, pv.Encoder(net))
    given: dict[str, Any] = {"num_epochs": 3, "batch_size": 8, "seed": 2, "progress": False}
    result = pv.fit(model, guide, y, **(given | settings))
    return result, [*model.state_dict().values(), *guide.state_dict().values()]


def binary(rows: int = 53) -> Tensor:
    """Binary data."""
    return (torch.rand(rows, 3, generator=torch.Generator().manual_seed(3)) < 0.4).float()


class Step(pv.training.Callback):
    """Has something to do after each step, and interrupts training after some."""

    def __init__(self, last: int = 1000) -> None:
        self.last, self.elbos = last, list[float]()

    def on_step(self, run: pv.training.callbacks.Run) -> None:
        """Notes a step."""
        self.elbos.append(run.elbo)
        if run.steps == self.last:
            raise KeyboardInterrupt


def same(found: list[Tensor], expected: list[Tensor]) -> bool:
    """Whether two runs have the same bits."""
    return all(map(torch.equal, found, expected))


def test_a_loop_takes_the_steps_of_torch(taken: list[int]) -> None:
    """Histories and parameters agree within rounding; the first step is eager."""
    (single, expected), (several, found) = (trained(binary(), compile=c) for c in (False, True))
    assert taken == [5, 1, 6, 1, 6, 1]
    assert several.compiled == "compiled"
    assert several.history.elbo == pytest.approx(single.history.elbo, rel=1e-5)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_loop_adds_up_the_loss(taken: list[int]) -> None:
    """As eager steps do; at a KL weight of 1/2 it is not minus the ELBO."""
    half: dict[str, Any] = {"objective": pv.BetaELBO(0.5)}
    single, several = (trained(binary(), compile=c, **half)[0].history for c in (False, True))
    assert taken == [5, 1, 6, 1, 6, 1]
    assert several.loss == pytest.approx(single.loss, rel=1e-5)
    assert (abs(np.add(several.loss, several.elbo)) > 1e-3).all()


def test_steps_in_one_call_or_in_many_have_the_same_bits(taken: list[int]) -> None:
    """A callback that sees each step changes nothing."""
    whole, expected = trained(binary(), compile=True)
    step = Step()
    seen, found = trained(binary(), compile=True, callbacks=step)
    assert len(step.elbos) == 21
    assert taken == [5, 1, 6, 1, 6, 1] + [1] * 20
    for name in ("elbo", "loss"):
        assert list(getattr(seen.history, name)) == list(getattr(whole.history, name))
    assert same(found, expected)


def test_columns_are_laid_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop reads contiguous rows, also of a data frame; a copy per call takes longer than it."""
    found: list[bool] = []
    whole = loops.Loop.__call__

    def called(loop: loops.Loop, *args: Any) -> loops.Taken:
        found.extend(part.is_contiguous() for part in loop.data)
        return whole(loop, *args)

    monkeypatch.setattr(loops.Loop, "__call__", called)
    _, expected = trained(binary(), compile=True)
    _, of_columns = trained(binary().T.contiguous().T, compile=True)
    assert all(found)
    assert same(of_columns, expected)


@pytest.mark.parametrize("stop", [3, pytest.param(11, marks=pytest.mark.slow)])
def test_a_run_is_resumed_within_a_call(stop: int, tmp_path: Path) -> None:
    """Where it was interrupted, in the middle of what is one call otherwise: the same bits."""
    whole, expected = trained(binary(), compile=True)
    trained(binary(), compile=True, callbacks=Step(stop), checkpoint=tmp_path)
    resumed, found = trained(binary(), compile=True, checkpoint=tmp_path)
    for name in ("elbo", "loss"):
        assert list(getattr(resumed.history, name)) == list(getattr(whole.history, name))
    assert same(found, expected)


@pytest.mark.parametrize("settings", [{}, {"optimizer": partial(torch.optim.SGD, lr=1e-2)}])
def test_running_averages_move_once_per_step(settings: dict[str, Any], taken: list[int]) -> None:
    """The calls that capture and compare a step leave no trace."""
    for make in (Centred, partial(nn.BatchNorm1d, 3)):
        single, expected = trained(binary(), make(), compile=False, **settings)
        several, found = trained(binary(), make(), compile=True, **settings)
        assert several.compiled == "compiled"
        assert not taken
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        assert several.history.elbo == pytest.approx(single.history.elbo, rel=1e-5)


def test_running_averages_are_resumed(tmp_path: Path) -> None:
    """A resumed run compiles its steps again, which does not move the averages: the same bits."""
    _, expected = trained(binary(), nn.BatchNorm1d(3), compile=True)
    given: dict[str, Any] = {"compile": True, "checkpoint": tmp_path}
    trained(binary(), nn.BatchNorm1d(3), callbacks=Step(11), **given)
    _, found = trained(binary(), nn.BatchNorm1d(3), **given)
    assert same(found, expected)


def test_buffers_that_are_replaced_are_refused() -> None:
    """A graph would use the first average in every step; the remedy compiles, as above."""
    with pytest.warns(UserWarning, match=r"replaces the buffer Centred.mean: change it in place"):
        eager, found = trained(binary(), Centred(in_place=False), compile=True)
    assert eager.compiled.startswith("eager")
    assert same(found, trained(binary(), Centred(in_place=False), compile=False)[1])


class Tempered(nn.Module):
    """Divides by a plain number."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = 1.0

    def forward(self, x: Tensor) -> Tensor:
        """The input, divided by the temperature."""
        return x / self.temperature


class Annealing(pv.training.Callback):
    """Lowers the temperature after each epoch."""

    def on_epoch(self, run: pv.training.callbacks.Run) -> None:
        """Changes a number that a graph holds."""
        guide: Any = run.guide
        guide.map.net[0].temperature *= 0.5


@pytest.mark.parametrize("settings", [{}, {"optimizer": partial(torch.optim.SGD, lr=1e-2)}])
def test_a_number_that_a_callback_changes_is_seen(settings: dict[str, Any]) -> None:
    """Steps with the old number are not taken; the other steps go on eagerly."""
    given = {"callbacks": Annealing(), **settings}
    single, expected = trained(binary(), Tempered(), compile=False, **given)
    with pytest.warns(UserWarning, match="the programs depend on something that is not a tensor"):
        several, found = trained(binary(), Tempered(), compile=True, **given)
    assert several.compiled.startswith("eager: the graph gives")
    assert several.history.elbo == pytest.approx(single.history.elbo, rel=1e-5)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


DIVISOR = [1.0]  # a number that no attribute of a module holds


class Divided(nn.Module):
    """Divides by a number elsewhere."""

    def forward(self, x: Tensor) -> Tensor:
        """The input, divided."""
        return x / DIVISOR[0]


class Changing(pv.training.Callback):
    """Changes this number once, or never."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_epoch(self, run: pv.training.callbacks.Run) -> None:
        """Doubles it."""
        if len(run.history.epoch) == self.epoch:
            DIVISOR[0] = 2.0


@pytest.mark.parametrize("epoch", [5, 100])
def test_numbers_elsewhere_are_compared_now_and_then(
    epoch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At epochs that are powers of 2, so that an epoch of a small model does not take longer."""
    compared: list[float] = []
    agree = graphs.require_agreement

    def noted(*both: Any) -> None:
        compared.append(DIVISOR[0])
        agree(*both)

    monkeypatch.setattr("pyro_vae.compiling.steps.require_agreement", noted)
    monkeypatch.setitem(globals(), "DIVISOR", [1.0])
    given = {"callbacks": Changing(epoch), "num_epochs": 20, "patience": None}
    with contextlib.ExitStack() as stack:
        if epoch < 20:
            stack.enter_context(pytest.warns(UserWarning, match="something that is not a tensor"))
        fitted, _ = trained(binary(), Divided(), compile=True, **given)
    assert compared == [1.0, 1.0, 2.0] if epoch < 20 else compared == [1.0] * 4  # 2, 4, 8, 16
    assert fitted.compiled.startswith("eager: the graph gives" if epoch < 20 else "compiled")


def test_a_step_that_is_not_finite_ends_the_call(taken: list[int]) -> None:
    """The steps before it are taken, and it is named as an eager run names it."""
    y, said = binary(), []
    model_of = {"likelihood": pv.likelihoods.Gaussian()}
    y[17, 1] = 1e30  # its square is not finite
    for compile in (False, True):
        torch.manual_seed(1)
        model = pv.models.VAE(nn.Linear(2, 3), model_of["likelihood"], latent_dim=2)
        guide = pv.Guide(model, pv.Encoder(nn.Linear(3, 4)))
        with pytest.raises(FloatingPointError) as caught:
            pv.fit(model, guide, y, num_epochs=2, batch_size=4, seed=5, compile=compile)
        said.append((str(caught.value).split(" is ")[-1], [*model.parameters()]))
    assert said[0][0] == said[1][0]
    assert 0 < taken[-1] < 13
    for one, other in zip(said[1][1], said[0][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_what_a_loop_cannot_do_is_done_step_by_step(taken: list[int]) -> None:
    """Batch norms, other optimizers, large models and data that are changed have no loop."""
    model = pv.models.VAE(nn.Linear(2, 3), pv.likelihoods.Bernoulli(), latent_dim=2)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    sgd = partial(torch.optim.SGD, lr=1e-3)
    slow = partial(torch.optim.Adam, lr=1e-5)  # 20,000 units that move by 2e-3 each would diverge
    plain, wide = nn.Linear(3, 4), nn.Sequential(nn.Linear(3, 20000), nn.Linear(20000, 4))
    changed = pv.data.Augmented(binary(), lambda y: y)
    for own, data, settings in (
        (net, binary(), {}),
        (plain, binary(), {"optimizer": sgd}),
        (plain, changed, {}),
        (wide, binary(), {"optimizer": slow}),
    ):
        guide = pv.Guide(model, pv.Encoder(own))
        given: dict[str, Any] = {"num_epochs": 1, "batch_size": 8, "progress": False}
        pv.fit(model, guide, data, compile=True, **(given | settings))
        assert not taken


def test_views_of_parameters_are_refused() -> None:
    """They would not follow the parameters inside a loop."""
    parameter = torch.ones(3, requires_grad=True)
    hidden = parameter.detach()

    def step(y: Tensor) -> list[Tensor]:
        return [torch.ones(3, dtype=torch.float64), (y * parameter * hidden).sum(dim=0).detach()]

    with pytest.raises(NotCaptured, match="views of trained tensors"):
        loops.looped(step, [parameter], (torch.ones(4, 3),), torch.arange(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_forms_are_the_operations(dtype: torch.dtype) -> None:
    """To six roundings from 1e-30 to 1e4, at the ends and at nan, and so are gradients."""
    size = torch.cat(
        [torch.logspace(-30, 4, 2001, dtype=dtype), torch.linspace(0, 30, 2001).to(dtype)]
    )
    ends = torch.tensor([0.0, torch.inf, -torch.inf, torch.nan], dtype=dtype)
    x = torch.cat([size, -size, ends])
    y = torch.arange(len(x)).remainder(2).to(dtype)

    @torch.enable_grad()
    def function(x: Tensor, y: Tensor) -> list[Tensor]:
        x = x.detach().requires_grad_()
        values = [
            binary_cross_entropy_with_logits(x, y, reduction="none"),
            softplus(x),
            x.sigmoid(),
            x.tanh(),
        ]
        slopes = [torch.autograd.grad(value.sum(), x, retain_graph=True)[0] for value in values]
        return [part.detach() for part in (*values, *slopes)]

    rounding = 6 * torch.finfo(dtype).eps
    for found, expected in zip(capture(function, x, y)(x, y), function(x, y), strict=True):
        torch.testing.assert_close(found, expected, rtol=rounding, atol=rounding, equal_nan=True)


@pytest.mark.parametrize("columns", [0, 1, 2, 4, 5])
def test_products_over_few_columns_are_sums(columns: int) -> None:
    """They have the values and the shape of the product, with a bias and without."""
    left, right, bias = torch.randn(3, columns), torch.randn(columns, 5), torch.randn(5)

    def function(left: Tensor, right: Tensor, bias: Tensor) -> list[Tensor]:
        return [left @ right, torch.addmm(bias, left, right)]

    captured = capture(function, left, right, bias)
    for found, expected in zip(
        captured(left, right, bias), function(left, right, bias), strict=True
    ):
        torch.testing.assert_close(found, expected)
    products = [
        node for node in captured.graph.graph.nodes if node.target is torch.ops.aten.mm.default
    ]
    assert len(products) == (0 if 0 < columns <= 4 else 2)


@pytest.mark.parametrize("columns", [2, 5])
def test_products_of_whole_numbers_are_captured(columns: int) -> None:
    """As of counts and a table of codes; before, such a program was not captured."""
    left = torch.arange(3 * columns).view(3, columns)
    (found,) = capture(lambda y: [y @ y.T], left)(left)
    assert torch.equal(found, left @ left.T)
