"""Training and evidence in shards, as a script for torchrun and as functions for one process.

`python -m torch.distributed.run --nproc-per-node 2 ... -m tests.helpers.shards FOLDER` writes what
every process found to `FOLDER/RANK.pt`.
"""

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae import distributed
from pyro_vae.compiling import Captured
from pyro_vae.randomness import forked
from pyro_vae.training import Callback
from pyro_vae.training.steps import Steps
from tests.helpers.training import fit

NUM_DATA = 23  # two shards of 12 and 11
FEATURES = 3

MAPS: dict[str, Callable[[int], pv.InferenceMap]] = {
    "encoder": lambda rows: pv.Encoder(nn.Linear(FEATURES, 4)),
    "rows": lambda rows: pv.LocalParameters(rows),
    "global": lambda rows: pv.GlobalParameters(),
}

Numbers = dict[str, Tensor]


def numbers(kind: str, shards: int = 1, *, compile: bool = False, **options: Any) -> Numbers:
    """All that training and evaluation give, for all rows, in whichever process this is."""
    generator = torch.Generator().manual_seed(5)
    y, held_out = torch.randn(NUM_DATA + 7, FEATURES, generator=generator).split([NUM_DATA, 7])
    torch.manual_seed(pv.distributed.rank())  # processes start apart, and take what 0 has
    y, held_out = pv.distributed.share(y), pv.distributed.share(held_out)
    model = pv.models.VAE(nn.Linear(2, FEATURES), pv.likelihoods.Gaussian(), latent_dim=2)
    guide = pv.Guide(model, MAPS[kind](len(y)))
    result = fit(
        model, guide, y, num_epochs=3, batch_size=8, validation=held_out, patience=2, seed=3,
        augment=lambda y: y + 0.1 * torch.randn_like(y), shards=shards, compile=compile,
        **options,
    )  # fmt: skip
    if compile:
        assert result.compiled == "compiled"
    found: Numbers = {name: value.detach() for name, value in model.named_parameters()}
    found |= {f"guide.{name}": value.detach() for name, value in guide.named_parameters()}
    if kind == "rows":
        found |= pv.distributed.gather(dict(guide.map.named_buffers()))
    columns = vars(result.history)
    found |= {name: torch.as_tensor(columns[name]) for name in columns if name != "seconds"}
    found["best epoch"] = torch.tensor(result.best_epoch)
    return found | evidence(model, guide, y)


def measured(shards: int = 1) -> Numbers:
    """All tensors after training on raw data; the rows of the first shard are of unit scale."""
    y = torch.arange(24.0 * FEATURES).reshape(24, FEATURES).sin()
    y[12:] = 1e4 + 1e3 * y[12:]
    torch.manual_seed(pv.distributed.rank())
    decoder = pv.nets.MLPDecoder(2, FEATURES, hidden=(4,))
    model = pv.models.VAE(decoder, pv.likelihoods.Gaussian(pv.likelihoods.LearnedSigma()), 2)
    guide = pv.Guide(model, pv.Encoder(pv.nets.MLPEncoder(FEATURES, hidden=(4,))))
    fit(model, guide, pv.distributed.share(y), num_epochs=2, batch_size=8, seed=3, shards=shards)
    found = {f"model.{name}": value for name, value in model.state_dict().items()}
    return found | {f"guide.{name}": value for name, value in guide.state_dict().items()}


def evidence(model: Any, guide: pv.Guide, y: Tensor) -> Numbers:
    """Evidence and bound of every row, gathered."""
    bound, lml = pv.distributed.gather(pv.evaluate(model, guide, y, pv.ImportanceSampling(40)))
    fields = {name: getattr(lml, name) for name in ("value", "error", "ess", "pareto_k")}
    return fields | {"elbo": bound.elbo.value, "mean elbo": bound.mean.value}


@contextlib.contextmanager
def unreduced() -> Iterator[None]:
    """A wrong twin: every process goes its own way."""
    exchange = distributed._exchange
    without = lambda failed, sums, tensors: exchange(failed, sums, [])  # noqa: E731
    with mock.patch("pyro_vae.distributed._exchange", without):
        yield


@contextlib.contextmanager
def same_noise() -> Iterator[None]:
    """A wrong twin: all shards draw the same numbers."""
    with mock.patch("pyro_vae.training.sharding.forked", lambda seed, name: forked(seed, "shard")):
        yield


@contextlib.contextmanager
def uncompiled() -> Iterator[None]:
    """Captured steps run without a compiler, which takes seconds."""
    with mock.patch.object(Captured, "compiled", lambda captured, *args: captured):
        yield


class InterruptsOne(Callback):
    """Ctrl-C, in the last process only, after so many steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step(self, run: Any) -> None:
        """Sends it."""
        if run.steps == self.steps and pv.distributed.rank() == pv.distributed.size() - 1:
            signal.raise_signal(signal.SIGINT)


class Notes(Callback):
    """How far training came; and, for epochs of one step, how far a step's ELBO is from theirs."""

    def on_epoch(self, run: Any) -> None:
        """Compares the two."""
        self.difference = float(run.elbo - run.history.elbo[-1])

    def on_end(self, run: Any) -> None:
        """Notes the steps."""
        self.steps = run.steps


def interrupted_within(step: int, *, shards: int = 1) -> tuple[int, str, float]:
    """Ctrl-C in the last process, while it computes its part of a step.

    Returns the number of steps taken, why training stopped, and the ELBO of a step less that of
    its epoch, which has no other step.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    backward, notes, sent = Steps._backward, Notes(), list[bool]()

    def interrupted(steps: Steps, *args: Any) -> Any:
        due = steps.taken + 1 == step and pv.distributed.rank() == pv.distributed.size() - 1
        if due and not sent:
            sent.append(True)
            signal.raise_signal(signal.SIGINT)
        return backward(steps, *args)

    y = pv.distributed.share(torch.arange(24.0).reshape(8, FEATURES).sin())
    model = pv.models.VAE(nn.Linear(2, FEATURES), pv.likelihoods.Gaussian(), latent_dim=2)
    guide = pv.Guide(model, pv.Encoder(nn.Linear(FEATURES, 4)))
    with mock.patch.object(Steps, "_backward", interrupted):
        result = fit(model, guide, y, num_epochs=5, batch_size=8, callbacks=notes, shards=shards)
    signal.signal(signal.SIGINT, before)
    return notes.steps, result.stopped, notes.difference


def resumed(kind: str, folder: Path, shards: int = 1) -> Numbers:
    """The numbers of a run that was interrupted in an epoch, and at the end of one."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    for steps in (2, 6):
        numbers(kind, shards, checkpoint=folder, callbacks=[InterruptsOne(steps)])
    signal.signal(signal.SIGINT, before)
    return numbers(kind, shards, checkpoint=folder)


def said(call: Callable[[], object]) -> str:
    """The error that a call ends with."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def failing(**changes: Any) -> str:
    """What is said where the second process alone is given something bad."""
    y = torch.arange(24.0).reshape(8, FEATURES).sin()
    options: dict[str, Any] = {"num_epochs": 2, "batch_size": 4}
    model = pv.models.VAE(nn.Linear(2, FEATURES), pv.likelihoods.Gaussian(), latent_dim=2)
    guide = pv.Guide(model, pv.Encoder(nn.Linear(FEATURES, 4)))
    if pv.distributed.rank() == 1:
        options |= {name: value for name, value in changes.items() if name != "y"}
        y = changes.get("y", y)
    return said(lambda: fit(model, guide, y, **options))


def spoil(y: Tensor) -> Tensor:
    """A batch with an entry that is no number."""
    return y.index_fill(0, torch.tensor([0]), torch.inf)


def unreadable(y: Tensor) -> Tensor:
    """Fails as nothing does that has to do with numbers."""
    raise OSError("the disk is gone")


def main(folder: Path) -> None:
    """Runs everything in one of several processes."""
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    found: dict[str, Any] = {kind: numbers(kind) for kind in MAPS}
    found["measured"] = measured()
    with uncompiled():
        found["captured"] = numbers("encoder", compile=True)
    with unreduced():
        found["unreduced"] = numbers("encoder")
    found["resumed"] = resumed("rows", folder / "kept")
    found["interrupted"] = interrupted_within(3)
    found["errors"] = {
        "step": failing(augment=spoil),
        "reader": failing(augment=unreadable),
        "door": failing(y=torch.full((8, FEATURES), torch.inf)),
        "told": failing(batch_size=3),
        "kept": said(lambda: numbers("encoder", checkpoint=folder / "kept")),
    }
    torch.save(found, folder / f"{pv.distributed.rank()}.pt")
    torch.distributed.barrier()  # a peer that leaves first may end this process by a signal
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
