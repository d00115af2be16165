"""Shards: a step takes rows from each, every row once an epoch; in one process or in several."""

import re
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae import distributed
from pyro_vae.compiling import Captured
from pyro_vae.evidence import LogMarginal
from pyro_vae.results import Doubt, join
from tests.helpers.factor_analysis import prior_guide
from tests.helpers.shards import (
    MAPS,
    NUM_DATA,
    Numbers,
    interrupted_within,
    measured,
    numbers,
    resumed,
    same_noise,
)
from tests.helpers.training import (
    OneParameter,
    data,
    fit,
    layered_vae,
    sgd,
    shards_of,
    small,
    state,
)

ROOT = Path(__file__).parent.parent
SIZES = [(10, 4, 1), (11, 4, 2), (7, 3, 3), (5, 100, 2), (9, 4, 4), (23, 8, 2)]
ROUNDING = 1e-12  # relative; float64 has 2e-16, of which a thousand operations make some


# The cut


@pytest.mark.parametrize(("num_data", "batch_size", "count"), SIZES)
def test_every_row_once_an_epoch(num_data: int, batch_size: int, count: int) -> None:
    """From every shard its share of each step, to within a row; of the whole a batch."""
    shards = shards_of(num_data, seed=0, count=count)
    size = min(batch_size, num_data)
    steps = shards.epoch(size)
    rows = torch.cat([part.rows for parts in steps for part in parts])
    assert torch.equal(rows.sort().values, torch.arange(num_data))
    assert len(steps) == -(-num_data // size)
    for parts in steps[:-1]:
        assert abs(sum(len(part.rows) for part in parts) - size) < count
        for shard, mine in parts:
            assert abs(len(mine) - size * shard.size / num_data) < 1
            assert (shard.first <= mine).all()
            assert (mine < shard.first + shard.size).all()


def test_cuts_are_those_of_torch() -> None:
    """Where `torch.tensor_split` cuts, in tensors, tuples, and Shares of readers."""
    y = torch.arange(11)
    for count in (1, 2, 3, 11):
        for index, piece in enumerate(y.tensor_split(count)):
            assert torch.equal(pv.distributed.share(y, index, count), piece)
            one, two = pv.distributed.share((y, -y.numpy()), index, count)
            assert torch.equal(one, piece)
            assert np.array_equal(two, -piece.numpy())
    augmented = pv.data.Augmented((y, -y), torch.neg)
    piece, other = pv.distributed.share(augmented, 1, 2).data
    assert torch.equal(torch.cat([piece, -other]), y[6:].repeat(2))
    with pytest.raises(ValueError, match="must be from 1 to 11 for 11 rows"):
        pv.distributed.share(y, 0, 12)
    for index in (-1, 3):
        with pytest.raises(ValueError, match=f"from 0 to 2 for 3 shares; got {index}"):
            pv.distributed.share(y, index, 3)


def test_a_share_reads_its_own_rows_only(tmp_path: Path) -> None:
    """A memory map stays one; a reader is asked for rows of the share alone."""
    np.save(tmp_path / "y.npy", np.arange(20.0).reshape(10, 2))
    mapped = np.load(tmp_path / "y.npy", mmap_mode="r")
    assert isinstance(pv.distributed.share(mapped, 1, 2), np.memmap)
    asked: list[int] = []

    class Reader:
        def __len__(self) -> int:
            return 10

        def read(self, rows: Tensor) -> tuple[Tensor, ...]:
            asked.extend(rows.tolist())
            return (torch.from_numpy(mapped[rows.numpy()]).float(),)

    part = pv.distributed.share(Reader(), 1, 2)
    model = pv.models.VAE(nn.Linear(1, 2), pv.likelihoods.Gaussian(), latent_dim=1)
    fit(model, pv.Guide(model, pv.Encoder(nn.Linear(2, 2))), part, num_epochs=2, batch_size=2)
    assert (len(part), set(asked)) == (5, {5, 6, 7, 8, 9})


# One process


class Recorder(torch.optim.SGD):
    """Moves nothing, and writes the gradient of the one parameter down."""

    def __init__(self, parameters: list[Tensor], into: list[float]) -> None:
        super().__init__(parameters, lr=0.1)
        self.into = into

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """A step that stays where it is."""
        (parameter,) = self.param_groups[0]["params"]
        self.into.append(float(parameter.grad))


@pytest.mark.parametrize(("num_data", "batch_size", "count"), SIZES)
def test_the_gradient_is_that_of_the_rows(num_data: int, batch_size: int, count: int) -> None:
    """Of a program without noise: minus the sum over a step's rows, by the batch size.

    The rows are powers of 2, so that the gradient says which they are: all, each once.
    """
    y = 2.0 ** torch.arange(num_data, dtype=torch.float64)
    gradients: list[float] = []
    model = OneParameter()
    result = fit(
        model, prior_guide, y, num_epochs=1, batch_size=batch_size, shards=count,
        optimizer=lambda parameters: Recorder(parameters, gradients),
    )  # fmt: skip
    size = min(batch_size, num_data)
    rows = [round(-gradient * size) for gradient in gradients]
    assert sum(rows) == 2**num_data - 1
    assert sum(row.bit_count() for row in rows) == num_data  # no row twice
    exact = dist.Normal(0.0, 1.0).log_prob(y).mean()
    assert result.history.elbo[0] == pytest.approx(float(exact), rel=ROUNDING)


def test_what_all_data_share_counts_once() -> None:
    """A density outside the plate has in a full batch the weight that it has without shards."""
    theta = torch.zeros((), dtype=torch.float64, requires_grad=True)

    def model(y: Tensor) -> None:
        pyro.sample("shared", dist.Normal(theta, 0.5), obs=torch.tensor(3.0).double())
        with pyro.plate("data", len(y)):
            zero = torch.zeros(2, dtype=torch.float64)
            pyro.sample("z", dist.Normal(zero, 1.0).to_event(1))
            pyro.sample("y", dist.Normal(theta, 1.0), obs=y)

    y = torch.arange(7, dtype=torch.float64)
    fit(model, prior_guide, y, num_epochs=1, batch_size=7, shards=2, optimizer=sgd(lr=1.0))
    # The gradient of the log density at 0, by the number of data: (3 / 0.5^2 + sum y) / 7.
    assert theta.item() == pytest.approx((12 + 21) / 7, rel=ROUNDING)


def test_shards_leave_the_stream_of_the_caller() -> None:
    """It stays where it was."""
    before = torch.get_rng_state()
    fit(*small(), data(10), num_epochs=1, batch_size=4, shards=2)
    assert not torch.equal(torch.get_rng_state(), before)  # the weights were drawn
    model, guide = small()
    before = torch.get_rng_state()
    fit(model, guide, torch.eye(10, 3), num_epochs=1, batch_size=4, shards=2)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.usefixtures("float64")
def test_compiled_steps_are_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replayed without a compiler: the same numbers, also where shapes differ between parts."""
    monkeypatch.setattr(Captured, "compiled", lambda run, *args: run)
    y, states = data(11), []
    for compile in (False, True):
        torch.manual_seed(0)
        model, guide = small(pv.likelihoods.Gaussian(0.5))
        result = fit(model, guide, y, num_epochs=3, batch_size=4, shards=2, compile=compile)
        curves = {name: getattr(result.history, name) for name in ("elbo", "loss")}
        states.append(state(model, guide) | {n: torch.as_tensor(c) for n, c in curves.items()})
    assert result.compiled == "compiled"
    assert difference(states[1], states[0]) < 1e-6  # Adam's step is blown up by 1 / sqrt(v)


def test_more_shards_than_rows_are_refused() -> None:
    """Each has one row at least."""
    with pytest.raises(ValueError, match="must be from 1 to 10 for 10 rows"):
        fit(*small(), data(10), shards=11)


def test_batches_that_are_too_small() -> None:
    """A step takes rows from every shard."""
    with pytest.raises(ValueError, match="with 3 shards, `batch_size` must be at least 3; got 2"):
        fit(*small(), data(10), batch_size=2, shards=3)


def test_running_averages_are_refused() -> None:
    """Those of a BatchNorm would be of one shard, or of another."""
    model, guide = layered_vae(pv.likelihoods.Gaussian())
    with pytest.raises(ValueError, match=r"BatchNorm1d 'decoder\.1' keeps running averages"):
        fit(model, guide, data(10), shards=2)


def test_a_doubt_that_one_part_has() -> None:
    """Joined with others it holds for none of theirs."""
    zeros, yes = torch.zeros(2), torch.ones(2, dtype=torch.bool)
    one = LogMarginal(zeros, zeros, zeros, zeros, yes.long(), doubts={Doubt.HEAVY_TAIL: yes})
    two = replace(one, doubts={Doubt.HEAVY_TAIL: yes, Doubt.SEVERAL_MODES: yes})
    for parts, few in (([one, two], [0, 0, 1, 1]), ([two, one], [1, 1, 0, 0])):
        joined = join(parts)
        assert joined.doubts[Doubt.SEVERAL_MODES].tolist() == few
        assert joined.doubts[Doubt.HEAVY_TAIL].tolist() == [1, 1, 1, 1]


# Two processes


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found, started as a user would."""
    folder = tmp_path_factory.mktemp("shards")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1"]
    script = "tests.helpers.shards"
    done = subprocess.run(
        [sys.executable, "-m", *command, f"--master-port={port}", "-m", script, folder],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


def difference(found: Numbers, expected: Numbers) -> float:
    """The largest relative difference of any number."""
    assert found.keys() == expected.keys()
    pairs = [(found[name].double(), expected[name].double()) for name in expected]
    assert all(one.shape == two.shape for one, two in pairs)
    return max(
        float(((one - two).abs() / two.abs().clamp(min=1)).max())
        for one, two in pairs
        if one.numel() > 0
    )


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", MAPS)
def test_two_processes_are_one(processes: list[dict[str, Any]], name: str) -> None:
    """Parameters, rows of a table, history, evidence: all that two find is what one finds."""
    expected = numbers(name, shards=2)
    assert len(expected["value"]) == NUM_DATA
    for found in processes:
        assert difference(found[name], expected) < ROUNDING


@pytest.mark.usefixtures("float64")
def test_two_processes_measure_the_same_data(processes: list[dict[str, Any]]) -> None:
    """All of them, although the rows of one process are of unit scale."""
    expected = measured(shards=2)
    assert "model.decoder.units.shift" in expected
    for found in processes:
        assert difference(found["measured"], expected) < ROUNDING


@pytest.mark.usefixtures("float64")
def test_two_processes_are_resumed(
    processes: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the same bits, after Ctrl-C in one of them; in one process, which has two shards, too."""
    for found in processes:
        assert difference(found["resumed"], found["rows"]) == 0
        assert "checkpoint 'kept/fit.safetensors' belongs to a different run" in re.sub(
            r"'/\S*/kept", "'kept", found["errors"]["kept"]
        )
    assert difference(resumed("rows", tmp_path, shards=2), numbers("rows", shards=2)) == 0
    monkeypatch.setattr(distributed, "everyones", lambda value: [value] * 2)
    with pytest.raises(ValueError, match=r"processes \(1 in the checkpoint, 2 in this run\)"):
        numbers("rows", shards=2, checkpoint=tmp_path)


@pytest.mark.usefixtures("float64")
def test_ctrl_c_within_a_step(processes: list[dict[str, Any]]) -> None:
    """All processes stop after this step; a callback's ELBO is that of the rows of all."""
    for steps, stopped, difference in [
        *(found["interrupted"] for found in processes), interrupted_within(3, shards=2)
    ]:  # fmt: skip
        assert (steps, stopped) == (3, "interrupted")
        assert abs(difference) < ROUNDING


@pytest.mark.usefixtures("float64")
def test_captured_steps_in_two_processes(processes: list[dict[str, Any]]) -> None:
    """The same numbers again, of steps as they are written in one process."""
    expected = numbers("encoder", shards=2)
    for found in processes:
        assert difference(found["captured"], expected) < ROUNDING


@pytest.mark.usefixtures("float64")
def test_wrong_twins_are_caught(processes: list[dict[str, Any]]) -> None:
    """Gradients that nobody sums, the same noise in both shards, and one shard for two."""
    expected = numbers("encoder", shards=2)
    assert difference(processes[0]["unreduced"], expected) > 1e-3
    assert difference(processes[1]["unreduced"], processes[0]["unreduced"]) > 1e-3
    with same_noise():
        assert difference(numbers("encoder", shards=2), expected) > 1e-3
    assert difference(numbers("encoder", shards=1), expected) > 1e-3


ERRORS: dict[str, tuple[str, Callable[[str], str]]] = {
    "step": ("FloatingPointError: the loss is", lambda text: f"FloatingPointError: {text}"),
    "reader": ("OSError: the disk is gone", lambda text: f"RuntimeError: {text}"),
    "door": ("ValueError: ", lambda text: f"RuntimeError: {text}"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_of_one_ends_all(processes: list[dict[str, Any]], name: str) -> None:
    """The process that failed says how; the other one, which, and how."""
    other, failed = (found["errors"][name] for found in processes)
    start, wrapped = ERRORS[name]
    assert failed.startswith(start)
    assert other == wrapped(f"in process 1: {failed}")


def test_what_differs_is_refused(processes: list[dict[str, Any]]) -> None:
    """Arguments that are not the same everywhere, and shards that are not the processes."""
    for found in processes:
        assert found["errors"]["told"].startswith(
            "ValueError: the options of fit must be the same in all processes; got [2, 4,"
        )
