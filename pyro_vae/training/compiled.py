r"""A whole training step as one compiled list of operations: loss, gradient, check and update.

A step runs two Pyro programs, differentiates them and moves every parameter. All of it is captured
once for a batch of given shapes (see `pyro_vae.programs.capture`) and replayed from then on. The
draws are those that the programs would have made. The check for numbers that are not finite is a
part of it: such a step moves nothing, and is run once more as it was written, to name the culprit.

Adam is a part of the list, with the state that torch's optimizer keeps, so that steps of either
kind can follow each other; another optimizer takes its own step after the list has run.
"""

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .._types import Batch
from ..programs import Captured, NotCaptured, capture, has_missing

_TIMED = 5  # eager steps to see what one takes, after the first, which also sets things up
_COMPILING = 30.0  # seconds that compiling a step may take on two busy cores without a cache
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
        asked: bool | None,
    ) -> None:
        self.loss, self.tensors, self.optimizer, self.asked = loss, tensors, optimizer, asked
        self.adam = _Adam(optimizer) if type(optimizer) is torch.optim.Adam else None
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
        if self.reason:
            return None
        key = tuple((part.shape, part.dtype) for part in batch)
        if key not in self.compiled:
            if not self._pays(steps_left):
                return None
            self.compiled[key] = self._compile(batch)
        step = self.compiled[key]
        if step is None:
            return None
        if not step.is_current:  # something was moved, or the optimizer was told otherwise
            del self.compiled[key]
            return None
        return step(batch)

    def _pays(self, steps_left: int) -> bool:
        if self.eager_steps == 0:  # the first one makes the state of the optimizer
            return False
        if self.asked:
            return True
        if self.eager_steps <= _TIMED:
            return False
        seconds = self.eager_seconds / (self.eager_steps - 1)
        return steps_left * seconds * _SAVED > _COMPILING

    def _compile(self, batch: Batch) -> "_Step | None":
        try:
            return _Step(self, batch)
        except NotCaptured as error:
            self.reason = str(error)
            if self.asked:
                warnings.warn(
                    f"training runs as it is written, not compiled: {error}",
                    UserWarning,
                    stacklevel=2,
                )
            return None


class _Step:
    """A compiled step for batches of some shapes."""

    def __init__(self, steps: CompiledSteps, batch: Batch) -> None:
        self.steps, self.known = steps, _options(steps.optimizer)
        with _put_back(steps.tensors, steps.optimizer):
            captured = capture(self._flat, *batch, missing=any(map(has_missing, batch)))
        self.run: Captured = captured.compiled(*batch)
        self._check(batch)

    @property
    def is_current(self) -> bool:
        """Whether it still does what the optimizer was told, to tensors that are still there."""
        return self.known == _options(self.steps.optimizer) and self.run.is_current

    def _flat(self, *batch: Tensor) -> list[Tensor]:
        """The step as a function of the batch alone: what is captured."""
        with torch.enable_grad():
            loss, elbo = self.steps.loss(*batch)
            gradients = torch.autograd.grad(
                loss, self.steps.tensors, allow_unused=True, materialize_grads=True
            )
        sums = torch.stack([gradient.sum() for gradient in gradients])
        is_finite = loss.isfinite() & sums.isfinite().all()
        report = torch.stack([elbo.detach().double(), is_finite.double()])
        if self.steps.adam is None:
            return [report, *gradients]
        self.steps.adam.update(self.steps.tensors, gradients, is_finite)
        return [report]

    def __call__(self, batch: Batch) -> float | None:
        """Takes the step; `None`, and nothing has moved, if a number is not finite."""
        if self.steps.adam is not None:
            self.steps.adam.follow()
        stream = torch.get_rng_state()
        report, *gradients = self.run(*batch)
        elbo, is_finite = report.tolist()
        if not is_finite:
            torch.set_rng_state(stream)
            return None
        if self.steps.adam is None:
            for tensor, gradient in zip(self.steps.tensors, gradients, strict=True):
                tensor.grad = gradient
            self.steps.optimizer.step()
        return float(elbo)

    def _check(self, batch: Batch) -> None:
        """The first step is held against the programs as they are written, on the same draws."""
        stream = torch.get_rng_state()
        with torch.no_grad():
            written = float(self.steps.loss(*batch)[1])
        torch.set_rng_state(stream)
        with _put_back(self.steps.tensors, self.steps.optimizer):
            elbo = self(batch)
        torch.set_rng_state(stream)
        if elbo is None or not abs(elbo - written) <= _AGREE * (1 + abs(written)):
            raise NotCaptured(
                f"a captured step gives an ELBO of {elbo} where the programs give {written}: they "
                "depend on something that is not a tensor"
            )


class _Adam:
    """The update of torch's Adam, on its own state, as operations without a branch."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.rates = [torch.zeros((), dtype=torch.float64) for _ in optimizer.param_groups]

    def follow(self) -> None:
        """The step sizes as the schedule has them now."""
        for rate, group in zip(self.rates, self.optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])

    @torch.no_grad()
    def update(
        self, tensors: list[Tensor], gradients: tuple[Tensor, ...], is_finite: Tensor
    ) -> None:
        """Moves the tensors, if all is finite.

        References:
            | Adam: A Method for Stochastic Optimization (Kingma & Ba, 2015)
            | https://arxiv.org/abs/1412.6980
        """
        found = dict(zip(tensors, gradients, strict=True))
        for rate, group in zip(self.rates, self.optimizer.param_groups, strict=True):
            for tensor in group["params"]:
                self._move(tensor, found[tensor], group, rate, is_finite)

    def _move(
        self, tensor: Tensor, gradient: Tensor, group: Any, rate: Tensor, is_finite: Tensor
    ) -> None:
        state = self.optimizer.state[tensor]
        (first, second), step = group["betas"], state["step"] + 1
        if group["weight_decay"]:
            gradient = gradient + group["weight_decay"] * tensor
        mean = state["exp_avg"].lerp(gradient, 1 - first)
        square = second * state["exp_avg_sq"] + (1 - second) * gradient.square()
        spread = (square / (1 - second**step)).sqrt() + group["eps"]
        moved = tensor - (rate.to(tensor) / (1 - first**step)) * mean / spread
        for old, new in (
            (tensor, moved),
            (state["exp_avg"], mean),
            (state["exp_avg_sq"], square),
            (state["step"], step),
        ):
            old.copy_(torch.where(is_finite, new.to(old.dtype), old))


def _options(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """All that an optimizer was told, but for the step sizes."""
    left_out = ("params", "lr", "initial_lr")
    return [
        {name: value for name, value in group.items() if name not in left_out}
        for group in optimizer.param_groups
    ]


@contextmanager
def _put_back(tensors: list[Tensor], optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """What a trial step moves is put back: tensors, the optimizer's state, the random stream."""
    states = [value for state in optimizer.state.values() for value in state.values()]
    moved = [*tensors, *(value for value in states if isinstance(value, Tensor))]
    before, stream = [tensor.detach().clone() for tensor in moved], torch.get_rng_state()
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(moved, before, strict=True):
                tensor.copy_(value)
        torch.set_rng_state(stream)
        optimizer.zero_grad()
