"""Callbacks: when they are called, what they see, how they stop, and what they write."""

import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import pyro_vae as pv
from pyro_vae import training
from pyro_vae.progress import progress_bar
from pyro_vae.training import Callback, EarlyStopping, Printing
from pyro_vae.training.callbacks import check_callbacks
from tests.helpers.training import OneParameter, assert_same_state, data, fit, small, state, walk


class Recorder(Callback):
    """Writes down what is called, and what it sees."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.elbos: list[float] = []

    def on_start(self, run: training.callbacks.Run) -> None:
        self.calls.append(f"start {run.steps} {len(run.history.epoch)}")

    def on_step(self, run: training.callbacks.Run) -> None:
        self.calls.append(f"step {run.steps}")
        self.elbos.append(run.elbo)

    def on_epoch(self, run: training.callbacks.Run) -> None:
        self.calls.append(f"epoch {run.history.epoch[-1]} {run.learning_rates[0]:.3f}")

    def on_end(self, run: training.callbacks.Run) -> None:
        self.calls.append(f"end {run.steps}")


def test_when_they_are_called() -> None:
    """In order; with callbacks the numbers are those without, and the ELBOs add up."""
    states, seen = [], Recorder()
    for callbacks in ((), (seen,)):
        torch.manual_seed(0)
        model, guide = small()
        result = fit(
            model, guide, torch.eye(10, 3), num_epochs=2, batch_size=5, callbacks=callbacks
        )
        states.append(state(model, guide))
    assert_same_state(*states)
    assert seen.calls == [
        "start 0 0", "step 1", "step 2", "epoch 1 0.002", "step 3", "step 4", "epoch 2 0.000",
        "end 4",
    ]  # fmt: skip
    assert np.reshape(seen.elbos, (2, 2)).mean(axis=1) == pytest.approx(result.history.elbo)


def test_a_step_makes_no_history(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its arrays are made for a callback of the library, or one that asks, and not at a step."""
    made: list[int] = []
    history: Any = vars(training.running.Training)["history"].fget

    def counted(run: training.running.Training) -> Any:
        made.append(run.steps)
        return history(run)

    monkeypatch.setattr(training.running.Training, "history", property(counted))

    class Looks(Callback):
        def on_step(self, run: training.callbacks.Run) -> None:
            assert run.steps > 0

        def on_end(self, run: training.callbacks.Run) -> None:
            assert len(run.history.epoch) == 1

    fit(*small(), torch.eye(10, 3), num_epochs=1, batch_size=5, callbacks=Looks())
    assert 1 not in made
    assert 2 in made


def test_training_does_not_see_their_draws() -> None:
    """A plot of draws at every step changes no number."""

    class Draws(Callback):
        def on_step(self, run: training.callbacks.Run) -> None:
            torch.randn(3)

    states = []
    for callbacks in ((), Draws()):
        torch.manual_seed(0)
        programs = small()
        fit(*programs, torch.eye(10, 3), num_epochs=2, batch_size=5, callbacks=callbacks)
        states.append(state(*programs))
    assert_same_state(*states)


def test_an_empty_name_of_a_checkpoint_is_refused() -> None:
    """It would be a file in the current folder."""
    with pytest.raises(ValueError, match="got an empty name"):
        fit(*small(), torch.eye(10, 3), num_epochs=1, checkpoint="")


def test_one_can_stop_training() -> None:
    """After the step or the epoch in which it says so."""

    class Stops(Callback):
        def on_step(self, run: Any) -> None:
            if run.steps == 3:
                run.stop()

    result = fit(*small(), data(10), num_epochs=5, batch_size=5, callbacks=Stops())
    assert (result.stopped, len(result.history.epoch)) == ("early", 1)


def test_errors_of_a_callback_end_training_and_every_end_is_told() -> None:
    """The modules stay as they are, without gradients."""

    class Fails(Recorder):
        def on_epoch(self, run: Any) -> None:
            raise RuntimeError("of the user's own")

    seen, (model, guide) = Fails(), small()
    with pytest.raises(RuntimeError, match="of the user's own"):
        fit(model, guide, data(10), callbacks=[seen])
    assert seen.calls == ["start 0 0", "step 1", "end 1"]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_callback_that_fails_at_the_end_leaves_the_table_its_step_size() -> None:
    """The schedule has fallen to 0 at the end; rows would rest in a loop of the user's own."""

    class Fails(Callback):
        def on_end(self, run: Any) -> None:
            raise RuntimeError("of the user's own")

    table = pv.LocalParameters(10)
    with pytest.raises(RuntimeError, match="of the user's own"):
        fit(*small(map=table), data(10), num_epochs=1, callbacks=Fails())
    assert table.factor == 1.0


def test_the_bar_ends_where_training_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 2 of 2 epochs, if a run of 20 has converged after the first."""
    bars = []

    def shown(**how: Any) -> Any:
        bars.append(progress_bar(**{**how, "show": True}))
        return bars[-1]

    class Settles(Callback):
        def on_epoch(self, run: Any) -> None:
            run.settle()

    monkeypatch.setattr(training.running, "progress_bar", shown)
    fit(*small(), data(10), num_epochs=20, callbacks=Settles())
    assert [(bar.n, bar.total) for bar in bars] == [(2, 2)]


@pytest.mark.parametrize(("min_improvement", "epochs"), [(0.0, 7), (1.0, 5)])
def test_early_stopping(min_improvement: float, epochs: int) -> None:
    """By a walk to the held-out mean and away; small improvements do not count if so told."""
    from tests.helpers.factor_analysis import prior_guide

    y = torch.zeros(4, dtype=torch.float64)
    result = fit(
        OneParameter(), prior_guide, y, num_epochs=9, validation=y,
        optimizer=walk(3, 2, 1.5, 1.2, 1.1, 2, 2, 2, 2),
        callbacks=EarlyStopping(2, min_improvement=min_improvement),
    )  # fmt: skip
    assert (result.stopped, len(result.history.epoch)) == ("early", epochs)


def test_what_is_no_callback_is_refused(tmp_path: Path) -> None:
    """With the line to write; and early stopping without validation, before anything is saved."""
    with pytest.raises(
        TypeError, match=r"pv\.training\.Printing\(\); got .*a class: call the class"
    ):
        check_callbacks([Printing])
    with pytest.raises(ValueError, match="pass `validation` too"):
        fit(*small(), data(10), callbacks=[EarlyStopping(2)], checkpoint=tmp_path)
    assert not list(tmp_path.iterdir())
    for bad in ({"patience": 0}, {"patience": 1, "min_improvement": -1.0}):
        with pytest.raises(ValueError, match="at least"):
            EarlyStopping(**bad)


def test_printing(capsys: pytest.CaptureFixture[str]) -> None:
    """A line for every second epoch, with the numbers of the history."""
    y = data(10)
    result = fit(*small(), y, num_epochs=4, validation=y, callbacks=[Printing(every=2)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["epoch 2/4", "epoch 4/4"]
    assert f"ELBO {result.history.elbo[3]:.3f}" in lines[1]
    assert f"validation {result.history.validation_elbo[3]:.3f}" in lines[1]


def test_the_logger(caplog: pytest.LogCaptureFixture) -> None:
    """Under the package's name: starts and ends, and epochs where details are asked for."""
    with caplog.at_level(logging.DEBUG, logger="pyro_vae"):
        fit(*small(), data(10), num_epochs=2)
    assert [record.levelname for record in caplog.records] == ["INFO", "DEBUG", "DEBUG", "INFO"]
    assert caplog.messages[-1] == "training ended after 2 epochs, 2 steps"


@pytest.mark.parametrize(
    ("make", "missing", "line"),
    [
        (lambda: training.TensorBoard("runs"), "tensorboard", "pip install tensorboard"),
        (training.MLflow, "mlflow", "pip install mlflow"),
        (training.WandB, "wandb", "pip install wandb"),
        (training.LivePlot, "matplotlib.figure", "pip install 'pyro-vae[plot]'"),
    ],
)
def test_what_is_not_installed_is_said_before_training(
    make: Callable[[], object], missing: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the line that installs it: an extra of the library, where there is one."""
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=re.escape(f"run `{line}`")):
        make()


def module_of(**attributes: Any) -> ModuleType:
    """A module with these attributes, in place of a package."""
    module = ModuleType("a package")
    vars(module).update(attributes)
    return module


@pytest.mark.parametrize("name", ["MLflow", "WandB"])
def test_trackers_get_the_history(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its numbers, without those that there are not."""
    written: list[tuple[dict[str, float], int]] = []

    def log(numbers: dict[str, float], step: int) -> None:
        written.append((numbers, step))

    package = module_of(log_metrics=log, log=log, run=object())
    monkeypatch.setitem(sys.modules, name.lower(), package)
    result = fit(*small(), data(10), num_epochs=2, callbacks=getattr(training, name)())
    assert [step for _, step in written] == [1, 2]
    assert [numbers["elbo"] for numbers, _ in written] == result.history.elbo.tolist()
    assert "validation_elbo" not in written[0][0]


def test_the_log_of_tensorboard_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that its file is complete, and its thread ends."""
    calls: list[str] = []
    writer = SimpleNamespace(
        add_scalar=lambda *_: calls.append("number"), close=lambda: calls.append("close")
    )
    package = module_of(SummaryWriter=lambda folder: writer)
    monkeypatch.setitem(sys.modules, "tensorboard", module_of())
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", package)
    fit(*small(), data(10), num_epochs=1, callbacks=training.TensorBoard("log"))
    assert calls.count("close") == 1
    assert calls[-1] == "close"


def test_a_live_plot_draws_the_history(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture an epoch, in place of the one before."""
    shown: list[bytes] = []
    display = module_of(
        clear_output=lambda wait: shown.clear(), display=shown.append, Image=lambda data: data
    )
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    package = module_of(display=display, version_info=(9, 0))
    monkeypatch.setitem(sys.modules, "IPython", package)
    fit(*small(), data(10), num_epochs=3, callbacks=training.LivePlot())
    assert [picture[:4] for picture in shown] == [b"\x89PNG"]


class Hooks(Callback):
    """Adds a hook to an optimizer after the first epoch, which takes all gradients away."""

    def made(self, parameters: Any) -> torch.optim.Optimizer:
        """Makes the optimizer, and keeps it."""
        self.optimizer = torch.optim.Adam(parameters, lr=0.1)
        return self.optimizer

    def on_epoch(self, run: training.callbacks.Run) -> None:
        def still(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None

        if len(run.history.epoch) == 1:
            self.optimizer.register_step_pre_hook(still)


@pytest.mark.parametrize("options", [{}, {"compile": False}])
def test_hooks_of_an_optimizer(options: dict[str, Any]) -> None:
    """They run at every step after a callback added them, although a fused update has no hooks."""
    states = []
    for epochs in (1, 5):
        torch.manual_seed(0)
        model, guide = small()
        hooks = Hooks()
        fit(
            model, guide, torch.eye(10, 3), num_epochs=epochs, batch_size=5, optimizer=hooks.made,
            scheduler=training.optimizers.constant, callbacks=hooks, **options,
        )  # fmt: skip
        states.append(state(model, guide))
    assert_same_state(*states)
