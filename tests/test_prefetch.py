"""Reading ahead: the same batches in the same order, one ahead, and no thread left behind."""

import threading
from collections.abc import Iterator
from contextlib import closing

import pytest
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.training.rows import read_ahead
from tests.helpers.training import assert_same_state, fit, state, stop_after

ROWS = torch.rand(20, 2)
NAME = "read_ahead"
WAIT = 10.0  # seconds after which something that should happen did not


class Slow:
    """A reader that notes what it was asked for, and can refuse to read."""

    def __init__(self, bad: int = -1) -> None:
        self.bad, self.begun = bad, threading.Semaphore(0)
        self.asked: list[int] = []
        self.threads: set[str] = set()

    def __len__(self) -> int:
        return len(ROWS)

    def read(self, rows: Tensor) -> tuple[Tensor, ...]:
        """The rows, or an error."""
        self.asked.append(int(rows[0]))
        self.threads.add(threading.current_thread().name)
        self.begun.release()
        if self.bad in rows:
            raise OSError(f"row {self.bad} cannot be read")
        return (ROWS[rows],)


def batches(num: int = 5) -> Iterator[Tensor]:
    """Some batches of two rows, in order."""
    return (torch.arange(2 * index, 2 * index + 2) for index in range(num))


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    """None of ours runs after a test (tqdm has one that waits for its next bar)."""
    yield
    assert [thread.name for thread in threading.enumerate() if NAME in thread.name] == []


@pytest.mark.parametrize("num", [0, 1, 5])
def test_the_same_batches_in_order(num: int) -> None:
    """Five, one, or none at all."""
    found = [y for (y,) in read_ahead(Slow(), batches(num))]
    assert len(found) == num
    assert all(map(torch.equal, found, [ROWS[rows] for rows in batches(num)]))


def test_the_next_batch_is_read_meanwhile() -> None:
    """One batch ahead, not two, and not in the thread that waits for none."""
    reader = Slow()
    with closing(read_ahead(reader, batches())) as stream:
        next(stream)
        assert all(reader.begun.acquire(timeout=WAIT) for _ in range(2))
        assert not reader.begun.acquire(timeout=0.05)
    assert reader.asked == [0, 2]
    assert len(reader.threads) == 1
    assert all(NAME in name for name in reader.threads)


class Threads(pv.training.Callback):
    """Notes the names of all threads after every step."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def on_step(self, run: pv.training.callbacks.Run) -> None:
        """Adds the names of the threads that run now."""
        self.names += [thread.name for thread in threading.enumerate()]


@pytest.mark.parametrize("shards", [1, 2])
def test_memory_is_not_read_ahead(shards: int) -> None:
    """Training reads rows in memory without a thread, but other rows with one."""
    for rows, is_read_ahead in ((ROWS, False), (Slow(), True)):
        threads = Threads()
        fit(*model_and_guide(), rows, num_epochs=1, batch_size=6, callbacks=threads, shards=shards)
        assert any(NAME in name for name in threads.names) == is_read_ahead


def test_an_error_comes_in_its_turn() -> None:
    """The batches before it are given; then it is raised where batches are asked for."""
    reader = Slow(bad=4)
    stream = read_ahead(reader, batches())
    assert [int(next(stream)[0].shape[0]) for _ in range(2)] == [2, 2]
    with pytest.raises(OSError, match="row 4 cannot be read"):
        next(stream)


def model_and_guide() -> tuple[pv.models.VAE, pv.Guide]:
    """A model of two features, from the seed."""
    torch.manual_seed(0)
    model = pv.models.VAE(torch.nn.Linear(1, 2), pv.likelihoods.Gaussian(), 1)
    return model, pv.Guide(model, pv.Encoder(torch.nn.Linear(2, 2)))


def test_training_reads_ahead() -> None:
    """The numbers of rows in memory, to the last bit, with shards too."""
    for shards in (1, 2):
        states = []
        for rows in (Slow(), ROWS):
            model, guide = model_and_guide()
            fit(model, guide, rows, num_epochs=2, batch_size=6, shards=shards)
            states.append(state(model, guide))
        assert_same_state(*states)


def test_an_interrupt_leaves_no_thread() -> None:
    """Ctrl-C in the middle of an epoch ends training, and reading with it."""
    result = fit(*model_and_guide(), Slow(), batch_size=4, augment=stop_after(3))
    assert result.stopped == "interrupted"
