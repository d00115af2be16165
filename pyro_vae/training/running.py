"""A run of training, epoch by epoch: validation, callbacks, the best state, and checkpoints.

Ctrl-C and SIGTERM take effect only after a complete step.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from .. import distributed, evidence
from .._types import Batch, Estimate, ProgramLike
from ..compiling import STEPS, Values
from ..compiling.graphs import counts_of, resume_counts
from ..data import Augmented, RowReader
from ..guides import FitRows
from ..guides.entry import for_new_rows, maps_of
from ..programs.running import threads_for
from ..progress import progress_bar
from ..randomness import undisturbed
from .callbacks import Callback, Journal, Run, logger
from .checkpoints import Keeper, description_of, digest_of, in_words
from .optimizers import Scheduler, constant
from .plans import Plan
from .probing import gain_left
from .results import Fit, History, gain_of, verdict_of
from .rows import read_ahead
from .sharding import Part, Shards
from .steps import Begun, Signals, Steps
from .tensors import State

_VALIDATION_DRAWS = 10  # per datum: enough that differences between data dominate the error
_EVENTS = ("on_start", "on_step", "on_epoch", "on_end")


class _Epoch(NamedTuple):
    """The numbers of one epoch: a row of the history."""

    epoch: int
    elbo: float
    loss: float
    validation_elbo: float
    validation_error: float
    kl_weight: float
    learning_rate: float
    seconds: float


@dataclass
class Interrupts:
    """Records signals that arrive during training.

    Arguments:
        received: The first signal; `None` if there was none.
    """

    received: int | None = None
    _handlers: dict[int, Any] = field(default_factory=dict)  # by signal, to be restored

    @contextmanager
    def deferred(self, *, also_sigterm: bool) -> Iterator[None]:
        """Records the first Ctrl-C inside the block; a second one raises `KeyboardInterrupt`.

        This works only in the main thread, which receives signals, and only if Python's default
        handlers are in place.

        Arguments:
            also_sigterm: Whether SIGTERM is recorded too, and sent again at the end of the block.
        """
        if threading.current_thread() is threading.main_thread():
            self._replace(signal.SIGINT, signal.default_int_handler)
            if also_sigterm:
                self._replace(signal.SIGTERM, signal.SIG_DFL)
        try:
            yield
        finally:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
            self._handlers.clear()
            if self.received == signal.SIGTERM:
                signal.raise_signal(signal.SIGTERM)

    def _replace(self, number: int, default: object) -> None:
        """Replaces the handler of a signal by `_record`, if the handler is Python's default."""
        if signal.getsignal(number) is default:
            self._handlers[number] = signal.signal(number, self._record)

    def _record(self, number: int, frame: object) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number


class Training:
    """A run of training, with the attributes of :class:`pyro_vae.training.callbacks.Run`."""

    def __init__(
        self,
        model: ProgramLike,
        guide: ProgramLike,
        reader: RowReader,
        augmented: Augmented | None,
        held_out: Batch | None,
        plan: Plan,
        shards: Shards,
    ) -> None:
        self.model, self.guide, self.plan, self.shards = model, guide, plan, shards
        self.num_epochs, self.warmup, self.elbo = plan.epochs, plan.warmup, float("nan")
        self.stepping = Steps(model, guide, reader, augmented, plan, shards)
        self.optimizer, self.tensors = self.stepping.optimizer, self.stepping.tensors
        self.first_rate = float(self.optimizer.param_groups[0]["lr"])
        self.maps = maps_of(guide)
        self.scheduler = Scheduler(plan.scheduler or constant, self.optimizer)
        self.held_out, self.has_validation = held_out, held_out is not None
        self.epochs: list[_Epoch] = []
        self.best: tuple[float, int, State | None] = (-np.inf, 0, None)
        self.begun: Begun | None = None
        self.stopped, self._stop_requested = "", False
        self.seconds_before = 0.0  # duration of the run before it was resumed
        self._is_whole = True  # false during a step
        self._is_due = False  # whether to write a checkpoint
        self.threads, self.interrupts = torch.get_num_threads(), Interrupts()
        callbacks = (*plan.callbacks, Journal())
        self.handlers = {event: _overridden(event, callbacks) for event in _EVENTS}
        package = __name__.partition(".")[0]  # only users' callbacks may change a program
        self._has_own_callbacks = any(
            type(callback).__module__.partition(".")[0] != package for callback in callbacks
        )
        self._has_step_callbacks = False  # in any process
        self.keeper = self._keeper(reader, augmented, held_out)

    # Seen by callbacks

    @property
    def steps(self) -> int:
        """Number of steps taken so far."""
        return self.stepping.taken

    @property
    def history(self) -> History:
        """The record of the epochs so far."""
        columns = list(zip(*self.epochs, strict=True)) or [()] * len(_Epoch._fields)
        return History(*(np.array(column) for column in columns))

    @property
    def epoch(self) -> int:
        """Number of epochs completed so far."""
        return len(self.epochs)

    @property
    def learning_rates(self) -> tuple[float, ...]:
        """Current learning rates of the optimizer's parameter groups."""
        return tuple(float(group["lr"]) for group in self.optimizer.param_groups)

    def stop(self) -> None:
        """Ends training after this step or epoch."""
        self._stop_requested = True

    def settle(self) -> None:
        """Ends training; with the default schedule, only after the step size has decayed."""
        length = self.scheduler.fall(len(self.epochs))
        if length is None:
            self._stop_requested = True
        else:
            self.num_epochs = length

    # The run

    def run(self) -> Fit:
        """Trains epoch by epoch, until the last epoch or until training is stopped."""
        self._resume()
        self.start = time.perf_counter()
        with ExitStack() as stack:
            stack.enter_context(self.interrupts.deferred(also_sigterm=self.keeper is not None))
            stack.callback(self._call, "on_end")
            for map in self.maps:
                stack.callback(map.scale_steps, 1.0)  # the user may go on in a loop of their own
            stack.enter_context(self.stepping.watched())
            if not self.stopped:
                self._keep()  # a state that cannot be saved is refused before the first step
            self._call("on_start")
            try:
                self._train()
            except KeyboardInterrupt:
                if distributed.size() > 1:
                    raise
                self.stopped = "interrupted"
            except BaseException:
                # With several processes, another process may be at another step.
                if self._is_whole and distributed.size() == 1:
                    self._keep()
                raise
            if self._is_whole:
                self._keep()
        return self._finish()

    def _train(self) -> None:
        bar = progress_bar(
            show=self.plan.progress if distributed.rank() == 0 else False,
            total=self.num_epochs,
            desc="fit",
            unit=" epoch",
            initial=len(self.epochs),
        )
        self._follow_schedule()
        # An `on_step` callback may request a stop after the signals of a step were sent.
        (self._has_step_callbacks,) = distributed.anywhere(bool(self.handlers["on_step"]))
        with closing(bar):
            while not self.stopped:
                self._epoch()
                bar.total = self.num_epochs  # lower once training has converged
                bar.update(len(self.epochs) - bar.n)
                if self.epochs:
                    now = f"ELBO {self.epochs[-1].elbo:.2f} nats per datum"
                    held_out = f", validation {self.epochs[-1].validation_elbo:.2f}"
                    bar.set_postfix_str(now + held_out * self.has_validation)

    def _epoch(self) -> None:
        """Takes the remaining steps of an epoch, then validates and records the epoch."""
        epoch, begun = len(self.epochs), self.begun or Begun(self.shards.order)
        steps = self._shuffled(begun)
        self.stepping.compiled.forget_moved()
        if self._has_own_callbacks:
            self.stepping.compiled.suspect()
        is_known = self.stepping.compiled.num_bytes is not None  # known after the first step
        stops = [len(steps)] if is_known else [begun.done + 1, len(steps)]
        rows = (part.rows for parts in steps[begun.done :] for part in parts)
        with closing(read_ahead(self.stepping.reader, rows)) as read, self.plan.rounded():
            batches = map(self.stepping.augment, read)
            for stop in stops:
                with threads_for(self.stepping.compiled.num_bytes):
                    while begun.done < stop:
                        begun = self._step(begun, steps, batches)
                        if self._has_to_stop(self.stepping.all_signals):
                            return
                        if self._is_due:
                            self._keep()
        self._is_whole = False
        self.stepping.schedule(epoch + 1 - 1 / len(steps))  # the position of the last step
        self._close_epoch(begun.total)
        self._is_whole = True
        self._call("on_epoch")
        if not self._has_to_stop():
            self._note_end()

    def _note_end(self) -> None:
        """Ends training if all epochs are done."""
        if len(self.epochs) >= self.num_epochs:
            cut = self.num_epochs < self.plan.epochs
            self.stopped = "converged" if cut else "finished"

    def _step(self, begun: Begun, steps: list[list[Part]], batches: Iterator[Batch]) -> Begun:
        """Takes the next step of an epoch, or several steps in one compiled call."""
        most, epoch = 1 if self.handlers["on_step"] else STEPS, len(self.epochs)
        self._is_whole = False
        taken = self.stepping.take(epoch, begun, steps, batches, most, self._signals)
        self.begun = Begun(begun.order, begun.done + taken.steps, taken.total)
        self._is_whole = True
        self.elbo = taken.elbo
        if self._call("on_step"):
            self.stepping.compiled.forget_moved()
        return self.begun

    def _shuffled(self, begun: Begun) -> list[list[Part]]:
        """Returns the rows of every step of an epoch; an epoch that is resumed keeps its order."""
        size, fewest = self.stepping.batch_size, self.stepping.fewest
        if begun.done == 0:
            return self.shards.epoch(size, fewest=fewest)
        return self.shards.epoch_from(begun.order, size, fewest=fewest)

    def _signals(self) -> Signals:
        """Returns the signals of this process."""
        due = self.keeper is not None and self.keeper.is_due
        return Signals(self.interrupts.received is not None, self._stop_requested, due)

    def _has_to_stop(self, signals: Signals | None = None) -> bool:
        """Whether training must stop in all processes; also notes whether a checkpoint is due.

        Arguments:
            signals: The signals of all processes, if they are known already.
        """
        if signals is None or self._has_step_callbacks:
            signals = Signals(*distributed.anywhere(*self._signals()))
        self._is_due = signals.due
        if signals.interrupted or signals.stop_requested:
            self.stopped = "interrupted" if signals.interrupted else "early"
        return bool(self.stopped)

    def _close_epoch(self, total: Values) -> None:
        """Validates and records an epoch, and advances the schedule."""
        epoch, rate = len(self.epochs), float(self.optimizer.param_groups[0]["lr"])
        elbo, loss = (part / self.stepping.num_data for part in total)
        held_out = self._validate(epoch)
        value, error = float(held_out.value), float(held_out.error)
        self.scheduler.step(value if self.has_validation else elbo)
        self._follow_schedule()
        seconds = self.seconds_before + time.perf_counter() - self.start
        weight = self.stepping.kl_weight
        self.epochs.append(_Epoch(epoch + 1, elbo, loss, value, error, weight, rate, seconds))
        self.begun = None

    def _follow_schedule(self) -> None:
        """Multiplies the step sizes of per-row parameters by the schedule's current factor."""
        rate = float(self.optimizer.param_groups[0]["lr"])
        for map in self.maps if self.first_rate > 0 else ():
            map.scale_steps(rate / self.first_rate)

    def _call(self, event: str) -> bool:
        """Calls the callbacks that handle an event; returns whether there are any."""
        handlers, inside = self.handlers[event], torch.get_num_threads()
        if not handlers:
            return False
        if inside != self.threads:  # callbacks run on the caller's number of threads
            torch.set_num_threads(self.threads)
        try:
            with undisturbed():  # training does not depend on the draws of callbacks
                for handle in handlers:
                    handle(self)
        finally:
            if torch.get_num_threads() != inside:
                torch.set_num_threads(inside)
        return True

    def _finish(self) -> Fit:
        """Restores the best state, and returns the result of training."""
        _, best_epoch, state = self.best
        left = self._left()
        if state is not None:
            state.restore()
        kept = best_epoch if state is not None else len(self.epochs)
        return Fit(
            self.history, self.stopped, kept, self.plan.seed, tuple(self.tensors),
            self.stepping.compiled.verdict, rounding=self.stepping.rounding(),
            advice=self.stepping.advice(), left=left,
        )  # fmt: skip

    def _left(self) -> Estimate | None:
        """Returns the gain that L-BFGS finds after training; `None` if it is not measured.

        It is not measured after an interruption, after too few epochs, or if the loss curve already
        shows that training has not converged.
        """
        gain = gain_of(self.history)
        if self.stopped == "interrupted" or gain is None or verdict_of(gain) is False:
            return None
        try:
            return gain_left(self.stepping, self.plan.seed)
        except KeyboardInterrupt:
            return None

    def _validate(self, epoch: int) -> Estimate:
        """Computes the validation ELBO; keeps the state if this ELBO is the best since warm-up."""
        if self.held_out is None:
            nothing = torch.tensor(torch.nan, device="cpu")
            return Estimate(nothing, nothing)
        batch, seed = self.held_out, self.plan.seed  # the same draws in every epoch
        rough = FitRows(tolerance=0.01)  # rows are fitted anew every epoch
        try:
            with distributed.fail_together():
                guide = for_new_rows(self.guide, batch, rough, seed=seed, progress=False)
                bound = evidence.elbo(
                    self.model, guide, batch, _VALIDATION_DRAWS, seed=seed, progress=False
                )
            result = distributed.gather(bound).mean
        except FloatingPointError as error:
            _, best_epoch, state = self.best
            if state is not None:
                state.restore()
            kept = (
                "the last values"
                if state is None
                else f"the values of epoch {best_epoch}, the best"
            )
            raise FloatingPointError(
                f"evaluation of the validation data after epoch {epoch + 1} failed: {error}. The "
                f"modules hold {kept}: train again with a smaller step size"
            ) from error
        if epoch + 1 > self.warmup and float(result.value) > self.best[0]:
            self.best = (float(result.value), epoch + 1, self._state())
        return result

    def _state(self) -> State:
        return State.of(self.model, self.guide, self.tensors.values())

    # Checkpoints

    def _keeper(
        self, reader: RowReader, augmented: Augmented | None, held_out: Batch | None
    ) -> Keeper | None:
        if self.plan.checkpoint is None:
            return None
        identity = self.plan.identity() | {
            "model": description_of(self.model),
            "guide": description_of(self.guide),
            "optimizer": in_words(self.optimizer),
            "scheduler": in_words(self.scheduler.torch.state_dict()),
            "data": digest_of(reader),
            "validation": digest_of(held_out),
            "augment": in_words(None if augmented is None else augmented.augment),
        }
        return Keeper(self.plan.checkpoint, identity)

    def _keep(self) -> None:
        """Writes a checkpoint, if `fit` was called with one."""
        if self.keeper is None:
            return
        value, epoch, best = self.best
        self.keeper.write(
            {
                "epochs": [tuple(row) for row in self.epochs],
                "begun": None if self.begun is None else tuple(self.begun),
                "random": self.shards.streams,
                "steps": self.stepping.taken,
                "num_epochs": self.num_epochs,
                "stopped": "" if self.stopped == "interrupted" else self.stopped,
                "seconds": self.seconds_before + time.perf_counter() - self.start,
                "now": self._state().values(),
                "best": (value, epoch, None if best is None else best.values()),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.torch.state_dict(),
                "compiled": self.stepping.compiled.state(),
                "counts": counts_of(self.model),
            }
        )
        logger.info("checkpoint of %d epochs, %d steps", len(self.epochs), self.stepping.taken)

    def _resume(self) -> None:
        """Resumes from the checkpoint, if there is one."""
        saved: dict[str, Any] | None = None if self.keeper is None else self.keeper.read()
        if saved is None:
            return
        now, (value, epoch, best) = self._state(), saved["best"]
        now.with_values(saved["now"]).restore()
        self.best = (value, epoch, None if best is None else now.with_values(best))
        self.epochs = [_Epoch(*row) for row in saved["epochs"]]
        self.begun = None
        if saved["begun"] is not None:
            order, done, total = saved["begun"]
            self.begun = Begun(order, done, Values(*total))
        self.stepping.taken, self.stopped = saved["steps"], saved["stopped"]
        self.num_epochs = saved["num_epochs"]
        if not self.stopped:
            self._note_end()  # the run was interrupted right after its last epoch
        self.seconds_before = saved["seconds"]
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scheduler.torch.load_state_dict(saved["scheduler"])
        self.stepping.compiled.resume(**saved["compiled"])
        resume_counts(self.model, saved["counts"])
        self.shards.set_streams(saved["random"])
        logger.info("resumed after %d epochs, %d steps", len(self.epochs), self.stepping.taken)


def _overridden(event: str, callbacks: Sequence[Callback]) -> list[Callable[[Run], None]]:
    """Returns the callbacks' methods for an event, except those inherited from `Callback`."""
    return [
        getattr(callback, event)
        for callback in callbacks
        if getattr(type(callback), event) is not getattr(Callback, event)
    ]
