r"""Training steps that are compiled: programs, loss, gradient and check as one list of operations.

A step runs two Pyro programs and differentiates them. That is captured once for a batch of given
shapes (see `capturing`) and replayed from then on, with the draws that the programs would have
made. The check for numbers that are not finite is a part of it: such a step moves nothing, and is
taken once more eagerly, to name the culprit.

The optimizer's state is its own, so that steps of either kind can follow each other. Adam moves all
tensors in one fused operation of torch's; another optimizer takes its own step.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._types import Batch
from ..programs import Counted, has_missing
from .capturing import Captured, NotCaptured
from .graphs import Cost, compiled

Loss = Callable[..., tuple[Tensor, Tensor]]
"""From a batch to what is minimized and the ELBO, both in nats per datum."""


class CompiledSteps:
    """Training steps that run compiled where that pays, or where it was asked for.

    Arguments:
        loss: What a step minimizes, and the ELBO; must not read a number out of a tensor.
        tensors: What it moves.
        optimizer: How.
        compile: True to compile at once, False never, None where it pays.
    """

    def __init__(
        self,
        loss: Loss,
        tensors: list[Tensor],
        optimizer: torch.optim.Optimizer,
        *,
        compile: bool | None,
    ) -> None:
        self.loss, self.tensors, self.optimizer = loss, tensors, optimizer
        self.is_asked = bool(compile)
        self.adam = _plain_adam(optimizer, tensors)
        self.reason = "" if compile is not False else "compile=False"
        self.graphs: dict[Any, Captured] = {}
        self.cost: Cost | None = None  # of an eager step
        self.expected: set[Any] = set()  # graphs that the run had before it was interrupted

    @property
    def verdict(self) -> str:
        """Whether steps were compiled, or why not."""
        if self.graphs:
            return "compiled"
        return f"eager: {self.reason or 'compiling would not have paid'}"

    def state(self) -> dict[str, Any]:
        """What decides which steps to come are compiled."""
        return {"cost": self.cost, "reason": self.reason, "graphs": [*self.graphs, *self.expected]}

    def resume(self, cost: Any, reason: str, graphs: list[Any]) -> None:
        """Compiles what the run had compiled when it gave its :meth:`state`."""
        self.cost = None if cost is None else Cost(*cost)
        self.reason, self.expected = reason, set(graphs)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Around an eager step, forward and backward; the operations of the first are counted."""
        if self.reason or self.cost is not None:
            yield
            return
        with Counted() as count:
            yield
        self.cost = Cost.of(count, 1)

    def step(self, batch: Batch, steps_left: int) -> float | None:
        """A compiled step; its ELBO, or `None` if it has to be taken eagerly.

        Arguments:
            batch: The tensors of the batch.
            steps_left: How many steps with a batch of these shapes are still to come.
        """
        found = self.gradients(batch, steps_left)
        if found is None:
            return None
        self._descend(found[1])
        return found[0]

    def gradients(self, batch: Batch, steps_left: int) -> tuple[float, list[Tensor]] | None:
        """The ELBO and the gradients of a compiled step, which moves nothing; else as `step`."""
        graph = self._graph(batch, steps_left)
        if graph is None:
            return None
        stream = torch.get_rng_state()
        report, *gradients = graph(*batch)
        elbo, is_finite = report.tolist()
        if not is_finite:
            torch.set_rng_state(stream)
            return None
        return float(elbo), gradients

    def _graph(self, batch: Batch, steps_left: int) -> Captured | None:
        """The graph for batches like this one, if there is one or it pays to make one."""
        key = tuple((tuple(part.shape), str(part.dtype)) for part in batch)
        graph = self.graphs.get(key)
        if graph is not None and graph.is_current:
            return graph
        if graph is not None:  # something was moved: the next step is eager
            del self.graphs[key]
            return None
        if self.reason or not (key in self.expected or self._pays(steps_left)):
            return None
        try:
            missing = any(map(has_missing, batch))
            self.graphs[key] = compiled(self._flat, batch, missing=missing, check=True)
        except NotCaptured as error:
            self.reason = str(error)
            if self.is_asked:
                warnings.warn(
                    f"training runs eagerly, not compiled: {error}", UserWarning, stacklevel=2
                )
            return None
        return self.graphs[key]

    def _pays(self, steps_left: int) -> bool:
        if self.cost is None:  # the first step, which makes the state of the optimizer, is eager
            return False
        saved = self.cost.seconds_saved(1, steps_left)
        return self.is_asked or saved > self.cost.seconds_to_compile

    def _flat(self, *batch: Tensor) -> list[Tensor]:
        """The report and the gradients as a function of the batch: what is captured."""
        with torch.enable_grad():
            loss, elbo = self.loss(*batch)
            gradients = torch.autograd.grad(
                loss, self.tensors, allow_unused=True, materialize_grads=True
            )
        sums = torch.stack([gradient.sum() for gradient in gradients])
        is_finite = loss.isfinite() & sums.isfinite().all()
        return [torch.stack([elbo.detach().double(), is_finite.double()]), *gradients]

    def _descend(self, gradients: list[Tensor]) -> None:
        """The optimizer's part of a step."""
        if self.adam is not None:
            self.adam.step(gradients)
            return
        for tensor, gradient in zip(self.tensors, gradients, strict=True):
            tensor.grad = gradient
        self.optimizer.step()


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
    # There is no public way to ask whether somebody, such as who clips gradients, hooked in.
    hooks = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks  # noqa: SLF001
    plain = (
        type(optimizer) is torch.optim.Adam
        and not hooks
        and all(
            not group["amsgrad"]
            and not group.get("decoupled_weight_decay", False)
            and not isinstance(group["lr"], Tensor)
            for group in optimizer.param_groups
        )
    )
    return _Adam(optimizer, tensors) if plain else None
