r"""Compiled training steps: programs, loss, gradient and checks in one graph.

A step runs two Pyro programs and differentiates them. These operations are captured once for a
batch of given shapes (see `capturing`), and replayed from then on, with the draws that the programs
would have made. The graph also checks whether all numbers are finite. If they are not, the step
changes nothing, and is repeated eagerly to find the cause.

Compiled steps update the optimizer's own state, so that compiled and eager steps can alternate.
With Adam, all tensors are updated in one fused torch operation; for other optimizers
`optimizer.step()` is called.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor, nn

from .._types import Batch
from .._warnings import warn
from ..programs.missing import has_missing
from ..programs.running import Counted
from ..randomness import restore_streams, streams_of_torch
from .capturing import Captured, NotCaptured
from .graphs import Cost, compiled, on_trial, require_agreement
from .loops import Loop, Settings, Taken, Values, is_small, looped

_LOOP = "loop"
_Shapes = tuple[tuple[torch.Size, torch.dtype], ...]
Loss = Callable[..., tuple[Tensor, Tensor, Tensor]]
"""Maps a batch to the scalar to differentiate, and to ELBO and loss in nats per datum."""


class CompiledSteps:
    """Training steps that are compiled if that saves time, or on request.

    Arguments:
        loss: Maps a batch to three tensors: the scalar to differentiate, and ELBO and loss in nats
            per datum. The function must not read a number out of a tensor.
        tensors: The tensors to update.
        optimizer: The optimizer.
        modules: The modules that the loss calls and may change.
        compile: True to compile at once, False to never compile, `None` to compile if that saves
            time.
    """

    def __init__(
        self,
        loss: Loss,
        tensors: list[Tensor],
        optimizer: torch.optim.Optimizer,
        *,
        modules: Sequence[nn.Module] = (),
        compile: bool | None,
    ) -> None:
        self.loss, self.tensors, self.optimizer, self.modules = loss, tensors, optimizer, modules
        self.is_requested = bool(compile)
        self._adam = _plain_adam(optimizer, tensors)
        self.reason = "" if compile is not False else "compile=False"
        self.graphs: dict[_Shapes, Captured] = {}  # by shapes and dtypes of the batch
        self.cost: Cost | None = None  # of an eager step
        self.is_due_eagerly = False  # whether the next step is eager
        self.is_suspect = False  # whether the next graph is compared with the programs
        self.numbers: list[float | int | str] = []  # in the attributes of the modules
        self.times_suspected = 0  # how often they may have changed
        self.loops: dict[int, Loop] = {}  # by rows per batch
        self.loop_refused = ""  # why there is no loop; empty if none was refused
        self.expected: set[object] = set()  # keys of the graphs of the run that is resumed

    @property
    def adam(self) -> "_Adam | None":
        """The fused update; `None` if the optimizer is not torch's Adam, or has hooks."""
        # Hooks, such as one that clips gradients, cannot be found through torch's public interface.
        hooks = (
            self.optimizer._optimizer_step_pre_hooks  # noqa: SLF001
            or self.optimizer._optimizer_step_post_hooks  # noqa: SLF001
        )
        return None if hooks else self._adam

    @property
    def verdict(self) -> str:
        """Text that says whether steps were compiled, or why not."""
        if self.graphs or self.loops or (self.expected and not self.reason):
            return "compiled"
        return f"eager: {self.reason or 'compiling would not have saved time'}"

    def state(self) -> dict[str, Any]:
        """The state that decides which later steps are compiled."""
        loops = [(_LOOP, size) for size in self.loops]
        graphs = [*map(_storable, self.graphs), *loops, *self.expected]
        return {"cost": self.cost, "reason": self.reason, "graphs": graphs}

    def resume(self, cost: Any, reason: str, graphs: list[Any]) -> None:
        """Restores a :meth:`state`; steps that were compiled before are compiled again."""
        self.cost = None if cost is None else Cost(*cost)
        self.reason, self.expected = reason, set(graphs)

    @property
    def num_bytes(self) -> float | None:
        """Number of bytes that a step's operations produce; `None` before a step was counted."""
        return None if self.cost is None else self.cost.bytes_per_row

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Counts the operations of the eager step in the block, if no step was counted before."""
        if self.cost is not None:
            yield
            return
        with Counted() as count:
            yield
        self.cost = Cost.of(count, 1)

    def step(self, batch: Batch, steps_left: int) -> Values | None:
        """Takes a compiled step; returns ELBO and loss, or `None` if the step has to be eager.

        Arguments:
            batch: The tensors of the batch.
            steps_left: Number of remaining steps with batches of these shapes.
        """
        with torch.no_grad():
            found = self.gradients(batch, steps_left)
            if found is None:
                return None
            self.descend(found[1])
        return found[0]

    def gradients(self, batch: Batch, steps_left: int) -> tuple[Values, list[Tensor]] | None:
        """Computes ELBO, loss and gradients of a compiled step, without an update.

        The arguments are those of :meth:`step`. The result is `None` if the step has to be eager.
        """
        graph = self._graph(batch, steps_left)
        if graph is None:
            return None
        stream = streams_of_torch()
        with torch.no_grad():
            report, *gradients = graph(*batch)
        elbo, is_finite, loss = report.tolist()
        if not is_finite:
            restore_streams(stream)
            return None
        return Values(elbo, loss), gradients

    def several(self, loop: Loop, rows: Sequence[Tensor], total: Values) -> Taken | None:
        """Takes steps in one call; stops before the first step with numbers that are not finite.

        Arguments:
            loop: The loop that :meth:`loop` returned.
            rows: The rows of each step, the same number for all, for at most :data:`STEPS` steps.
            total: The sums of ELBO and loss so far.

        Returns:
            The steps taken; `None` if the numbers of the first step are not finite.
        """
        adam, stream = self.adam, streams_of_torch()
        assert adam is not None
        with torch.no_grad():
            taken = adam.several(loop, rows, total)
            if taken.steps == len(rows):
                return taken
            restore_streams(stream)
            self.is_due_eagerly = True  # an eager step finds the cause
            return adam.several(loop, rows[: taken.steps], total) if taken.steps else None

    def loop(self, data: Batch, rows: Tensor, steps_left: int) -> Loop | None:
        """Returns the loop for batches of `len(rows)` rows; compiles this loop if it is missing.

        The result is `None` if compiling this loop is impossible or saves no time, or if the next
        step has to be eager.

        Arguments:
            data: The tensors of all rows of the data set.
            rows: The rows of the next step.
            steps_left: Number of remaining steps with batches of this size.
        """
        size, adam = len(rows), self.adam
        if self.is_due_eagerly or adam is None:
            return None
        if size in self.loops:
            found = self.loops[size]
            batch = tuple(part.index_select(0, rows) for part in data if self.is_suspect)
            return found if self._is_current(batch, partial(found.elbo, rows)) else None
        is_off = self.reason or self.loop_refused
        if is_off or not ((_LOOP, size) in self.expected or self._pays(steps_left)):
            return None
        try:
            if not (adam.is_uniform and is_small(self.tensors, size)):
                raise NotCaptured("loops exist only for small models with plain Adam")
            self.loops[size] = looped(self._step, self.tensors, data, rows, self.modules)
        except NotCaptured as error:
            self.loop_refused = str(error)
            return None
        return self.loops[size]

    def _graph(self, batch: Batch, steps_left: int) -> Captured | None:
        """Returns the graph for batches of this shape; `None` if the step has to be eager."""
        key = tuple((part.shape, part.dtype) for part in batch)
        if self.is_due_eagerly:
            self.is_due_eagerly = False
            return None
        if key in self.graphs:
            found = self.graphs[key]
            return found if self._is_current(batch, lambda: found(*batch)[0][0]) else None
        if self.reason or not (_storable(key) in self.expected or self._pays(steps_left)):
            return None
        try:
            missing = any(map(has_missing, batch))
            self.graphs[key] = compiled(
                self._flat, batch, missing=missing, check=True, modules=self.modules
            )
        except NotCaptured as error:
            self._refuse(str(error))
            return None
        return self.graphs[key]

    def suspect(self) -> None:
        """Requests that the next compiled step be compared with the programs, in case they changed.

        Call this method once per epoch, if callbacks may change a number in a program. The programs
        are compared if a number in an attribute of a module has changed. Changes elsewhere, such as
        of global variables, are not seen, so the programs are also compared after 1, 2, 4, 8, ...
        epochs, not after every epoch, because a comparison can take longer than an epoch of a small
        model.
        """
        before, self.numbers = self.numbers, _numbers_in(self.modules)
        self.times_suspected += 1
        is_due = self.times_suspected.bit_count() == 1 or self.numbers != before
        self.is_suspect = (self.is_suspect or is_due) and bool(self.graphs or self.loops)

    def _is_current(self, batch: Batch, elbo: Callable[[], Tensor]) -> bool:
        """Whether a graph gives the programs' ELBO of a batch; drops all graphs if it does not.

        The two ELBOs are computed only in the first call after :meth:`suspect`.
        """
        if not self.is_suspect:
            return True
        self.is_suspect = False
        try:
            with (
                on_trial(self.modules) as again,
                torch.no_grad(),
                pyro.validation_enabled(is_validate=False),
            ):
                expected = self._step(*batch)[0][0]
                again()
                require_agreement(expected, elbo())
        except NotCaptured as error:
            self._refuse(str(error))
            self.graphs, self.loops = {}, {}
            return False
        return True

    def _refuse(self, reason: str) -> None:
        """Makes all later steps eager and notes the reason; warns if compiling was requested."""
        self.reason = reason
        if self.is_requested:
            warn(f"training runs eagerly, not compiled: {reason}")

    def forget_moved(self) -> None:
        """Drops graphs whose tensors `module.to(...)` has moved; the next step is then eager.

        Call this method before the next step if a callback may have moved tensors.
        """
        graphs = {key: graph for key, graph in self.graphs.items() if graph.is_current}
        loops = {size: loop for size, loop in self.loops.items() if loop.step.is_current}
        if len(graphs) + len(loops) < len(self.graphs) + len(self.loops):
            self.is_due_eagerly = True
        self.graphs, self.loops = graphs, loops

    def _pays(self, steps_left: int) -> bool:
        """Whether to compile now, because this saves time or was requested.

        The first step, which creates the optimizer's state and counts the cost, is eager.
        """
        return self.cost is not None and (self.is_requested or self.cost.pays(1, steps_left))

    def _step(self, *batch: Tensor) -> list[Tensor]:
        """Computes a report (ELBO, whether the loss is finite, loss) and gradients from a batch."""
        with torch.enable_grad():
            minimized, elbo, loss = self.loss(*batch)
            gradients = torch.autograd.grad(
                minimized, self.tensors, allow_unused=True, materialize_grads=True
            )
        numbers = elbo.detach(), minimized.isfinite(), loss.detach()
        return [torch.stack([number.double() for number in numbers]), *gradients]

    def _flat(self, *batch: Tensor) -> list[Tensor]:
        """The function to capture: a step that also reports whether its gradients are finite."""
        report, *gradients = self._step(*batch)
        sums = torch.stack([gradient.sum() for gradient in gradients])
        is_finite = report[1] * sums.isfinite().all()
        return [torch.stack([report[0], is_finite, report[2]]), *gradients]

    def descend(self, gradients: Sequence[Tensor | None]) -> None:
        """Updates the tensors with the optimizer, given their gradients."""
        known = [gradient for gradient in gradients if gradient is not None]
        # The optimizer's own first step makes the state that the fused operation updates.
        has_state = len(self.optimizer.state) == len(known) == len(self.tensors) > 0
        if (adam := self.adam) is not None and has_state:
            adam.step(known)
            return
        for tensor, gradient in zip(self.tensors, gradients, strict=True):
            tensor.grad = gradient
        self.optimizer.step()


def _numbers_in(modules: Sequence[nn.Module]) -> list[float | int | str]:
    """Returns the numbers, flags and strings that are attributes of modules and their parts."""
    parts = (part for module in modules for part in module.modules())
    return [v for part in parts for v in vars(part).values() if isinstance(v, float | int | str)]


def _storable(key: _Shapes) -> tuple[tuple[tuple[int, ...], str], ...]:
    """Returns shapes and dtypes of a batch in the form that a checkpoint stores."""
    return tuple((tuple(shape), str(dtype)) for shape, dtype in key)


class _Group(NamedTuple):
    """Tensors with the same optimizer settings, and their state in the optimizer."""

    options: dict[str, Any]
    places: list[int]  # positions among all tensors
    tensors: list[Tensor]
    means: list[Tensor]
    squares: list[Tensor]
    taken: Tensor  # all step counts in one tensor; the optimizer's state holds views of it
    steps: list[Tensor]


class _Adam:
    """The update of torch's Adam, made by torch's fused operation on the optimizer's state.

    For a small model, the bookkeeping of `optimizer.step()` takes longer than the rest of a step.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, tensors: list[Tensor]) -> None:
        self.optimizer, self.tensors = optimizer, tensors

    @cached_property
    def groups(self) -> list[_Group]:
        """The parameter groups with their state, which exists after the optimizer's first step."""
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

    def step(self, gradients: list[Tensor]) -> None:
        """Updates the tensors; call it under `torch.no_grad()`.

        References:
            | Adam: A Method for Stochastic Optimization (Kingma & Ba, 2015)
            | https://arxiv.org/abs/1412.6980
        """
        for group in self.groups:
            options = group.options
            group.taken.add_(1)  # adding to each count separately takes longer than the update
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

    @property
    def is_uniform(self) -> bool:
        """Whether all tensors have the same settings, and have been updated equally often."""
        return (
            len(self.groups) == 1
            and self.groups[0].places == list(range(len(self.tensors)))
            and not self.groups[0].options["maximize"]
            and len(set(self.groups[0].taken.tolist())) == 1
        )

    def several(self, loop: Loop, rows: Sequence[Tensor], total: Values) -> Taken:
        """Takes all given steps in the compiled loop, or none if one gives a non-finite number."""
        (group,) = self.groups
        options = group.options
        settings = Settings(
            options["lr"], options["betas"], options["eps"], options["weight_decay"],
            int(group.taken[0]),
        )  # fmt: skip
        taken = loop(rows, total, settings, group.tensors, group.means, group.squares)
        if taken.steps == len(rows):
            group.taken.add_(len(rows))
        return taken


def _plain_adam(optimizer: torch.optim.Optimizer, tensors: list[Tensor]) -> _Adam | None:
    """Returns the fused update for torch's Adam with supported options; `None` otherwise."""
    plain = (
        type(optimizer) is torch.optim.Adam
        # For other devices, step counts may be on the CPU, which the fused operation refuses.
        and all(tensor.device.type == "cpu" for tensor in tensors)
        and all(
            not group["amsgrad"]
            and not group.get("decoupled_weight_decay", False)
            and not isinstance(group["lr"], Tensor)
            for group in optimizer.param_groups
        )
    )
    return _Adam(optimizer, tensors) if plain else None
