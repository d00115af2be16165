r"""A second test of convergence: how much L-BFGS lowers the loss from where training ended.

The curve of the loss does not show how far away the optimum is if training is slow in some
direction. In a narrow valley of the loss, noise across the valley keeps Adam's steps small. The
curve then looks level, although the loss may be nats above its minimum. So L-BFGS, which follows
the curvature, starts from the last parameters :math:`\theta`. It minimizes the loss :math:`f` for a
few fixed draws :math:`\epsilon`, and ends at parameters :math:`\theta'`. The decrease of the loss
is then measured with :math:`R` fresh sets of draws,

.. math:: \mathrm{gain} = \frac{1}{R} \sum_{r=1}^R [f(\theta, \epsilon_r) - f(\theta', \epsilon_r)]

For a large data set, L-BFGS sees only some of the rows. Each fresh set of draws then has a separate
set of rows, none of which L-BFGS has seen, so that the standard error includes the choice of rows.
Training could reach the parameters :math:`\theta'` too. So, up to its standard error, the decrease
is a lower bound on the gain that is left. If no decrease is found, little follows: with many
parameters, the loss for a few fixed draws can have its minimum far from that of the expected loss.
"""

from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice

import torch
from torch import Tensor

from .. import stats
from .._types import Batch, Estimate
from ..guides.optimization import times_inverse_hessian
from ..randomness import forked
from .steps import Steps
from .tensors import State

_ROWS = 1000  # most rows that L-BFGS fits, and most other rows that test the fit
_FEWEST_ROWS = 100  # if even these take too long, nothing is measured
_POINTS = 4000  # rows times draws per row; with many parameters, too few points mislead
_MOST_DRAWS = 16  # per row
_PARTS = 4  # of the rows: a site that all data share has one draw per part
_BYTES = 2**28  # memory for the intermediate results of one part
_CHEAP = 2**33  # bytes of intermediate results that are computed in a few seconds
_TESTS = 10  # evaluations at fresh draws, so that the error is itself known to 24%
_MOST_PARAMETERS = 2**20  # L-BFGS stores twenty vectors of this size, in float64
_MEMORY = 10  # pairs of steps and gradient changes that L-BFGS stores
_ROUNDS = 2  # of L-BFGS; after each, the loss at other draws tells whether to continue
_ITERATIONS = 20  # per round; in a narrow valley the first ten gain nothing
_FIRST = 0.01  # largest change of a parameter in the first step, whose curvature is unknown
_SHORTER = 6  # times that a step is divided by 4
_DESCENT = 1e-4  # share of the decrease that the slope promises (Armijo's condition)
_FAILURES = (ValueError, ArithmeticError, RuntimeError)  # of a distribution or a decomposition

_Function = Callable[[Tensor], tuple[float, Tensor]]
_Rows = list[tuple[Tensor, Batch]]  # row numbers and tensors, in parts that fit into memory


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
    if _affordable(steps) < min(_FEWEST_ROWS, len(steps.reader)):
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
    """Number of points (rows times draws per row) for one evaluation of the loss.

    With this number, all evaluations together take about a quarter of the time of training, or a
    few seconds if that is more.
    """
    trained = steps.taken * steps.batch_size / 4
    cheap = _CHEAP / _bytes_per_row(steps)
    return int(max(trained, cheap) / (_ROUNDS * _ITERATIONS))


def _bytes_per_row(steps: Steps) -> float:
    return (steps.compiled.num_bytes or _BYTES) / steps.batch_size


class _Probe:
    """The loss as a function of one vector that holds all trained parameters, for given draws."""

    def __init__(self, steps: Steps, seed: int) -> None:
        self.steps, self.seed = steps, seed
        self.tensors = list(steps.tensors.values())
        self.points = min(_POINTS, _affordable(steps))
        most, number = min(_ROWS, self.points), len(steps.reader)
        fitted = others = torch.arange(number, device="cpu")
        if number > 2 * most:
            spread = fitted[:: number // (2 * most)]
            fitted, others = spread[::2], spread[1::2]
        self.others, self.fitted = others, self._rows(fitted)
        self.tested = self.fitted if others is fitted else self._rows(others)

    def gain(self) -> Estimate:
        """Minimizes the loss, and measures the decrease at fresh draws, with its standard error.

        The error includes the choice of rows, unless L-BFGS and the test use all of them.
        """
        start = torch.cat([part.detach().cpu().double().reshape(-1) for part in self.tensors])
        end = self._minimized(start)
        if end is start:
            nothing = torch.tensor(0.0, dtype=torch.float64, device="cpu")
            return Estimate(nothing, nothing)
        gains = []
        for first in range(_TESTS):
            uses_all = self.tested is self.fitted
            rows = self.tested if uses_all else self._rows(self.others[first::_TESTS])
            draws = 2 + first  # 0 and 1 are the draws of the minimization
            gains.append(self._at(start, rows, draws) - self._at(end, rows, draws))
        return stats.mean_estimate(torch.tensor(gains, dtype=torch.float64, device="cpu"))

    def _minimized(self, start: Tensor) -> Tensor:
        """Minimizes the loss from `start`; stops once other draws no longer show a decrease."""
        best, lowest = start, self._at(start, self.tested, 1)  # an error here ends the test
        path = descent(self._fit, start)
        for _ in range(_ROUNDS):
            *_, last = [best, *islice(path, _ITERATIONS)]
            try:
                value = self._at(last, self.tested, 1)
            except _FAILURES:
                break
            if not value < lowest:
                break
            best, lowest = last, value
        return best

    def _fit(self, theta: Tensor) -> tuple[float, Tensor]:
        """Computes loss and gradient at the fixed draws; the loss is inf if a program fails."""
        self.steps.forget_gradients()
        try:
            value = self._at(theta, self.fitted, 0, learn=True)
        except _FAILURES:
            return torch.inf, torch.zeros_like(theta)
        parts = [torch.zeros_like(t) if t.grad is None else t.grad for t in self.tensors]
        gradient = torch.cat([part.detach().cpu().double().reshape(-1) for part in parts])
        return value, gradient

    def _at(self, theta: Tensor, rows: _Rows, draws: int, *, learn: bool = False) -> float:
        """Computes the loss at `theta`, in nats per datum.

        The number `draws` selects the random stream: calls with the same number and rows use the
        same draws. With `learn`, the gradient of the loss is also added to the tensors' gradients.
        """
        with torch.no_grad():
            sizes = [tensor.numel() for tensor in self.tensors]
            for tensor, part in zip(self.tensors, theta.split(sizes), strict=True):
                tensor.copy_(part.view(tensor.shape))
        total, number = 0.0, sum(len(positions) for positions, _ in rows)
        with forked(self.seed, f"fit.probe {draws}"), torch.set_grad_enabled(learn):
            for positions, batch in rows:
                progress = self.steps.per_datum(positions, batch)
                # The programs' own scales (`poutine.scale`) are left out.
                share = len(positions) / number / progress.scale
                if learn:
                    (progress.loss * share).backward()
                total += float(progress.loss.detach()) * share
        return total

    def _rows(self, positions: Tensor) -> _Rows:
        """Reads the rows at these positions, in parts that fit into memory.

        Every row is repeated, so that each row gets several draws.
        """
        most = max(self.steps.batch_size, int(_BYTES / _bytes_per_row(self.steps)))
        draws = max(1, min(_MOST_DRAWS, min(_PARTS * most, self.points) // len(positions)))
        repeated = positions.repeat(draws)
        parts = repeated.split(min(most, -(-len(repeated) // _PARTS)))
        return [(part, self.steps.reader.read(part)) for part in parts]


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
