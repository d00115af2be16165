"""The result of training: the history by epoch, and how training ended."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .._types import Estimate
from ..formatting import count_of
from ..results import Result
from ..stats import Gain, remaining_gain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SMALL_GAIN = 0.1  # nats per datum; smaller differences between guides rarely matter
PROBABLE = 0.75  # probability that a verdict needs; in trials, 19 of 20 such verdicts were right


@dataclass(frozen=True)
class History:
    """The record of all epochs, in arrays `(epochs,)`; ELBOs are in nats per datum.

    Arguments:
        epoch: 1, 2, ...
        elbo: ELBO of the training data at full KL weight, averaged over the epoch's steps.
        loss: The loss that is minimized, in nats per datum, averaged over the epoch's steps, but
            without the scales that the programs set (`poutine.scale`). For Pyro's ELBOs it is minus
            `elbo`.
        validation_elbo: ELBO of the validation data after the epoch; nan without validation data.
        validation_error: Monte Carlo error of `validation_elbo`.
        kl_weight: Weight of the KL term in the last step's loss.
        learning_rate: Step size of the first parameter group.
        seconds: Time since the start of training.
    """

    epoch: NDArray[np.generic]
    elbo: NDArray[np.generic]
    loss: NDArray[np.generic]
    validation_elbo: NDArray[np.generic]
    validation_error: NDArray[np.generic]
    kl_weight: NDArray[np.generic]
    learning_rate: NDArray[np.generic]
    seconds: NDArray[np.generic]


def shifted(history: History, training: float, validation: float) -> History:
    """Adds `training` nats to the training ELBOs, and `validation` nats to the validation ELBOs."""
    return replace(
        history,
        elbo=np.add(history.elbo, training),
        validation_elbo=np.add(history.validation_elbo, validation),
    )


def gain_of(history: History) -> Gain | None:
    """Estimates the decrease of the loss in further epochs, in nats per datum.

    Only epochs at the end of training count: those that minimized the same loss function as the
    last epoch.
    """
    if len(history.loss) == 0:
        return None
    settled = _settled(history)
    return remaining_gain(np.negative(history.loss[settled]), history.learning_rate[settled])


def verdict_of(gain: Gain) -> bool | None:
    """Whether the gain is small; `None` if neither True nor False has a probability of 75%."""
    small = gain.below(SMALL_GAIN)
    if small >= PROBABLE:
        return True
    return False if small <= 1 - PROBABLE else None


def _settled(history: History) -> NDArray[np.bool_]:
    """Marks those epochs at the end of training that have the loss function of the last epoch."""
    others = np.flatnonzero(history.kl_weight != history.kl_weight[-1])
    is_last = np.arange(len(history.loss)) > (others[-1] if len(others) else -1)
    is_elbo = _is_elbo(history)
    # A program may anneal its own scales. If it ends without a scale, earlier epochs do not count.
    return is_last & (is_elbo | ~is_elbo[-1])


def _is_elbo(history: History) -> NDArray[np.bool_]:
    """Marks the epochs whose loss was minus the ELBO, up to rounding in float32."""
    return np.isclose(np.negative(history.loss), history.elbo, rtol=1e-5, atol=1e-6)


@dataclass(frozen=True, repr=False)
class Fit(Result):
    """The result of training; the trained parameters are in model and guide.

    Arguments:
        history: The record of every epoch.
        stopped: "finished", "early", "converged" or "interrupted".
        best_epoch: Epoch whose state was kept: the one with the best validation ELBO, or the last
            one if there are no validation data.
        seed: Seed of the run.
        trained: Names of the trained tensors; a tensor that no module registered is named by its
            shape.
        compiled: "compiled", or the reason why the steps ran eagerly.
        missing: Share of missing entries (nan) in those tensors that have missing entries.
        rounding: How low-precision products change the ELBO, in nats per datum: the ELBO with them
            minus the ELBO without them, for the first rows of the data and the same draws. `None`
            if training used no low-precision products.
        advice: Text that names parameters on which the loss does not depend, and a column of the
            data that should be standardized because its scale is far above 1; may be empty.
        left: Gain that L-BFGS finds from the parameters at the end of training, in nats per datum:
            a lower bound on the possible gain. It is measured at fresh draws; if there are more
            than about 2,000 rows, also at rows that L-BFGS did not see. It is `None` if training
            was interrupted, if the curve of the loss is too short or shows that training has not
            converged, if the model is large, if the data are augmented, if the guide has parameters
            per row, or if several processes train.
        log_scale: Nats per datum to add to ELBOs, to convert them to the data's own units. The
            summary and the plot do so; `history` holds the ELBOs that were optimized.
    """

    history: History
    stopped: str
    best_epoch: int
    seed: int
    trained: tuple[str, ...]
    compiled: str = ""
    missing: float = 0.0
    rounding: Estimate | None = None
    advice: str = ""
    left: Estimate | None = None
    log_scale: float = 0.0

    @cached_property
    def _gain(self) -> Gain | None:
        return gain_of(self.history)

    @property
    def remaining(self) -> Estimate | None:
        """Expected gain in the objective from further training, in nats per datum.

        The gain is estimated from the curve of the objective, which is the training ELBO unless
        another objective was passed. Only epochs at the last KL weight count; if these are too few,
        the gain is `None`. The estimate (:func:`pyro_vae.stats.remaining_gain`) gives only the
        order of magnitude, and misses slow progress that is hidden by the noise of the curve. If
        L-BFGS found a larger gain after training (`left`), that gain is returned.
        """
        if self._gain is None:
            return None
        curve = self._gain.estimate
        return self.left if self.left and self.left.value > curve.value else curve

    @property
    def converged(self) -> bool | None:
        """Whether further training promises a gain of less than 0.1 nats per datum.

        The gain is read off curves that are fitted to the loss. The result is True if the gain is
        below 0.1 nats with a probability of at least 75%, and L-BFGS finds no gain above 0.1 nats.
        It is False if the gain is above 0.1 nats with a probability of at least 75%, or if L-BFGS
        finds a gain above 0.1 nats. Otherwise it is `None`.
        """
        if self._gain is None:
            return None
        verdict = verdict_of(self._gain)
        if verdict is False or self.left is None:
            return verdict
        value, error = float(self.left.value), float(self.left.error)
        if value - 2 * error > SMALL_GAIN:
            return False
        return verdict if value + 2 * error < SMALL_GAIN else None

    def plot(self) -> "Axes":
        """Plots the ELBO by epoch; needs matplotlib."""
        from ..plots import plot_learning_curves

        return plot_learning_curves({"fit": shifted(self.history, self.log_scale, self.log_scale)})

    def summary(self) -> str:
        """Returns a line that says how training ended."""
        epochs = len(self.history.epoch)
        ended = "stopped early" if self.stopped == "early" else self.stopped
        if epochs == 0:
            return f"{ended} before the end of the first epoch"
        elbo = float(self.history.elbo[-1])
        units = f" in the data's own units ({elbo:.3f} for standardized columns)"
        parts = [
            f"{ended} after {count_of(epochs, 'epoch')} and {self.history.seconds[-1]:.1f} s",
            f"training ELBO {elbo + self.log_scale:.3f} nats per datum"
            f"{units if self.log_scale else ''}",
            f"kept the parameters of epoch {self.best_epoch}",
        ]
        if self.missing:
            parts.append(f"{self.missing:.2%} of the entries are missing (nan)")
        if self.rounding is not None:
            change = f"{self.rounding:+.2g} nats per datum"
            parts.append(f"low-precision products change the ELBO by {change}")
        return "; ".join([*parts, self.promise])

    @property
    def promise(self) -> str:
        """Text that says what further training promises, and whether training has converged."""
        if self.remaining is None:
            weights = self.history.kl_weight
            changed = len(weights) > 0 and bool((weights != weights[-1]).any())
            weight = f" at the last KL weight, {weights[-1]:g}," if changed else ""
            return f"too few epochs{weight} to tell whether training has converged"
        found = self.remaining is self.left
        gain = f"L-BFGS gains another {self.remaining}" if found else self._range()
        promise = f"{gain} nats per datum{self._maximized()}"
        if self.converged is None:
            return f"{promise}: it is unknown whether training has converged{self._advised()}"
        if self.converged:
            sure = found or (self._gain is not None and self._gain.high < SMALL_GAIN)
            return f"{promise}: training has {'converged' if sure else 'probably converged'}"
        remedy = "use more epochs or a larger step size"
        return f"{promise}: training has not converged, so {remedy}{self._advised()}"

    def _range(self) -> str:
        """Text with both ends of the gain's interval, which is not symmetric about the estimate."""
        assert self._gain is not None
        low, high = self._gain.low, self._gain.high
        if high < 0.01:
            return "further training promises less than 0.01"
        return f"further training promises {round(low, 2):.3g} to {round(high, 2):.3g}"

    def _maximized(self) -> str:
        """Text that says what training maximized; empty if it was the ELBO."""
        weight = float(self.history.kl_weight[-1])
        if weight != 1:
            return f" in the ELBO with KL weight {weight:g}"
        return "" if _is_elbo(self.history)[-1] else " in the objective, which is not the ELBO"

    def _advised(self) -> str:
        return f". {self.advice}" if self.advice else ""
