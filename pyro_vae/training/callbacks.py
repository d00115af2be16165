"""Callbacks: objects that training calls. A callback shows or logs progress, or stops training.

To write a callback, subclass :class:`Callback` and define the methods that you need::

    class StopAtZero(pv.training.Callback):
        def on_epoch(self, run):
            if run.history.elbo[-1] > 0:
                run.stop()

A callback sees the :class:`Run` but does not change what is trained. So training gives the same
numbers with and without callbacks, unless a callback stops training.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, Protocol, runtime_checkable

import numpy as np

from .._annotations import COUNT, Interval
from .._types import ProgramLike, optional
from .results import PROBABLE, History, gain_of

logger = logging.getLogger("pyro_vae")


@runtime_checkable
class Run(Protocol):
    """A run of training, as callbacks see it.

    Attributes:
        model: The model being trained.
        guide: The guide being trained.
        num_epochs: Limit on the number of epochs.
        warmup: Length of the objective's schedule, in epochs.
        elbo: ELBO of the last step's batch at full KL weight, in nats per datum.
        has_validation: Whether there are validation data.
    """

    model: ProgramLike
    guide: ProgramLike
    num_epochs: int
    warmup: float
    elbo: float
    has_validation: bool

    @property
    def steps(self) -> int:
        """Number of steps taken so far."""

    @property
    def epoch(self) -> int:
        """Number of epochs completed so far."""

    @property
    def history(self) -> History:
        """The record of the epochs so far; every access makes new arrays."""

    @property
    def learning_rates(self) -> tuple[float, ...]:
        """Current learning rates of the optimizer's parameter groups."""

    def stop(self) -> None:
        """Ends training after this step or epoch; `Fit.stopped` is then "early"."""

    def settle(self) -> None:
        """Ends training; with the default schedule, only after the step size has decayed."""


class Callback:
    """Methods that `fit` calls at the start and end of training, and after every step and epoch."""

    def on_start(self, run: Run) -> None:
        """Called before the first step of a call of `fit`, even if that call resumes a run."""

    def on_step(self, run: Run) -> None:
        """Called after every step."""

    def on_epoch(self, run: Run) -> None:
        """Called after every epoch, once its validation is done."""

    def on_end(self, run: Run) -> None:
        """Called when training has ended, even after an error."""


class EarlyStopping(Callback):
    """Stops training after a number of epochs without a better validation ELBO.

    Epochs before the end of the objective's schedule, such as a warm-up, do not count.
    `fit(patience=10)` is a short form of `fit(callbacks=EarlyStopping(10))`.

    Arguments:
        patience: Number of epochs to wait for a better ELBO.
        min_improvement: Smallest improvement that counts, in nats per datum.

    Raises:
        ValueError: If an argument is out of range, or if training starts without validation data.
    """

    def __init__(self, patience: int, min_improvement: Annotated[float, Interval(0)] = 0.0) -> None:
        self.patience, self.min_improvement = patience, min_improvement

    def on_epoch(self, run: Run) -> None:
        """Stops training if the last `patience` epochs brought no better validation ELBO."""
        history = run.history
        elbos = history.validation_elbo[history.epoch.astype(int) > run.warmup]
        before, last = elbos[: -self.patience], elbos[-self.patience :]
        if len(before) > 0 and last.max() <= before.max() + self.min_improvement:
            run.stop()


class StopWhenConverged(Callback):
    """Ends training once further epochs promise little gain; `num_epochs` is only an upper limit.

    With the default schedule, the step size then decays over as many further epochs as have passed,
    so that the noise of the parameters decays too. With another schedule, training ends at once.
    See :func:`pyro_vae.stats.remaining_gain` for how the gain is estimated.

    Arguments:
        tolerance: A gain in nats per datum. Training ends if the remaining gain is below
            `tolerance` with a probability of at least 75%.
        every: Number of epochs between checks, or a tenth of the epochs so far if that is more.

    Raises:
        ValueError: If an argument is not positive.
    """

    def __init__(self, tolerance: float = 0.05, every: Annotated[int, COUNT] = 10) -> None:
        self.tolerance, self.every = tolerance, every

    def on_epoch(self, run: Run) -> None:
        """Ends training if a check is due, and further epochs promise less than the tolerance."""
        epochs = run.epoch
        # Long runs are checked less often, in proportion to the epochs so far.
        if epochs % max(self.every, epochs // 10 // self.every * self.every) == 0:
            gain = gain_of(run.history)
            if gain is not None and gain.below(self.tolerance) >= PROBABLE:
                run.settle()


class Printing(Callback):
    """Prints a line per epoch, for example to a log.

    Arguments:
        every: Epochs between lines.
    """

    def __init__(self, every: Annotated[int, COUNT] = 1) -> None:
        self.every = every

    def on_epoch(self, run: Run) -> None:
        """Prints a line about the epoch, if a line is due."""
        if run.epoch % self.every == 0:
            print(f"epoch {run.epoch}/{run.num_epochs}: {_in_words(run)}", flush=True)


class LivePlot(Callback):
    """Plots the learning curves in a notebook, replacing the previous plot; needs matplotlib.

    Arguments:
        every: Epochs between plots.

    Raises:
        ImportError: If matplotlib or IPython is not installed.
    """

    def __init__(self, every: Annotated[int, COUNT] = 1) -> None:
        self.every = every
        self.figure = optional("matplotlib.figure", needed_for="LivePlot").Figure
        self.display = optional("IPython.display", needed_for="LivePlot")

    def on_epoch(self, run: Run) -> None:
        """Replaces the plot, if a new one is due."""
        if run.epoch % self.every:
            return
        from ..plots import plot_learning_curves

        figure, picture = self.figure(), BytesIO()
        plot_learning_curves({"fit": run.history}, ax=figure.subplots())
        figure.savefig(picture, format="png")
        self.display.clear_output(wait=True)
        self.display.display(self.display.Image(data=picture.getvalue()))


class _Scalars(Callback, ABC):
    """A callback that logs the numbers of every epoch; subclasses define the destination."""

    def on_epoch(self, run: Run) -> None:
        """Writes the last epoch's finite numbers to the destination."""
        columns = vars(run.history).items()
        last = {name: float(column[-1]) for name, column in columns if name != "epoch"}
        numbers = {name: value for name, value in last.items() if np.isfinite(value)}
        self.write(numbers, int(run.history.epoch[-1]))

    @abstractmethod
    def write(self, numbers: Mapping[str, float], epoch: int) -> None:
        """Writes one epoch's numbers, given by name, to the destination."""


class TensorBoard(_Scalars):
    """Writes every epoch's numbers to a TensorBoard log.

    Arguments:
        folder: Log folder; `tensorboard --logdir FOLDER` shows the log.

    Raises:
        ImportError: If tensorboard is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        optional("tensorboard", needed_for="TensorBoard")
        self.writer = import_module("torch.utils.tensorboard").SummaryWriter(str(folder))

    def write(self, numbers: Mapping[str, float], epoch: int) -> None:
        """Writes one epoch's numbers, given by name, to the log."""
        for name, value in numbers.items():
            self.writer.add_scalar(f"fit/{name}", value, epoch)

    def on_end(self, run: Run) -> None:
        """Flushes and closes the log."""
        self.writer.close()  # it opens again if another run is logged


class MLflow(_Scalars):
    """Logs every epoch's numbers to the current run of MLflow.

    Raises:
        ImportError: If mlflow is not installed.
    """

    def __init__(self) -> None:
        self.mlflow = optional("mlflow", needed_for="MLflow")

    def write(self, numbers: Mapping[str, float], epoch: int) -> None:
        """Writes one epoch's numbers, given by name, to the log."""
        self.mlflow.log_metrics(dict(numbers), step=epoch)


class WandB(_Scalars):
    """Logs every epoch's numbers to the current run of Weights & Biases.

    Raises:
        ImportError: If wandb is not installed.
        RuntimeError: If no run has been started; `wandb.init()` starts one.
    """

    def __init__(self) -> None:
        self.wandb = optional("wandb", needed_for="WandB")
        if self.wandb.run is None:
            raise RuntimeError(
                "there is no wandb run to log to: call wandb.init(project=...) first"
            )

    def write(self, numbers: Mapping[str, float], epoch: int) -> None:
        """Writes one epoch's numbers, given by name, to the log."""
        self.wandb.log(dict(numbers), step=epoch)


class Journal(Callback):
    """Logs training's start and end (INFO) and every epoch (DEBUG) to the logger "pyro_vae"."""

    def on_start(self, run: Run) -> None:
        """Logs the epoch at which training starts."""
        logger.info("training starts at epoch %d", run.epoch + 1)

    def on_epoch(self, run: Run) -> None:
        """Logs the epoch's numbers in one line."""
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("epoch %d: %s", run.epoch, _in_words(run))

    def on_end(self, run: Run) -> None:
        """Logs the number of epochs and steps at the end of training."""
        logger.info("training ended after %d epochs, %d steps", run.epoch, run.steps)


def check_callbacks(callbacks: Any) -> tuple[Callback, ...]:
    """Makes a tuple of the callbacks, and refuses any object that is not a callback.

    Raises:
        TypeError: If an object is not a :class:`Callback`.
    """
    given = (callbacks,) if isinstance(callbacks, Callback) else tuple(callbacks)
    for callback in given:
        if not isinstance(callback, Callback):
            remedy = ", a class: call the class" if isinstance(callback, type) else ""
            raise TypeError(
                "`callbacks` must be instances of pv.training.Callback, such as "
                f"pv.training.Printing(); got {callback!r}{remedy}"
            )
    return given


def _in_words(run: Run) -> str:
    history = run.history
    held_out = f", validation {history.validation_elbo[-1]:.3f}" if run.has_validation else ""
    return f"ELBO {history.elbo[-1]:.3f} nats per datum{held_out}"
