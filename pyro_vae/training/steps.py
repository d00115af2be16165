"""One step of training: the loss of a batch, its gradient, and the optimizer's update.

The loss of the whole data set, in nats per datum, is estimated from a batch. All leaves of the
loss's autograd graph are trained, whether a module registered them or not. If the loss or a
gradient is not finite, nothing is changed, and the error names the parameter, or the site and rows.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from torch import Tensor

from .. import distributed, stats
from .._types import Batch, Estimate, ProgramLike
from .._warnings import warn
from ..compiling import CompiledSteps, Taken, Values
from ..data import Augmented, RowReader
from ..formatting import first_few
from ..guides.entry import (
    is_tied_to_rows,
    model_for,
    prepare_training,
    program_of,
    require_sites,
    row_buffers,
    updated_by_maps,
)
from ..objectives import Objective, Progress
from ..programs import evaluating, minibatch
from ..programs.mixing import require_separate_rows
from ..programs.modes import capturing, modules_of
from ..programs.traces import leaves_of, own_messages, run
from ..randomness import forked, restore_streams, streams_of_torch, undisturbed
from .optimizers import NoteScales, Unscaled, made_optimizer, objective_of
from .plans import Plan
from .rows import InMemory, head
from .scales import Scales
from .sharding import Part, Shards, norms_of
from .tensors import State, add_to_gradients, named, require_finite

_SMALLER = "Use a smaller step size, or check these rows"
_ROUNDING_DRAWS = 10  # draws per datum for the ELBO at full and at low precision


class Begun(NamedTuple):
    """An unfinished epoch.

    Arguments:
        order: State of the random streams before the rows of the epoch were shuffled.
        done: Number of steps taken in the epoch.
        total: Sums of ELBO and loss over the rows of these steps.
    """

    order: list[Any]
    done: int = 0
    total: Values = Values()


class Signals(NamedTuple):
    """Three flags: a signal arrived, a callback requested a stop, a checkpoint is due."""

    interrupted: bool
    stop_requested: bool
    due: bool


class Steps:
    """The steps of a run, with the trained tensors, the objective and the optimizer."""

    def __init__(
        self,
        model: ProgramLike,
        guide: ProgramLike,
        reader: RowReader,
        augmented: Augmented | None,
        plan: Plan,
        shards: Shards,
    ) -> None:
        self.model, self.guide, self.reader, self.plan = model, guide, reader, plan
        self.augmented, self.shards, self.num_data = augmented, shards, shards.num_data
        few = head(reader)
        with pyro.validation_enabled(is_validate=False):  # the first step reports a nan
            self.program = program_of(model, guide, few)
        with evaluating(model, guide), torch.no_grad(), forked(plan.seed, "fit.separate rows"):
            require_separate_rows(self.program.at_start(), few)
            self.scales = Scales(model if plan.train_model else None, guide, reader)
        chosen = objective_of(plan.objective, self.program, guide, few)
        # Objectives of this package have a schedule, and sum out discrete sites themselves.
        own = isinstance(chosen, Objective)
        self.scheduled = chosen if own else None
        self.objective = chosen.at(0.0) if own else chosen
        self.enumerated = model if own else model_for(self.program, guide, few)
        self.batch_size = min(plan.batch_size, self.num_data)
        self.fewest = 2 if norms_of(model, guide) else 1  # smallest number of rows per step
        self.needs_all_rows = isinstance(reader, InMemory) and prepare_training(
            self.program, guide, reader.batch, self.batch_size // shards.count
        )
        require_sites(self.program, guide, reader.batch if isinstance(reader, InMemory) else few)
        self.tensors = self._find_tensors()
        for role, (trained, untrained) in self._parameters().items():
            if untrained and not trained:  # some untrained parameters may be for another guide
                warn(
                    f"the loss depends on no parameter of the {role} ({first_few(untrained, 1)}): "
                    "remove any detach() or no_grad() between the parameters and the loss, or call "
                    "requires_grad_(False) on parameters that are not to be trained"
                )
        # Even if only the rows of a table are trained, the schedule needs an optimizer.
        nothing = [torch.zeros(0, requires_grad=True)]
        self.optimizer = made_optimizer(plan.optimizer, list(self.tensors.values()) or nothing)
        self.compiled = CompiledSteps(
            self.captured_loss, list(self.tensors.values()), self.optimizer,
            modules=modules_of(model) + modules_of(guide), compile=plan.compile,
        )  # fmt: skip
        if is_tied_to_rows(guide):
            self.compiled.reason = "the rows of a table are updated outside the optimizer"
        self.taken = 0
        self.all_signals: Signals | None = None  # of all processes, if sent with the last step
        _refuse_half(self.tensors)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Checks that all gradients computed in the block are finite; clears them afterwards."""
        # The check is in hooks: after backward() it would be too late, since backward() itself
        # updates the rows of a table, which depend on the gradients of these tensors.
        hooks = [
            tensor.register_hook(partial(require_finite, name))
            for name, tensor in self.tensors.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            self.forget_gradients()

    def schedule(self, epoch: float) -> None:
        """Sets the objective's schedule to the given epoch, which may be fractional."""
        if self.scheduled is not None:
            self.objective = self.scheduled.at(epoch)

    @property
    def kl_weight(self) -> float:
        """The current weight of the KL term."""
        return self.objective.kl_weight if isinstance(self.objective, Objective) else 1.0

    def take(
        self,
        epoch: int,
        begun: Begun,
        steps: list[list[Part]],
        batches: Iterator[Batch],
        most: int,
        signals: Callable[[], Signals],
    ) -> Taken:
        """Takes the next step, or several steps if there is a compiled loop.

        Arguments:
            epoch: Number of epochs done.
            begun: The epoch that is under way.
            steps: All steps of the epoch.
            batches: The batches of the remaining steps; not used for rows in memory.
            most: Largest number of steps to take.
            signals: Returns the signals of this process. With several processes, they are sent
                with the gradients; `all_signals` then holds the signals of all processes.
        """
        self.all_signals = None
        self.schedule(epoch + begun.done / len(steps))
        taken = self._several(epoch, begun, steps, most)
        if taken is None:
            parts = steps[begun.done]
            if isinstance(self.reader, InMemory):
                batches = (self.augment(self.reader.read(part.rows)) for part in parts)
            sums, rows = self._single(epoch, parts, batches, signals)
            taken = Taken(1, begun.total.plus(sums), sums.elbo / rows)
        self.taken += taken.steps
        return taken

    def _several(
        self, epoch: int, begun: Begun, steps: list[list[Part]], most: int
    ) -> Taken | None:
        """Takes steps in a compiled loop; returns `None` if there is no loop for these steps."""
        if not isinstance(self.reader, InMemory) or self.augmented is not None:
            return None
        if self.shards.count > 1 or not self._is_settled():
            return None
        done, data = begun.done, self.reader.batch
        first = steps[done][0]
        loop = self.compiled.loop(data, first.rows, self._steps_left(epoch, first))
        if loop is None:
            return None
        rows = list[Tensor]()
        for step, parts in enumerate(steps[done : done + most], start=done):
            then = epoch + step / len(steps)
            if parts[0].rows.numel() != loop.size or not self._is_settled(then):
                break
            rows.append(parts[0].rows)
        return self.compiled.several(loop, rows, begun.total)

    def _single(
        self,
        epoch: int,
        parts: list[Part],
        batches: Iterator[Batch],
        signals: Callable[[], Signals],
    ) -> tuple[Values, int | float]:
        """Takes one step.

        Returns the sums of ELBO and loss over the step's rows in all processes, and the number of
        these rows.
        """
        if self.shards.count == 1:
            batch, rows = next(batches), parts[0].rows
            if self._is_settled():
                values = self.compiled.step(batch, self._steps_left(epoch, parts[0]))
                if values is not None:
                    return Values().plus(values, rows.numel()), float(rows.numel())
            batches = iter([batch])
        self.forget_gradients()
        shared = torch.zeros(6, dtype=torch.float64, device="cpu")
        with distributed.fail_together(shared, self.tensors.values()):
            sums = Values()
            for part in parts:
                sums = sums.plus(self._backward(epoch, part, batches), len(part.rows))
            count = sum(part.rows.numel() for part in parts)
            shared[:] = shared.new_tensor([*sums, count, *signals()])
        elbo, loss, total, *flags = shared.tolist()
        self.all_signals = Signals(*map(bool, flags))
        with self._naming(epoch, parts):
            self._move()
        return Values(elbo, loss), total

    @property
    def is_repeatable(self) -> bool:
        """Whether the same parameters, rows and draws always give the same loss.

        This requires a single process and shard, data that are not augmented, and a guide without
        parameters per row.
        """
        alone = distributed.size() == 1 and self.shards.count == 1
        return alone and self.augmented is None and not is_tied_to_rows(self.guide)

    def augment(self, batch: Batch) -> Batch:
        """Returns the batch, transformed if the data are augmented."""
        return batch if self.augmented is None else self.augmented.change(batch)

    def _backward(self, epoch: int, part: Part, batches: Iterator[Batch]) -> Values:
        """Adds the gradient for one shard's rows to the tensors' `grad`; returns ELBO and loss."""
        rows = part.rows
        with part.shard.used():
            batch = next(batches)
            if self.shards.count > 1 and self._is_settled():
                found = self.compiled.gradients(batch, self._steps_left(epoch, part))
                if found is not None:
                    add_to_gradients(self.tensors.values(), found[1])
                    return found[0]
            with (
                self.compiled.counted(),
                minibatch(rows, self.num_data, plate=self.program.plate),
            ):
                progress = self._loss(batch, epoch, part)
                # A part is weighted by its number of rows, so every datum has the same weight.
                with self._naming(epoch, [part]):
                    (progress.loss * (len(rows) / self.batch_size)).backward()
        return Values(progress.elbo.item(), progress.unscaled.item())

    @contextmanager
    def _naming(self, epoch: int, parts: list[Part]) -> Iterator[None]:
        """Adds the step and its rows to the message of an error about a non-finite number."""
        try:
            yield
        except FloatingPointError as error:
            raise FloatingPointError(
                f"{error}, at {self._where(epoch, parts)}; the parameters are as they were before "
                f"this step. {self.scales.advice() or _SMALLER}"
            ) from error

    def _where(self, epoch: int, parts: list[Part]) -> str:
        rows = torch.cat([part.rows for part in parts] or [torch.arange(0, device="cpu")])
        named = first_few(map(str, rows.tolist()))
        return f"step {self.taken + 1} (epoch {epoch + 1}, rows [{named}])"

    def _is_settled(self, epoch: float | None = None) -> bool:
        """Whether the objective's schedule has reached its last value, now or at the given epoch.

        Only then can steps be compiled.
        """
        if self.scheduled is None:
            return True
        then = self.objective if epoch is None else self.scheduled.at(epoch)
        return bool(then == self.scheduled.at(self.plan.epochs))

    def _steps_left(self, epoch: int, part: Part) -> int:
        """Number of steps, from this epoch to the last, whose batches are as large as `part`."""
        size = self.batch_size * part.shard.size // self.num_data
        full = part.shard.size // size if part.rows.numel() == size else 1
        return (self.plan.epochs - epoch) * full

    def captured_loss(self, *batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Computes the scalar that a compiled step differentiates, then ELBO and loss per datum."""
        size = len(batch[0])
        # A program that reads these positions cannot be captured: meta tensors have no values.
        rows = torch.arange(size, device="meta" if capturing() else "cpu")
        progress = self.per_datum(rows, batch)
        return progress.loss * (size / self.batch_size), progress.elbo, progress.unscaled

    def per_datum(self, rows: Tensor, batch: Batch) -> Progress:
        """Estimates loss and ELBO in nats per datum from the given rows; keeps the graph."""
        with minibatch(rows, self.num_data, plate=self.program.plate):
            return self._progress(batch).of_one(self.num_data)

    def _progress(self, batch: Batch) -> Progress:
        """Estimates the loss and the ELBO of the whole data set, in nats, from a batch.

        For every objective, the ELBO has full KL weight and ignores scales in the programs.
        """
        if isinstance(self.objective, Objective):
            return self.objective.progress(self.model, self.guide, *batch)
        with NoteScales() as scales, torch.enable_grad():  # TraceEnum_ELBO needs a gradient
            loss = self.objective.differentiable_loss(self.enumerated, self.guide, *batch)
        if not scales.found:
            return Progress(loss, -loss.detach())
        self.compiled.reason = "poutine.scale in a program may change from step to step"
        with Unscaled(), torch.enable_grad():
            full = self.objective.differentiable_loss(self.enumerated, self.guide, *batch)
        return Progress(loss, -full.detach(), scales.largest or 1.0)

    def _loss(self, batch: Batch, epoch: int, part: Part) -> Progress:
        """Computes loss and ELBO in nats per datum; an error names what is not finite."""
        draws, refused = streams_of_torch(), None
        try:
            with own_messages():
                progress = self._progress(batch)
        except ValueError as error:  # a distribution refused parameters that are nan
            unknown = torch.tensor(torch.nan, device="cpu")
            progress, refused = Progress(unknown, unknown), error
        if bool(torch.isfinite(progress.loss + progress.elbo)):
            return progress.of_one(self.num_data)
        restore_streams(draws)  # to run the programs once more with the same draws
        culprit = self._culprit(batch, part.rows)
        if culprit is None and refused is not None and not self.scales.advice():
            raise refused
        raise FloatingPointError(
            f"the loss is {progress.loss.item()} at {self._where(epoch, [part])}{culprit or ''}; "
            "the parameters are as they were before this step. "
            f"{self.scales.advice() or _SMALLER}"
        ) from refused

    def _move(self) -> None:
        """Takes a step of the optimizer, and undoes the step if a new value is not finite."""
        before = [tensor.detach().clone() for tensor in self.tensors.values()]
        try:
            with torch.no_grad():
                self.compiled.descend([tensor.grad for tensor in self.tensors.values()])
            for name, tensor in self.tensors.items():
                require_finite(name, tensor, kind="new value")
        except FloatingPointError:
            for tensor, value in zip(self.tensors.values(), before, strict=True):
                tensor.data.copy_(value)
            raise

    def forget_gradients(self) -> None:
        """Removes the gradients of all trained tensors."""
        for tensor in self.tensors.values():
            tensor.grad = None

    def _culprit(self, batch: Batch, rows: Tensor) -> str | None:
        """Names a parameter or site with a nan or infinite value; `None` if there is none."""
        for name, tensor in self.tensors.items():
            if not bool(tensor.isfinite().all()):
                return f": parameter '{name}' is not finite"
        with torch.no_grad(), pyro.validation_enabled(is_validate=False):
            guide = run(self.guide, batch)
            model = run(poutine.replay(self.model, trace=guide.trace), batch)
            for role, sites in (("guide", guide.sites), ("model", model.sites)):
                for name, site in sites.items():
                    log_prob = site.log_prob_by_datum(self.program.plate_dim)
                    bad = (~log_prob.isfinite()).cpu()
                    if bool(bad.any()):  # a site that all data share has no rows
                        known = bad.shape == rows.shape
                        named = first_few(map(str, rows[bad].tolist())) if known else ""
                        return (
                            f": site '{name}' of the {role} has a log density that is not finite"
                            f"{f' for rows [{named}]' if named else ''}"
                        )
        return None

    def _find_tensors(self) -> dict[str, Tensor]:
        """Returns the tensors that training updates, by name: the leaves of the loss's graph."""
        all_rows = torch.arange(self.num_data, device="cpu")
        first = self.reader.read(all_rows) if self.needs_all_rows else head(self.reader)
        batch = self.augment(first)
        rows = torch.arange(len(batch[0]), device="cpu")
        # Running means of a BatchNorm may change, and are restored. A table of rows cannot change
        # without a gradient, so it need not be copied.
        buffers = State.of(self.model, self.guide, (), still=row_buffers(self.guide))
        with (
            minibatch(rows, self.num_data, plate=self.program.plate),
            forked(self.plan.seed, "fit.tensors"),
            pyro.validation_enabled(is_validate=False),  # the first step reports a nan
        ):
            leaves = self._leaves(batch)
        buffers.restore()
        owned = updated_by_maps(self.guide, leaves)
        free = [leaf for leaf in leaves if leaf not in owned]
        if not leaves:
            raise ValueError(
                "nothing to train: the loss depends on no tensor with requires_grad=True. Create "
                "trainable tensors with pyro.param or nn.Parameter, or call "
                "pv.log_marginal_likelihood directly if nothing is to be learned"
            )
        return named(free, self.model, self.guide)

    def _leaves(self, batch: Batch) -> list[Tensor]:
        """Returns the leaf tensors of the graph of a batch's loss."""
        try:
            loss = self.objective.differentiable_loss(self.enumerated, self.guide, *batch)
        except ValueError as error:
            if "cannot be differentiated" in str(error):  # Pyro's message for a loss without leaves
                return []
            raise
        return list(leaves_of(loss))

    def advice(self) -> str:
        """Text that names untrained parameters and a column to standardize; may be empty."""
        names = [name for _, untrained in self._parameters().values() for name in untrained]
        unused = (
            f"The loss does not depend on {first_few(names, 1)}, so training does not change "
            f"{'this parameter' if len(names) == 1 else 'these parameters'}"
        )
        return ". ".join(filter(None, [unused if names else "", self.scales.advice()]))

    def _parameters(self) -> dict[str, tuple[list[str], list[str]]]:
        """Returns the names of trained and of untrained parameters, by role: "guide" or "model".

        Untrained parameters are those on which the loss does not depend. If the model is not to be
        trained, there is no role "model".
        """
        roles = {"guide": self.guide} | ({"model": self.model} if self.plan.train_model else {})
        values = [
            (role, name, value)
            for role, program in roles.items()
            for module in modules_of(program)
            for name, value in module.named_parameters()
            if value.requires_grad and value.numel() > 0
        ]
        owned = updated_by_maps(self.guide, [value for *_, value in values])
        trained = owned.union(self.tensors.values())
        found: dict[str, tuple[list[str], list[str]]] = {role: ([], []) for role in roles}
        for role, name, value in values:
            found[role][0 if value in trained else 1].append(f"{role}.{name}")
        return found

    def rounding(self) -> Estimate | None:
        """Measures how low-precision products change the first rows' ELBO, in nats per datum."""
        if self.plan.precision is None:
            return None
        rows = torch.arange(min(self.batch_size, len(self.reader)), device="cpu")
        batch, moved = self.augment(self.reader.read(rows)), []
        still = State.of(self.model, self.guide, (), still=row_buffers(self.guide))
        with torch.no_grad():
            for _ in range(_ROUNDING_DRAWS):
                with undisturbed():  # the rounded loss has the same draws
                    full = self.captured_loss(*batch)[1]
                with self.plan.rounded():
                    moved.append(self.captured_loss(*batch)[1] - full)
        still.restore()
        return stats.mean_estimate(torch.stack(moved).double())


def _refuse_half(tensors: dict[str, Tensor]) -> None:
    """Refuses to train parameters in float16."""
    half = [name for name, tensor in tensors.items() if tensor.dtype == torch.float16]
    if half:
        raise ValueError(
            f"parameter '{half[0]}' is float16, in which optimizer steps overflow: call "
            "model.float() and guide.float(). For low-precision matrix products, pass "
            "`precision=pv.BFloat16Products()`"
        )
