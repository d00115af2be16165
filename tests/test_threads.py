"""Threads take turns at what belongs to the process; a process that is forked finds it free."""

import os
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.programs.running import threads_for
from pyro_vae.randomness import ALONE
from pyro_vae.training.callbacks import Callback, Run

Y = torch.linspace(-1.0, 1.0, 12).view(4, 3)


def programs() -> tuple[Any, Any]:
    """A model and a guide, in training mode."""
    model = pv.models.VAE(pv.nets.MLPDecoder(2, 3, hidden=(4,)), pv.likelihoods.Gaussian(), 2)
    guide = pv.Guide(model, pv.Encoder(pv.nets.MLPEncoder(3, hidden=(4,))))
    return model.train(), guide.train()


def evaluated(model: Any, guide: Any) -> Tensor:
    """Log p of every row."""
    estimator = pv.ImportanceSampling(20, compile=False)
    return pv.evaluate(model, guide, Y, estimator).log_marginal.value


def answers(call: Callable[[], Tensor], threads: int, calls: int) -> list[Tensor]:
    """What so many threads are answered."""
    with ThreadPoolExecutor(threads) as pool:
        return [done.result() for done in [pool.submit(call) for _ in range(calls)]]


@pytest.mark.filterwarnings("ignore:log p.y. cannot be trusted")
@pytest.mark.parametrize(
    ("threads", "calls"),
    [
        (2, 6),
        pytest.param(20, 60, marks=pytest.mark.slow),
        pytest.param(100, 200, marks=pytest.mark.slow),
    ],
)
def test_threads_are_answered_alike(threads: int, calls: int) -> None:
    """The same bits as alone; modes, settings, handlers and streams stay as they were."""
    model, guide = programs()
    alone, stream = evaluated(model, guide), torch.get_rng_state()
    for value in answers(lambda: evaluated(model, guide), threads, calls):
        assert torch.equal(value, alone)
    assert torch.equal(torch.get_rng_state(), stream)
    assert all(module.training for program in (model, guide) for module in program.modules())
    assert not pyro.settings.get("module_local_params")
    assert not pyro.poutine.runtime._PYRO_STACK


@pytest.mark.parametrize("alone", [True, False])
def test_threads_do_not_meet(*, alone: bool) -> None:
    """Nobody enters while another is inside; the wrong twin, where nobody waits, is told apart."""
    both = threading.Barrier(2, timeout=0.5 if alone else 20)
    met = []

    def use() -> Tensor:
        with pv.programs.evaluating() if alone else nullcontext():
            try:
                both.wait()  # passed only if both threads are here at once
                met.append(True)
            except threading.BrokenBarrierError:
                met.append(False)
        return Y

    answers(use, 2, 2)
    assert met == [not alone] * 2


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Torch has two threads, and as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


class Outside(Callback):
    """Notes the number of torch's threads between steps."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_step(self, run: Run) -> None:
        self.seen.append(torch.get_num_threads())


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("fails", [False, True])
def test_small_steps_take_one_thread(*, fails: bool) -> None:
    """All but the first, which is counted; callers have theirs again, after an error too."""
    model, guide = programs()
    inside, outside = [], Outside()

    def note(*_: Any) -> None:
        inside.append(torch.get_num_threads())
        if fails and len(inside) > 5:
            raise RuntimeError("in this test")

    model.decoder.register_forward_pre_hook(note)
    with pytest.raises(RuntimeError, match="in this test") if fails else nullcontext():
        pv.fit(model, guide, Y, num_epochs=4, batch_size=2, compile=False, callbacks=[outside])
    assert inside[-1] == 1
    assert set(outside.seen) == {2} == {torch.get_num_threads()}


def threads_inside(width: int, evaluation: Callable[[Any, Any, Tensor], object]) -> set[int]:
    """Numbers of torch's threads on which a decoder with so many hidden units is run."""
    seen = []
    decoder = pv.nets.MLPDecoder(2, 3, hidden=(width,))
    decoder.register_forward_pre_hook(
        lambda _, z: seen.append((len(z[0]), torch.get_num_threads()))
    )
    model = pv.models.VAE(decoder, pv.likelihoods.Gaussian(), 2)
    guide = pv.Guide(model, pv.Encoder(pv.nets.MLPEncoder(3, hidden=(4,))))
    evaluation(model, guide, Y)
    return {threads for rows, threads in seen if rows > 8}  # fewer: what is the program, its cost?


EVALUATIONS: dict[str, Callable[[Any, Any, Tensor], object]] = {
    "log p": pv.log_marginal_likelihood,
    "ladder": partial(pv.log_marginal_likelihood, estimator=pv.Tightest()),
    "gap": pv.inference_gap,
}


@pytest.mark.filterwarnings("ignore:log p.y. cannot be trusted")
@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("name", EVALUATIONS)
def test_evaluations_of_narrow_programs_take_one_thread(name: str) -> None:
    """And the caller has both threads again afterwards."""
    assert threads_inside(4, EVALUATIONS[name]) == {1}
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_evaluations_of_wide_programs_keep_theirs() -> None:
    """Products of matrices are worth two threads."""
    assert threads_inside(3000, partial(pv.elbo, num_samples=5)) == {2}


@pytest.mark.usefixtures("two_threads")
def test_large_steps_keep_theirs() -> None:
    """A step of many milliseconds, or one of which nothing is known."""
    for num_bytes in (None, 1e9):
        with threads_for(num_bytes):
            assert torch.get_num_threads() == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """What another thread held when the process was forked, for long, is free in the child."""
    monkeypatch.setattr("pyro_vae.randomness._FORK_WAITS", 0.1)
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with ALONE:
            held.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(60)
    child = os.fork()
    if child == 0:
        os._exit(0 if ALONE.acquire(timeout=20) else 1)
    done.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.filterwarnings("ignore:log p.y. cannot be trusted")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_answers_alike() -> None:
    """Also one that is forked while another thread evaluates, and so holds what is shared."""
    model, guide = programs()
    alone, done = evaluated(model, guide), threading.Event()

    def busy() -> None:
        while not done.is_set():
            evaluated(model, guide)

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        for _ in range(2):
            child = os.fork()
            if child == 0:
                os._exit(0 if torch.equal(evaluated(model, guide), alone) else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        done.set()
        thread.join()
    assert torch.equal(evaluated(model, guide), alone)


class Asked(torch.utils.data.Dataset[Tensor]):
    """Rows that are answers: every worker has its own copy of the model and the guide."""

    def __init__(self) -> None:
        self.model, self.guide = programs()

    def __len__(self) -> int:
        return 4

    def __getitem__(self, row: int) -> Tensor:
        estimator = pv.ImportanceSampling(20, compile=False)
        value = pv.evaluate(self.model, self.guide, Y[row : row + 1], estimator).log_marginal.value
        mean = self.guide.mean(Y[row : row + 1]).flatten()
        return torch.cat([value, mean.double()])


@pytest.mark.filterwarnings("ignore:log p.y. cannot be trusted")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_workers_of_a_loader_answer_alike() -> None:
    """Workers ask the model while the process that reads from them trains one on their answers."""
    data = Asked()
    expected = torch.stack([data[row] for row in range(4)])
    loader = torch.utils.data.DataLoader(data, 2, num_workers=2, multiprocessing_context="fork")
    found = []
    for answers_of_batch in loader:
        pv.fit(*programs(), Y, num_epochs=1, compile=False, progress=False)
        found.append(answers_of_batch)
    assert torch.equal(torch.cat(found), expected)
    assert all(module.training for module in data.model.modules())


@pytest.mark.filterwarnings("ignore:log p.y. cannot be trusted")
def test_autocast_of_the_caller_stays_outside() -> None:
    """It rounds products to bfloat16: log p would be wrong in the third digit, and reliable."""
    model, guide = programs()
    expected, z = evaluated(model, guide), guide.mean(Y)
    with torch.autocast("cpu"):
        assert torch.equal(evaluated(model, guide), expected)
        assert torch.equal(guide.mean(Y), z)
        assert torch.equal(model.decode(z), model.decode(z.clone()))
        assert torch.is_autocast_enabled("cpu")
        rounded = torch.nn.functional.linear(Y, torch.randn(4, 3))
    assert rounded.dtype == torch.bfloat16


def test_programs_are_sent_to_other_processes() -> None:
    """What workers that are started afresh get is a pickle of model and guide."""
    model, guide = programs()
    again = pickle.loads(pickle.dumps(guide))
    assert torch.equal(again.mean(Y), guide.mean(Y))
    assert torch.equal(again.model.decode(guide.mean(Y)), model.decode(guide.mean(Y)))
