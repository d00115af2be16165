"""Training that was stopped, and goes on: at the same bits as if it had never been."""

import functools
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

import pyro_vae as pv
from pyro_vae.cli import main
from pyro_vae.compiling import Captured
from pyro_vae.training import Callback, Checkpoint, Fit
from pyro_vae.training.callbacks import Journal
from pyro_vae.training.checkpoints import Keeper, digest_of
from tests.helpers.training import adam, data, fit, layered_vae, sgd, small, state

Y = torch.randn(10, 3, generator=torch.Generator().manual_seed(1))
pytestmark = pytest.mark.usefixtures("answers_interrupts")
HELD_OUT = torch.randn(7, 3, generator=torch.Generator().manual_seed(2))

MAPS: dict[str, Callable[[], pv.InferenceMap]] = {
    "encoder": lambda: pv.Encoder(nn.Linear(3, 4)),
    "rows": lambda: pv.LocalParameters(10),
    "global": pv.GlobalParameters,
    "refined": lambda: pv.Refined(pv.Encoder(nn.Linear(3, 4)), steps=2, num_particles=4),
}
RUNS: dict[str, dict[str, Any]] = {
    **{name: {"map": name} for name in MAPS},
    "validation": {"validation": HELD_OUT},
    "rows with validation": {"map": "rows", "validation": HELD_OUT[:5]},
    "warm-up": {"objective": pv.BetaELBO(pv.LinearWarmup(2.5))},
    "momentum": {"optimizer": sgd(lr=0.01, momentum=0.9)},
    "plateau": {
        "validation": HELD_OUT,
        "scheduler": functools.partial(
            torch.optim.lr_scheduler.ReduceLROnPlateau, patience=0, threshold=10.0
        ),
    },
    "noise": {"augment": lambda y: y + 0.1 * torch.randn_like(y)},
    "layers": {"layers": True},
    "shards": {"shards": 2},
}


class StopAfter(Callback):
    """Sends a signal after so many steps."""

    def __init__(self, steps: int, number: int = signal.SIGINT) -> None:
        self.steps, self.number = steps, number

    def on_step(self, run: Any) -> None:
        """Sends it."""
        if run.steps == self.steps:
            signal.raise_signal(self.number)


def trained(
    folder: Checkpoint | Path | None,
    weights: int,
    *,
    stop: int = 0,
    number: int = signal.SIGINT,
    **options: Any,
) -> tuple[Any, Any]:
    """A run of five epochs of three steps, from weights of this seed: what it ends with."""
    torch.manual_seed(weights)
    name, layers = options.pop("map", "encoder"), options.pop("layers", False)
    likelihood = pv.likelihoods.Gaussian(0.5)
    model, guide = layered_vae(likelihood) if layers else small(likelihood, MAPS[name]())
    given = {"num_epochs": 5, "batch_size": 4, "seed": 3, **options}
    callbacks = [StopAfter(stop, number)] if stop else []
    result = fit(model, guide, Y, checkpoint=folder, callbacks=callbacks, **given)
    return result, state(model, guide)


def assert_same(one: tuple[Fit, dict[str, Tensor]], two: tuple[Fit, dict[str, Tensor]]) -> None:
    """The same bits in weights, tables and history."""
    for name, value in one[1].items():
        assert torch.equal(value, two[1][name]), name
    for name in ("elbo", "validation_elbo", "validation_error", "kl_weight", "learning_rate"):
        mine, theirs = (getattr(run[0].history, name) for run in (one, two))
        assert np.array_equal(mine, theirs, equal_nan=True), name
    assert (one[0].stopped, one[0].best_epoch) == (two[0].stopped, two[0].best_epoch)


FAST = {"rows with validation", "noise"}


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in RUNS]
)
def test_resumed_at_the_same_bits(name: str, tmp_path: Path) -> None:
    """Stopped within an epoch, and at the end of another; from other weights."""
    torch.manual_seed(9)
    whole = trained(None, 0, **RUNS[name])
    first, _ = trained(tmp_path, 0, stop=5, **RUNS[name])
    assert (first.stopped, len(first.history.epoch)) == ("interrupted", 1)
    second, _ = trained(tmp_path, 1, stop=9, **RUNS[name])
    assert (second.stopped, len(second.history.epoch)) == ("interrupted", 2)
    third = trained(tmp_path, 2, **RUNS[name])
    assert_same(third, whole)
    assert third[0].stopped == "finished"
    with pytest.raises(AssertionError):
        assert_same(trained(None, 1, **RUNS[name]), whole)  # a wrong twin: begun anew


def test_compiled_steps_are_resumed_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first step after it is a compiled one, as it would have been."""
    monkeypatch.setattr(Captured, "compiled", lambda run, *args: run)
    whole = trained(None, 0, compile=True)
    trained(tmp_path, 0, stop=7, compile=True)
    resumed = trained(tmp_path, 1, compile=True)
    assert resumed[0].compiled == "compiled"
    assert_same(resumed, whole)
    finished = trained(tmp_path, 4, compile=True)
    assert finished[0].compiled == "compiled"
    assert_same(finished, whole)  # nothing moves


DIFFERENT: dict[str, tuple[dict[str, Any], str]] = {
    "epochs": ({"num_epochs": 6}, "num_epochs (5 in the checkpoint, 6 in this run)"),
    "batches": ({"batch_size": 5}, "batch_size (4 in the checkpoint, 5 in this run)"),
    "seed": ({"seed": 4}, "seed (3 in the checkpoint, 4 in this run)"),
    "objective": ({"objective": pv.IWAE(3)}, "objective (None in the checkpoint, IWAE"),
    "optimizer": ({"optimizer": adam(lr=0.5)}, "optimizer (Adam"),
    "guide": ({"map": "global"}, "guide ("),
    "validation": ({"validation": HELD_OUT}, "validation (none in the checkpoint"),
    "the guide alone": (
        {"train_model": False},
        "train_model (True in the checkpoint, False in this run)",
    ),
}


def test_other_runs_are_refused(tmp_path: Path) -> None:
    """By what differs, before a step is taken."""
    trained(tmp_path, 0, stop=2)
    for options, message in DIFFERENT.values():
        with pytest.raises(ValueError, match="belongs to a different run") as refused:
            trained(tmp_path, 0, **options)
        assert message in str(refused.value)
        assert "pass another folder" in str(refused.value)
        assert ("to train for longer, repeat" in str(refused.value)) == ("num_epochs" in options)


def test_other_data_are_refused(tmp_path: Path) -> None:
    """By one number in one row; so is another model of the same shapes."""
    model, guide = small()
    y = Y.round()
    fit(model, guide, y, num_epochs=1, checkpoint=tmp_path)
    y[3, 1] += 1e-3
    with pytest.raises(ValueError, match=r"the two runs differ in data \(\(10, 3\)"):
        fit(model, guide, y, num_epochs=1, checkpoint=tmp_path)
    other, guide = small(pv.likelihoods.StudentT())
    with pytest.raises(ValueError, match=r"model \("):
        fit(other, guide, Y.round(), num_epochs=1, checkpoint=tmp_path)


@pytest.mark.parametrize("number", [1, 999, 5_000, 2**24 + 4, 2**25 + 4])
def test_rows_that_tell_files_apart_are_in_the_file(number: int) -> None:
    """From the first row to the last, also where float32 has no such number."""
    asked = list[int]()

    class Reader:
        def __len__(self) -> int:
            return number

        def read(self, rows: Tensor) -> tuple[Tensor, ...]:
            asked.extend(rows.tolist())
            return (rows,)

    digest_of(Reader())
    assert (asked[0], asked[-1]) == (0, number - 1)
    assert len(set(asked)) == min(number, 1000)


def test_a_checkpoint_holds_no_code_and_damage_is_said(tmp_path: Path) -> None:
    """One file of tensors and JSON; nothing is left beside it; cut short it is refused."""
    trained(tmp_path, 0, stop=4)
    assert [path.name for path in tmp_path.iterdir()] == ["fit.safetensors"]
    path = tmp_path / "fit.safetensors"
    with safetensors.safe_open(str(path), "pt") as file:
        assert set(file.metadata()) == {"pyro_vae"}
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"x" * 100):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="or is damaged"):
            trained(tmp_path, 0)


def test_what_cannot_be_kept_is_refused_before_training(tmp_path: Path) -> None:
    """A schedule whose state holds a function, and a place that is none."""

    class Odd:
        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self.rule = print

        def step(self) -> None:
            raise AssertionError("no step is taken")

        def state_dict(self) -> dict[str, Any]:
            return vars(self)

    with pytest.raises(TypeError, match="can hold only numbers, strings and tensors"):
        trained(tmp_path / "a", 0, scheduler=Odd)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file: choose another place"):
        trained(tmp_path / "file", 0)
    with pytest.raises(ValueError, match="`seconds` must be at least 0"):
        Checkpoint(tmp_path, seconds=-1)


def test_an_error_between_steps_loses_nothing(tmp_path: Path) -> None:
    """Of a callback, say: the state is written, and training goes on from it."""

    class Fails(Callback):
        def on_step(self, run: Any) -> None:
            if run.steps == 5:
                raise OSError("no space left")

    torch.manual_seed(0)
    made = small(pv.likelihoods.Gaussian(0.5), MAPS["encoder"]())
    given: dict[str, Any] = {"num_epochs": 5, "batch_size": 4, "seed": 3, "checkpoint": tmp_path}
    with pytest.raises(OSError, match="no space"):
        fit(*made, Y, callbacks=Fails(), **given)
    resumed = trained(tmp_path, 1, stop=6)
    assert resumed[0].stopped == "interrupted"  # at the step after
    assert_same(trained(tmp_path, 1), trained(None, 0))


def killed(folder: Path, number: int, at: int, **options: Any) -> int:
    """How a process ends that trains and is sent a signal after so many steps."""
    child = os.fork()
    if child == 0:
        try:
            trained(Checkpoint(folder, seconds=0), 0, stop=at, number=number, **options)
        finally:
            os._exit(9)  # a signal that was answered, but not by the end of the process
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_killed_processes_are_resumed(tmp_path: Path) -> None:
    """A machine that goes down loses what came after the last checkpoint, here nothing."""
    options: dict[str, Any] = {"map": "rows"}
    whole = trained(None, 0, **options)
    assert killed(tmp_path, signal.SIGKILL, 4, **options) == -signal.SIGKILL
    assert killed(tmp_path, signal.SIGTERM, 8, **options) == -signal.SIGTERM
    assert killed(tmp_path, signal.SIGINT, 11, **options) == 9
    assert [path.name for path in tmp_path.iterdir()] == ["fit.safetensors"]
    assert_same(trained(tmp_path, 1, **options), whole)


def test_an_interrupt_after_the_last_epoch_leaves_nothing_to_do(tmp_path: Path) -> None:
    """The run that resumes takes no step; before, it trained without end."""

    class Last(Callback):
        def on_epoch(self, run: Any) -> None:
            assert run.epoch <= 5, "there is no sixth epoch"
            if run.epoch == 5:
                signal.raise_signal(signal.SIGINT)

    given: dict[str, Any] = {"num_epochs": 5, "batch_size": 4, "checkpoint": tmp_path}
    results = [fit(*small(), Y, callbacks=[Last()], **given) for _ in range(2)]
    assert [result.stopped for result in results] == ["interrupted", "finished"]
    assert results[1].history.elbo.tolist() == results[0].history.elbo.tolist()


def test_a_second_interrupt_is_not_waited_for() -> None:
    """The first is answered after the step; who asks twice does not wait."""

    class Twice(Callback):
        def on_step(self, run: Any) -> None:
            signal.raise_signal(signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    result = fit(*small(), data(10), batch_size=4, callbacks=[Twice()])
    assert result.stopped == "interrupted"
    assert signal.getsignal(signal.SIGINT) is before


def fitted(name: str) -> Callable[[Path, int], dict[str, Tensor]]:
    """A training of this kind, as a job that keeps its state in a folder."""

    def job(folder: Path, weights: int) -> dict[str, Tensor]:
        options = {**RUNS[name], "num_epochs": 12}
        result, end = trained(Checkpoint(folder / "kept"), weights, **options)
        return end | {"ELBO": torch.tensor(result.history.elbo)}

    return job


def compared(folder: Path, weights: int) -> dict[str, Tensor]:
    """A comparison of two guides, and what it reports."""
    torch.manual_seed(0)
    model = pv.models.VAE(nn.Linear(2, 3), pv.likelihoods.Gaussian(), latent_dim=2)
    table = pv.compare(
        model, {"one": pv.Encoder(nn.Linear(3, 4)), "two": pv.GlobalParameters()}, Y, HELD_OUT,
        num_epochs=8, batch_size=4, evaluation=pv.ImportanceSampling(20, compile=False),
        compile=False, progress=False, checkpoint=folder / "kept",
    )  # fmt: skip
    numbers = [row.number("log_p") for row in table.rows()]
    states = [result.model.state_dict() for result in table.results.values()]
    weights_of = {f"{place} {name}": v for place, of in enumerate(states) for name, v in of.items()}
    return weights_of | {"log p": torch.tensor(numbers)}


def commanded(folder: Path, weights: int) -> dict[str, Tensor]:
    """A training by the command line, saved over an older result."""
    table, out = folder / "y.csv", folder / "out"
    if not table.exists():
        np.savetxt(table, np.random.default_rng(0).normal(size=(40, 3)), delimiter=",")
        pv.save(out, model=small()[0])
    command = ["fit", str(table), "--epochs", "12", "--quiet", "--out", str(out)]
    main([*command, "--resume", str(folder / "kept")])
    return dict(pv.load(out).model.state_dict())


def commanded_comparison(folder: Path, weights: int) -> dict[str, Tensor]:
    """A comparison by the command line, saved over an older result."""
    table, out = folder / "y.csv", folder / "out"
    command = ["compare", str(table), "--guides", "amortized,global", "--no-fixed", "--quiet"]
    command += ["--samples", "20", "--out", str(out), "--epochs"]
    if not table.exists():
        np.savetxt(table, np.random.default_rng(0).normal(size=(40, 3)), delimiter=",")
        main([*command, "1"])
    main([*command, "12", "--resume", str(folder / "kept")])
    models = {place.name: pv.load(place).model for place in (out / "models").iterdir()}
    return {f"{name} {key}": v for name, of in models.items() for key, v in of.state_dict().items()}


TRAINED = ("encoder", "rows", "global", "refined", "validation", "shards")
JOBS = {name: fitted(name) for name in TRAINED}
JOBS |= {"a comparison": compared, "the command line": commanded}
JOBS |= {"a comparison by the command line": commanded_comparison}
SIGNALS = [signal.SIGKILL] * 8 + [signal.SIGINT] * 4 + [signal.SIGTERM] * 4


def assert_whole(folder: Path) -> None:
    """Checkpoints are whole; what was being written stands beside them; results can be loaded."""
    for path in (folder / "kept").rglob("*"):
        if path.name.startswith(".fit."):
            path.unlink()
        elif path.is_file():
            assert path.name == "fit.safetensors"
            with safetensors.safe_open(str(path), "pt") as file:
                assert file.metadata()
    for header in folder.glob("out/**/pyro_vae.json"):
        pv.load(header.parent)
    if (folder / "out" / "models").exists():  # of one run, or of the other
        rows = len((folder / "out" / "table.csv").read_text().splitlines()) - 1
        assert len(list(folder.glob("out/models/*"))) == len(list(folder.glob("out/*.nc"))) == rows


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_kills_at_random_points(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By other processes and at any instruction; every one ends alike."""
    job, points = JOBS[name], random.Random(0)
    place = tmp_path / "whole"
    place.mkdir()
    job(place, 0)  # imports and first calls cost time of their own
    start = time.perf_counter()
    place = tmp_path / "timed"
    place.mkdir()
    whole = job(place, 0)
    seconds = time.perf_counter() - start
    due = property(lambda keeper: time.perf_counter() - keeper._written >= seconds / 10)
    monkeypatch.setattr(Keeper, "is_due", due)
    is_slow = job is commanded_comparison
    for count, number in enumerate(SIGNALS[::4] if is_slow else SIGNALS):
        if not count or points.random() < 0.5:  # else the same run is killed again
            place = tmp_path / str(count)
            place.mkdir()
        child = os.fork()
        if child == 0:
            # A child that is killed while it holds the lock that forks share would leave it locked.
            tqdm.set_lock(threading.RLock())
            try:
                job(place, 0)
            finally:
                os._exit(0)  # not the rest of the tests once more
        time.sleep(points.uniform(0, seconds))
        os.kill(child, number)
        os.waitpid(child, 0)
        assert_whole(place)
        again = tmp_path / f"copy of {count}"
        shutil.copytree(place, again)
        # From other weights; if it was killed before there was a checkpoint, it begins anew.
        ended = job(again, 1 if list(place.rglob("fit.safetensors")) else 0)
        assert ended.keys() == whole.keys()
        assert all(torch.equal(value, whole[key]) for key, value in ended.items())


@pytest.mark.slow
def test_a_kill_costs_one_interval_at_most(tmp_path: Path) -> None:
    """Steps take a tenth of a second here, or more, and a checkpoint is due after a quarter."""

    class Waits(Callback):
        def __init__(self) -> None:
            self.first = -1

        def on_start(self, run: Any) -> None:
            self.first = run.steps

        def on_step(self, run: Any) -> None:
            time.sleep(0.1)

    def run(waits: Waits, *more: Callback) -> None:
        torch.manual_seed(0)
        kept = Checkpoint(tmp_path, seconds=0.25)
        fit(*small(), Y, num_epochs=5, batch_size=4, callbacks=[waits, *more], checkpoint=kept)

    child = os.fork()
    if child == 0:
        try:
            run(Waits(), StopAfter(11, signal.SIGKILL))
        finally:
            os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    resumed = Waits()
    run(resumed)
    assert 11 - 4 <= resumed.first <= 11  # an interval of three steps, and the step that it ends in


def test_comparisons_are_resumed_guide_by_guide(tmp_path: Path) -> None:
    """What was trained is not trained again, and what was begun goes on, to the same table."""
    model = pv.models.VAE(nn.Linear(2, 3), pv.likelihoods.Gaussian(), latent_dim=2)
    guides = {"one": pv.Encoder(nn.Linear(3, 4)), "two": pv.GlobalParameters()}
    given: dict[str, Any] = {
        "num_epochs": 3,
        "batch_size": 4,
        "evaluation": pv.ImportanceSampling(20),
        "progress": False,
    }

    def compare(checkpoint: Path | None, callback: Callback) -> Any:
        return pv.compare(
            model, guides, Y, HELD_OUT, checkpoint=checkpoint, callbacks=[callback], **given
        )

    class Counts(Callback):
        """Counts steps in all trainings, and interrupts after so many."""

        def __init__(self, stop: int = -1) -> None:
            self.steps, self.stop = 0, stop

        def on_step(self, run: Any) -> None:
            self.steps += 1
            if self.steps == self.stop:
                signal.raise_signal(signal.SIGINT)

    whole, first, second = Counts(), Counts(stop=11), Counts()
    expected = compare(None, whole)
    assert compare(tmp_path, first).interrupted
    resumed = compare(tmp_path, second)
    assert (whole.steps, first.steps + second.steps) == (18, 18)
    for row, other in zip(resumed.rows(), expected.rows(), strict=True):
        assert [row.number(name) for name in ("log_p", "elbo", "train_elbo")] == [
            other.number(name) for name in ("log_p", "elbo", "train_elbo")
        ]
    for name in guides:
        mine, theirs = (table.results[name].model.state_dict() for table in (resumed, expected))
        assert all(torch.equal(value, theirs[key]) for key, value in mine.items())


@pytest.mark.slow
def test_the_command_line_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupted run says so, in what it saves, too, and exits with 130; then it goes on."""
    table, out = tmp_path / "y.csv", tmp_path / "model"
    np.savetxt(table, np.random.default_rng(0).normal(size=(40, 3)), delimiter=",")
    command = ["fit", str(table), "--epochs", "40", "--quiet", "--out", str(out)]
    main([*command[:-1], str(tmp_path / "whole")])
    keep = ["--resume", str(tmp_path / "kept")]
    with monkeypatch.context() as patched:
        patched.setattr(Journal, "on_step", lambda _, run: StopAfter(30).on_step(run))
        with pytest.raises(SystemExit) as ended:
            main([*command, *keep])
    assert ended.value.code == 130
    assert pv.storage.read_about(out)["training"].startswith("interrupted")
    main([*command, *keep])
    one, two = (pv.load(folder).model.state_dict() for folder in (out, tmp_path / "whole"))
    assert all(torch.equal(value, two[name]) for name, value in one.items())
