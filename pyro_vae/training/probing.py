r"""A second test of convergence: how much L-BFGS lowers the loss from where training ended.

The curve of the loss does not show how far away the optimum is if training is slow in some
direction. In a narrow valley of the loss, noise across the valley keeps Adam's steps small. The
curve then looks level, although the loss may be nats above its minimum. So L-BFGS, which follows
the curvature, starts from the last parameters :math:`\theta`. It minimizes the loss :math:`f` for a
few fixed draws :math:`\epsilon`, and ends at parameters :math:`\theta'`. The decrease of the loss
is then measured with :math:`R` fresh sets of draws,

.. math:: \mathrm{gain} = \frac{1}{R} \sum_{r=1}^R [f(\theta, \epsilon_r) - f(\theta', \epsilon_r)]

For a large data set, L-BFGS sees only some of the rows. Each set of draws is then for other rows,
none of which L-BFGS has seen, so that the standard error includes the choice of rows. A decrease
found in this way can be reached. So, up to its standard error, it is a lower bound on the gain that
is left. If no decrease is found, little follows: with many parameters, the loss for a
few fixed draws can have its minimum far from that of the expected loss.
"""

from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from .. import stats
from .._types import Batch, Estimate
from ..guides.optimization import times_inverse_hessian
from ..randomness import forked
from .steps import Steps
from .tensors import State

_ROWS = 1000  # for the fit, and for the test, if there are more rows
_FEWEST_ROWS = 100  # if fewer can be afforded, nothing is measured
_POINTS = 4000  # rows times draws per row; too few mislead where parameters are many
_MOST_DRAWS = 16  # per row
_PARTS = 4  # a site that all data share has one draw per part
_BYTES = 2**28  # of all results of a part
_CHEAP = 2**33  # bytes of all results, which take a few seconds; otherwise a quarter of training
_FRESH = 10  # evaluations at fresh draws, so that the error is itself known to 24%
_MOST_PARAMETERS = 2**20  # L-BFGS stores twenty vectors of this size, in float64
_MEMORY = 10  # pairs of steps and gradients
_ITERATIONS = 20  # until other draws say whether to go on; in a valley the first ten gain nothing
_TIMES = 2  # that it may go on
_FIRST = 0.01  # largest change of a parameter in the first step, whose curvature is unknown
_SHORTER = 6  # times that a step is divided by 4
_DESCENT = 1e-4  # share of the decrease that the slope promises (Armijo's condition)

_Function = Callable[[Tensor], tuple[float, Tensor]]


class _Rows(NamedTuple):
    """Rows of the data, split into parts; a part has the row numbers and the tensors."""

    parts: list[tuple[Tensor, Batch]]

    @property
    def number(self) -> int:
        """Number of rows in all parts."""
        return sum(len(rows) for rows, _ in self.parts)


def gain_left(steps: Steps, seed: int) -> Estimate | None:
    """Measures how much L-BFGS lowers the loss; the current parameters are left unchanged.

    Arguments:
        steps: The training steps of a run that has ended.
        seed: Seed of the run.

    Returns:
        The decrease of the loss, in nats per datum; `None` if the guide has parameters per row, the
        data are augmented, there are more than a million parameters, the programs refuse batches of
        another size, or the loss of 100 rows takes too long compared to training.
    """
    size = sum(tensor.numel() for tensor in steps.tensors.values())
    if not steps.is_repeatable or not 0 < size <= _MOST_PARAMETERS:
        return None
    if _affordable(steps) < min(_FEWEST_ROWS, steps.num_rows):
        return None
    before = State.of(steps.model, steps.guide, steps.tensors.values())
    try:
        gain = _Probe(steps, seed).gain()
    except Exception:  # a user's program may refuse batches of another size in any way
        return None
    else:
        return gain if bool(gain.value.isfinite()) else None
    finally:
        before.restore()
        steps.forget_gradients()


def _affordable(steps: Steps) -> int:
    """Number of draws, summed over rows, for one evaluation of the loss.

    The number is chosen so that all evaluations together take about a quarter of the time of
    training, or a few seconds if that is more.
    """
    trained = steps.taken * steps.batch_size / 4
    cheap = _CHEAP / _bytes_per_row(steps)
    return int(max(trained, cheap) / (_TIMES * _ITERATIONS))


def _bytes_per_row(steps: Steps) -> float:
    return (steps.compiled.num_bytes or _BYTES) / steps.batch_size


class _Probe:
    """The loss as a function of one vector that holds all trained parameters, for given draws."""

    def __init__(self, steps: Steps, seed: int) -> None:
        self.steps, self.seed = steps, seed
        self.tensors = list(steps.tensors.values())
        self.points = min(_POINTS, _affordable(steps))
        most = min(_ROWS, self.points)
        fitted = others = torch.arange(steps.num_rows, device="cpu")
        if steps.num_rows > 2 * most:
            spread = fitted[:: steps.num_rows // (2 * most)]
            fitted, others = spread[::2], spread[1::2]
        self.others, self.fitted = others, self._rows(fitted)
        self.tested = self.fitted if others is fitted else self._rows(others)

    def gain(self) -> Estimate:
        """Minimizes the loss, and measures the decrease at fresh draws, with its standard error.

        The error includes the choice of rows, unless L-BFGS and the test use all of them.
        """
        start = torch.cat([part.detach().cpu().double().reshape(-1) for part in self.tensors])
        end = self._found(start)
        if end is start:
            nothing = torch.tensor(0.0, dtype=torch.float64, device="cpu")
            return Estimate(nothing, nothing)
        gains = [
            self._at(start, rows, draws) - self._at(end, rows, draws)
            for draws, rows in enumerate(self._fresh(), 2)
        ]
        return stats.mean_estimate(torch.tensor(gains, dtype=torch.float64, device="cpu"))

    def _fresh(self) -> Iterator[_Rows]:
        """Yields the rows of each evaluation at fresh draws: all rows, or rows of its own."""
        for first in range(_FRESH):
            all_rows = self.tested is self.fitted
            yield self.tested if all_rows else self._rows(self.others[first::_FRESH])

    def _found(self, start: Tensor) -> Tensor:
        """Minimizes the loss from `start`; stops once other draws no longer show a decrease."""
        best, lowest = start, self._at(start, self.tested, 1)  # an error here ends the test
        path = descent(self._fit, start)
        for _ in range(_TIMES):
            *_, last = [best, *islice(path, _ITERATIONS)]
            value = self._judged(last)
            if not value < lowest:
                break
            best, lowest = last, value
        return best

    def _fit(self, theta: Tensor) -> tuple[float, Tensor]:
        """Computes loss and gradient at the fixed draws; the loss is inf if a program fails."""
        self.steps.forget_gradients()
        try:
            value = self._at(theta, self.fitted, 0, learn=True)
        except (ValueError, ArithmeticError, RuntimeError):  # a distribution or a decomposition
            return torch.inf, torch.zeros_like(theta)
        parts = [torch.zeros_like(t) if t.grad is None else t.grad for t in self.tensors]
        gradient = torch.cat([part.detach().cpu().double().reshape(-1) for part in parts])
        return value, gradient

    def _judged(self, theta: Tensor) -> float:
        """Computes the loss at draws that the fit does not use; returns inf if a program fails."""
        try:
            return self._at(theta, self.tested, 1)
        except (ValueError, ArithmeticError, RuntimeError):
            return torch.inf

    def _at(self, theta: Tensor, rows: _Rows, draws: int, *, learn: bool = False) -> float:
        """Computes the loss at `theta`, in nats per datum.

        Calls with the same number `draws` use the same random draws. With `learn`, the gradient of
        the loss is also added to the gradients of the tensors.
        """
        with torch.no_grad():
            sizes = [tensor.numel() for tensor in self.tensors]
            for tensor, part in zip(self.tensors, theta.split(sizes), strict=True):
                tensor.copy_(part.view(tensor.shape))
        total = 0.0
        with forked(self.seed, f"fit.probe {draws}"), torch.set_grad_enabled(learn):
            for positions, batch in rows.parts:
                weight = len(positions) / rows.number
                loss, scale = self.steps.loss_at(positions, batch)
                if learn:
                    (loss * (weight / scale)).backward()
                total += weight * float(loss.detach()) / scale
        return total

    def _rows(self, positions: Tensor) -> _Rows:
        """Reads the rows at these positions, in parts that fit into memory.

        Every row is repeated, so that each row gets several draws.
        """
        most = max(self.steps.batch_size, int(_BYTES / _bytes_per_row(self.steps)))
        draws = max(1, min(_MOST_DRAWS, min(_PARTS * most, self.points) // len(positions)))
        repeated = positions.repeat(draws)
        parts = repeated.split(min(most, -(-len(repeated) // _PARTS)))
        return _Rows([(part, self.steps.reader.read(part)) for part in parts])


def descent(function: _Function, theta: Tensor) -> Iterator[Tensor]:
    """Yields the iterates of L-BFGS; each has a lower value of `function` than the one before.

    Arguments:
        function: Maps a vector to a value, which may be infinite, and its gradient.
        theta: The starting point.

    Example:
        >>> scales = torch.tensor([1.0, 1e4], dtype=torch.float64)
        >>> square = lambda x: (float(scales @ x**2), 2 * scales * x)
        >>> *_, last = descent(square, torch.ones(2, dtype=torch.float64))
        >>> bool(last.abs().max() < 1e-6)
        True
    """
    pairs: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=_MEMORY)  # newest first
    scale = torch.ones_like(theta[:1])
    value, gradient = function(theta)
    while bool(gradient.any()):
        direction = -times_inverse_hessian(gradient, pairs, scale)
        step = 1.0 if pairs else min(1.0, _FIRST / float(gradient.abs().max()))
        for _ in range(_SHORTER):
            new_value, new_gradient = function(theta + step * direction)
            if new_value < value + _DESCENT * step * float(direction @ gradient):
                break
            step /= 4
        else:
            return
        move, change = step * direction, new_gradient - gradient
        curvature = move @ change
        if float(curvature) > 0:
            pairs.appendleft((move, change, 1 / curvature))
            scale = curvature / (change @ change)
        theta, value, gradient = theta + move, new_value, new_gradient
        yield theta
