"""Callbacks: what is called while training goes on, to show it, to write it down, or to stop it.

One of your own is a subclass of :class:`Callback` with the methods that it needs::

    class StopAtZero(pv.training.Callback):
        def on_epoch(self, run):
            if run.history.elbo[-1] > 0:
                run.stop()

It sees the :class:`Run` and does not change what is trained: a training run with callbacks gives
the numbers of one without, unless one of them stops it.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from .._types import ProgramLike
from .results import History, gain_of

logger = logging.getLogger("pyro_vae")


@runtime_checkable
class Run(Protocol):
    """A run of training, as callbacks see it.

    Attributes:
        model: What is trained.
        guide: Its guide.
        num_epochs: Epochs that it has at the most.
        warmup: Epochs that the schedule of the objective takes.
        steps: Steps taken so far.
        elbo: ELBO of the last step's batch, nats per datum, at full KL weight.
        has_validation: Whether there are held-out data.
    """

    model: ProgramLike
    guide: ProgramLike
    num_epochs: int
    warmup: float
    elbo: float
    has_validation: bool

    @property
    def steps(self) -> int:
        """Steps taken so far."""

    @property
    def history(self) -> History:
        """The epochs so far."""

    @property
    def learning_rates(self) -> tuple[float, ...]:
        """Of the optimizer's groups of parameters, now."""

    def stop(self) -> None:
        """Ends training after this step or epoch; `Fit.stopped` is then "early"."""

    def settle(self) -> None:
        """Lets the default step size fall from now on, and ends training then; else as `stop`."""


class Callback:
    """What is called at the start of training, after steps and epochs, and at its end."""

    def on_start(self, run: Run) -> None:
        """Before the first step, or the first one after a run was resumed."""

    def on_step(self, run: Run) -> None:
        """After every step."""

    def on_epoch(self, run: Run) -> None:
        """After every epoch, its validation included."""

    def on_end(self, run: Run) -> None:
        """When training has ended, in whichever way: also by an error."""


class EarlyStopping(Callback):
    """Stops after so many epochs without a better validation ELBO.

    Epochs of the objective's schedule do not count. It is what `fit(patience=)` is short for.

    Arguments:
        patience: Epochs to wait.
        min_improvement: How much better an epoch has to be to count, nats per datum.

    Raises:
        ValueError: If an argument is out of range, or, at the start, there are no held-out data.
    """

    def __init__(self, patience: int, min_improvement: float = 0.0) -> None:
        if patience < 1 or not min_improvement >= 0:
            raise ValueError(
                "patience is at least 1 epoch and min_improvement at least 0 nats per datum, got "
                f"{patience} and {min_improvement}"
            )
        self.patience, self.min_improvement = patience, min_improvement

    def on_start(self, run: Run) -> None:
        """Refuses a run without validation."""
        if not run.has_validation:
            raise ValueError("patience waits for the ELBO of held-out data: pass validation= too")

    def on_epoch(self, run: Run) -> None:
        """Holds the last epochs against all those before."""
        history = run.history
        elbos = history.validation_elbo[history.epoch.astype(int) > run.warmup]
        before, last = elbos[: -self.patience], elbos[-self.patience :]
        if len(before) > 0 and last.max() <= before.max() + self.min_improvement:
            run.stop()


class StopWhenConverged(Callback):
    """Ends training when what it still promises is small: `num_epochs` is then a budget.

    The default step size falls from there, over as many epochs as there were, so that the jitter of
    the steps settles; with another schedule training ends at once. See
    :func:`pyro_vae.stats.remaining_gain` for what is promised, and how far that can be told.

    Arguments:
        tolerance: What is small, nats per datum, and is not exceeded with 95%.
        every: Epochs from one look to the next.

    Raises:
        ValueError: If an argument is not positive.
    """

    def __init__(self, tolerance: float = 0.02, every: int = 10) -> None:
        if not tolerance > 0 or every < 1:
            raise ValueError(
                f"tolerance is positive, and every at least 1, got {tolerance} and {every}"
            )
        self.tolerance, self.every = tolerance, every

    def on_epoch(self, run: Run) -> None:
        """Looks at the curve."""
        if len(run.history.epoch) % self.every == 0:
            gain = gain_of(run.history)
            if gain is not None and gain.high < self.tolerance:
                run.settle()


class Printing(Callback):
    """Prints a line per epoch, such as for a log.

    Arguments:
        every: Epochs from one line to the next.
    """

    def __init__(self, every: int = 1) -> None:
        if every < 1:
            raise ValueError(f"every is a number of epochs, at least 1, got {every}")
        self.every = every

    def on_epoch(self, run: Run) -> None:
        """Prints."""
        if len(run.history.epoch) % self.every == 0:
            print(f"epoch {len(run.history.epoch)}/{run.num_epochs}: {_in_words(run)}", flush=True)


class LivePlot(Callback):
    """Draws the learning curves in a notebook, in place of those before; needs matplotlib.

    Arguments:
        every: Epochs from one picture to the next.
    """

    def __init__(self, every: int = 1) -> None:
        if every < 1:
            raise ValueError(f"every is a number of epochs, at least 1, got {every}")
        self.every = every
        self.display = _needed("IPython.display", "ipython")
        self.figure = _needed("matplotlib.figure", "matplotlib").Figure

    def on_epoch(self, run: Run) -> None:
        """Draws."""
        if len(run.history.epoch) % self.every:
            return
        from ..plots import plot_learning_curves

        figure, picture = self.figure(), BytesIO()
        plot_learning_curves({"fit": run.history}, ax=figure.subplots())
        figure.savefig(picture, format="png")
        self.display.clear_output(wait=True)
        self.display.display(self.display.Image(data=picture.getvalue()))


class _Scalars(Callback, ABC):
    """Writes the numbers of every epoch somewhere."""

    def on_epoch(self, run: Run) -> None:
        """Writes the last row of the history."""
        columns = vars(run.history).items()
        last = {name: float(column[-1]) for name, column in columns if name != "epoch"}
        numbers = {name: value for name, value in last.items() if np.isfinite(value)}
        self.write(numbers, int(run.history.epoch[-1]))

    @abstractmethod
    def write(self, numbers: Mapping[str, float], epoch: int) -> None:
        """Writes numbers by name."""


class TensorBoard(_Scalars):
    """Writes every epoch's numbers for TensorBoard.

    Arguments:
        folder: Where; `tensorboard --logdir FOLDER` shows it.

    Raises:
        ImportError: If tensorboard is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        _needed("tensorboard", "tensorboard")
        self.writer = _needed("torch.utils.tensorboard", "tensorboard").SummaryWriter(str(folder))

    def write(self, numbers: Mapping[str, float], epoch: int) -> None:
        """Writes numbers by name."""
        for name, value in numbers.items():
            self.writer.add_scalar(f"fit/{name}", value, epoch)

    def on_end(self, run: Run) -> None:
        """Writes what is left."""
        self.writer.flush()


class MLflow(_Scalars):
    """Logs every epoch's numbers to the current run of MLflow.

    Raises:
        ImportError: If mlflow is not installed.
    """

    def __init__(self) -> None:
        self.mlflow = _needed("mlflow", "mlflow")

    def write(self, numbers: Mapping[str, float], epoch: int) -> None:
        """Writes numbers by name."""
        self.mlflow.log_metrics(dict(numbers), step=epoch)


class WandB(_Scalars):
    """Logs every epoch's numbers to the current run of Weights & Biases.

    Raises:
        ImportError: If wandb is not installed.
        RuntimeError: If there is no run: `wandb.init()` starts one.
    """

    def __init__(self) -> None:
        self.wandb = _needed("wandb", "wandb")
        if self.wandb.run is None:
            raise RuntimeError("there is no run to log to: call wandb.init(project=...) first")

    def write(self, numbers: Mapping[str, float], epoch: int) -> None:
        """Writes numbers by name."""
        self.wandb.log(dict(numbers), step=epoch)


class Journal(Callback):
    """Tells the logger "pyro_vae": what happened at level INFO, every epoch at level DEBUG."""

    def on_start(self, run: Run) -> None:
        """Where training starts."""
        logger.info("training starts at epoch %d", len(run.history.epoch) + 1)

    def on_epoch(self, run: Run) -> None:
        """A line per epoch."""
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("epoch %d: %s", len(run.history.epoch), _in_words(run))

    def on_end(self, run: Run) -> None:
        """Where training ended."""
        logger.info("training ended after %d epochs, %d steps", len(run.history.epoch), run.steps)


def check_callbacks(callbacks: Any) -> tuple[Callback, ...]:
    """Refuses what is none.

    Raises:
        TypeError: If one is not a :class:`Callback`.
    """
    given = (callbacks,) if isinstance(callbacks, Callback) else tuple(callbacks)
    for callback in given:
        if not isinstance(callback, Callback):
            made = " (make it first, with brackets)" if isinstance(callback, type) else ""
            raise TypeError(
                "callbacks= takes objects of pv.training.Callback, such as "
                f"pv.training.Printing(), got {callback!r}{made}"
            )
    return given


def _in_words(run: Run) -> str:
    history = run.history
    held_out = f", validation {history.validation_elbo[-1]:.3f}" if run.has_validation else ""
    return f"ELBO {history.elbo[-1]:.3f} nats per datum{held_out}"


def _needed(module: str, package: str) -> Any:
    """A module of a package that is optional."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"this callback needs {package}, which is not installed: pip install {package}"
        ) from error
