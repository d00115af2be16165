"""What training gave: a history, epoch by epoch, and how it ended."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._types import Estimate
from ..results import Result


@dataclass(frozen=True)
class History:
    """What happened in each epoch; arrays `(epochs,)`, ELBOs in nats a datum.

    Arguments:
        epoch: 1, 2, ...
        elbo: ELBO of the training data at full KL weight, averaged over the epoch's steps.
        validation_elbo: ELBO of the validation data after the epoch; nan without any.
        validation_error: Its Monte Carlo error.
        kl_weight: Weight of the KL term in the last step's loss.
        learning_rate: Of the first parameter group.
        seconds: Since the start of training.
    """

    epoch: NDArray[np.generic]
    elbo: NDArray[np.generic]
    validation_elbo: NDArray[np.generic]
    validation_error: NDArray[np.generic]
    kl_weight: NDArray[np.generic]
    learning_rate: NDArray[np.generic]
    seconds: NDArray[np.generic]


@dataclass(frozen=True, repr=False)
class Fit(Result):
    """What training gave; model and guide hold the result.

    Arguments:
        history: Epoch by epoch.
        stopped: "finished", "early" or "interrupted".
        best_epoch: Epoch whose state was kept: the best by validation, else the last one.
        seed: Seed of the run.
        trained: Names of the trained tensors; one that no module registered is named by its
            shape.
        compiled: "compiled", or why the steps ran eagerly.
        missing: Share of the entries that are nan, in the tensors that may have such.
        rounding: By how much the ELBO of a first batch differs under the products that training
            was told to make with fewer bits, nats a datum, from the same draws; else `None`.
    """

    history: History
    stopped: str
    best_epoch: int
    seed: int
    trained: tuple[str, ...]
    compiled: str = ""
    missing: float = 0.0
    rounding: Estimate | None = None

    def plot(self) -> Any:
        """ELBO by epoch; needs matplotlib."""
        from ..plots import plot_learning_curves

        return plot_learning_curves({"fit": self.history})

    def summary(self) -> str:
        """Says how training ended, in a line."""
        epochs = len(self.history.epoch)
        if epochs == 0:
            return f"{self.stopped} before the end of the first epoch"
        holes = f"; {self.missing:.2%} of the entries are missing (nan)" if self.missing else ""
        return (
            f"{self.stopped} after {epochs} epochs and {self.history.seconds[-1]:.1f} s; "
            f"training ELBO {self.history.elbo[-1]:.3f} nats a datum; kept epoch {self.best_epoch}"
            f"{holes}{self._rounded()}"
        )

    def _rounded(self) -> str:
        if self.rounding is None:
            return ""
        return f"; products of fewer bits move the ELBO by {self.rounding:+.2g} nats per datum"
