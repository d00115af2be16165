r"""Training steps that are compiled: programs, loss, gradient and check as one list of operations.

A step runs two Pyro programs and differentiates them. That is captured once for a batch of given
shapes (see `pyro_vae.programs.capture`) and replayed from then on, with the draws that the programs
would have made. The check for numbers that are not finite is a part of it: such a step moves
nothing, and is taken once more as it is written, to name the culprit.

The optimizer's state is its own, so that steps of either kind can follow each other. Adam moves all
tensors in one fused operation of torch's; another optimizer takes its own step.
"""

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._types import Batch
from ..programs import Captured, NotCaptured, capture, has_missing

_TIMED = 5  # eager steps to see what one takes, after the first, which also sets things up
_SECONDS_AN_OPERATION = 0.15  # of compiling, on two busy cores; a small VAE's step has 200
_FEWEST = 200  # operations of a step
_SAVED = 0.6  # share of an eager step that a compiled one saves at the least, handlers being most
_AGREE = 1e-3  # relative difference of two sums of a batch in float32, in another order

Loss = Callable[..., tuple[Tensor, Tensor]]
"""From a batch to what is minimized and the ELBO, both in nats a datum."""


class CompiledSteps:
    """Training steps that run compiled where that pays, or where it was asked for.

    Arguments:
        loss: What a step minimizes, and the ELBO; must not read a number out of a tensor.
        tensors: What it moves.
        optimizer: How.
        asked: True to compile at once, False never, None where it pays.
    """

    def __init__(
        self,
        loss: Loss,
        tensors: list[Tensor],
        optimizer: torch.optim.Optimizer,
        *,
        asked: bool | None,
    ) -> None:
        self.loss, self.tensors, self.optimizer, self.asked = loss, tensors, optimizer, asked
        self.adam = _plain_adam(optimizer, tensors)
        self.reason = "" if asked is not False else "compile=False"
        self.compiled: dict[Any, _Step | None] = {}
        self.eager_steps, self.eager_seconds = 0, 0.0

    @property
    def verdict(self) -> str:
        """Whether steps were compiled, or why not."""
        if any(self.compiled.values()):
            return "compiled"
        return f"as written: {self.reason or 'compiling would not have paid'}"

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Around a step as it is written, whose time decides whether to compile."""
        start = time.perf_counter()
        yield
        self.eager_steps += 1
        if self.eager_steps > 1:
            self.eager_seconds += time.perf_counter() - start

    def step(self, batch: Batch, steps_left: int) -> float | None:
        """A compiled step; its ELBO, or `None` if it has to be taken as it is written.

        Arguments:
            batch: The tensors of the batch.
            steps_left: How many steps with a batch of these shapes are still to come.
        """
        step = self._ready(batch, steps_left)
        return None if step is None else step(batch)

    def gradients(self, batch: Batch, steps_left: int) -> tuple[float, list[Tensor]] | None:
        """The ELBO and the gradients of a compiled step, which moves nothing; else as `step`."""
        step = self._ready(batch, steps_left)
        return None if step is None else step.gradients(batch)

    def _ready(self, batch: Batch, steps_left: int) -> "_Step | None":
        """The compiled step for batches like this one, if there is one or it pays to make one."""
        if self.reason:
            return None
        key = tuple((part.shape, part.dtype) for part in batch)
        if key not in self.compiled:
            if not self._pays(steps_left, _FEWEST):
                return None
            self.compiled[key] = self._compile(batch, steps_left)
        step = self.compiled[key]
        if step is None:
            return None
        if not step.run.is_current:  # something was moved
            del self.compiled[key]
            return None
        return step

    def descend(self, gradients: list[Tensor]) -> None:
        """The optimizer's part of a step."""
        if self.adam is not None:
            self.adam.step(gradients)
            return
        for tensor, gradient in zip(self.tensors, gradients, strict=True):
            tensor.grad = gradient
        self.optimizer.step()

    def _pays(self, steps_left: int, operations: int) -> bool:
        """Whether compiling so many operations takes less time than it saves."""
        if self.eager_steps == 0:  # the first one makes the state of the optimizer
            return False
        if self.asked:
            return True
        if self.eager_steps <= _TIMED:
            return False
        seconds = self.eager_seconds / (self.eager_steps - 1)
        return steps_left * seconds * _SAVED > operations * _SECONDS_AN_OPERATION

    def _compile(self, batch: Batch, steps_left: int) -> "_Step | None":
        step = _Step(self)
        try:
            operations = step.capture(batch)
            if not self._pays(steps_left, operations):  # a long program, such as one of series
                self.reason = f"compiling its {operations} operations would not have paid"
                return None
            step.compile(batch)
        except NotCaptured as error:
            self.reason = str(error)
            if self.asked:
                warnings.warn(
                    f"training runs as it is written, not compiled: {error}",
                    UserWarning,
                    stacklevel=2,
                )
            return None
        return step


class _Step:
    """A compiled step for batches of some shapes."""

    run: Captured

    def __init__(self, steps: CompiledSteps) -> None:
        self.steps = steps

    def capture(self, batch: Batch) -> int:
        """Writes the operations down; returns how many there are."""
        stream = torch.get_rng_state()
        self.run = capture(self._flat, *batch, missing=any(map(has_missing, batch)))
        torch.set_rng_state(stream)
        return len(self.run.graph.graph.nodes)

    def compile(self, batch: Batch) -> None:
        """Compiles them, and holds the result against the programs."""
        self.run = self.run.compiled(*batch)
        self._check(batch)

    def _flat(self, *batch: Tensor) -> list[Tensor]:
        """The report and the gradients as a function of the batch: what is captured."""
        with torch.enable_grad():
            loss, elbo = self.steps.loss(*batch)
            gradients = torch.autograd.grad(
                loss, self.steps.tensors, allow_unused=True, materialize_grads=True
            )
        sums = torch.stack([gradient.sum() for gradient in gradients])
        is_finite = loss.isfinite() & sums.isfinite().all()
        return [torch.stack([elbo.detach().double(), is_finite.double()]), *gradients]

    def __call__(self, batch: Batch) -> float | None:
        """Takes the step; `None`, and nothing has moved, if a number is not finite."""
        found = self.gradients(batch)
        if found is None:
            return None
        self.steps.descend(found[1])
        return found[0]

    def gradients(self, batch: Batch) -> tuple[float, list[Tensor]] | None:
        """The ELBO and the gradients; `None`, and no stream has moved, if one is not finite."""
        stream = torch.get_rng_state()
        report, *gradients = self.run(*batch)
        elbo, is_finite = report.tolist()
        if not is_finite:
            torch.set_rng_state(stream)
            return None
        return float(elbo), gradients

    def _check(self, batch: Batch) -> None:
        """A first run is held against the programs as they are written, on the same draws."""
        stream = torch.get_rng_state()
        with torch.no_grad():
            written = float(self.steps.loss(*batch)[1])
        torch.set_rng_state(stream)
        found = float(self.run(*batch)[0][0])
        torch.set_rng_state(stream)
        if not abs(found - written) <= _AGREE * (1 + abs(written)):
            raise NotCaptured(
                f"a captured step gives an ELBO of {found} where the programs give {written}: they "
                "depend on something that is not a tensor"
            )


class _Group(NamedTuple):
    """Tensors that an optimizer moves alike, with their state, which stays where it is."""

    options: dict[str, Any]
    places: list[int]  # among all tensors
    tensors: list[Tensor]
    means: list[Tensor]
    squares: list[Tensor]
    taken: Tensor  # all numbers of steps in one tensor, of which those of the state are parts
    steps: list[Tensor]


class _Adam:
    """The update of torch's Adam, on its own state, by torch's own fused operation.

    `optimizer.step()` spends more time on looking at its state than a small model's step takes.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, tensors: list[Tensor]) -> None:
        self.optimizer, self.tensors = optimizer, tensors

    @cached_property
    def groups(self) -> list[_Group]:
        """What there is to move, once a first step has made the state."""
        places = {id(tensor): place for place, tensor in enumerate(self.tensors)}
        groups = []
        for group in filter(lambda group: group["params"], self.optimizer.param_groups):
            states = [self.optimizer.state[tensor] for tensor in group["params"]]
            means, squares = (
                [state[name] for state in states] for name in ("exp_avg", "exp_avg_sq")
            )
            taken = torch.stack([state["step"] for state in states])
            steps = list(taken.unbind())
            for state, step in zip(states, steps, strict=True):
                state["step"] = step
            own = [places[id(tensor)] for tensor in group["params"]]
            groups.append(_Group(group, own, group["params"], means, squares, taken, steps))
        return groups

    @torch.no_grad()
    def step(self, gradients: list[Tensor]) -> None:
        """Moves the tensors.

        References:
            | Adam: A Method for Stochastic Optimization (Kingma & Ba, 2015)
            | https://arxiv.org/abs/1412.6980
        """
        for group in self.groups:
            options = group.options
            group.taken.add_(1)  # to add to each of them takes longer than all the rest
            torch._fused_adam_(
                group.tensors,
                [gradients[place] for place in group.places],
                group.means,
                group.squares,
                [],
                group.steps,
                lr=options["lr"],
                beta1=options["betas"][0],
                beta2=options["betas"][1],
                weight_decay=options["weight_decay"],
                eps=options["eps"],
                amsgrad=False,
                maximize=options["maximize"],
            )


def _plain_adam(optimizer: torch.optim.Optimizer, tensors: list[Tensor]) -> _Adam | None:
    """Torch's Adam, if it is that and has no option that the fused operation lacks."""
    plain = type(optimizer) is torch.optim.Adam and all(
        not group["amsgrad"]
        and not group.get("decoupled_weight_decay", False)
        and not isinstance(group["lr"], Tensor)
        for group in optimizer.param_groups
    )
    return _Adam(optimizer, tensors) if plain else None
