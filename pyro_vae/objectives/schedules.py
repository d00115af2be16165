"""Schedules of the weight of the KL term: values that turn an epoch into a weight."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@runtime_checkable
class Schedule(Protocol):
    """A weight that depends on how far training has come."""

    def __call__(self, epoch: float | int) -> float:
        """The weight after so many epochs, which count from 0 and may be a fraction."""

    def check(self, num_epochs: int) -> None:
        """Refuses a training run that ends before the schedule has done what it is for."""


@dataclass(frozen=True)
class LinearWarmup:
    r"""Rises linearly from `start` to `end`, and stays there.

    .. math:: \beta(t) = \text{start} + (\text{end} - \text{start}) \min(1, t / \text{epochs})

    Arguments:
        epochs: How long it rises.
        start: The first weight.
        end: The last weight.

    Raises:
        ValueError: If `epochs` is not positive, or a weight is negative.

    References:
        | Generating Sentences from a Continuous Space (Bowman et al., 2016)
        | https://arxiv.org/abs/1511.06349

    Example:
        >>> LinearWarmup(epochs=10)(5.0)
        0.5
    """

    epochs: float | int
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        _check("epochs", self.epochs, self.start, self.end)

    def __call__(self, epoch: float | int) -> float:
        """The weight after so many epochs."""
        return self.start + (self.end - self.start) * min(1.0, epoch / self.epochs)

    def check(self, num_epochs: int) -> None:
        """Refuses training that ends before the last weight is reached."""
        if self.epochs >= num_epochs:
            raise ValueError(
                f"the KL warm-up takes {self.epochs} of {num_epochs} epochs: it has to end before "
                "training does, or the model is never trained at the last weight"
            )


@dataclass(frozen=True)
class Cyclic:
    r"""Rises linearly during the first part of every cycle, stays for the rest, and starts anew.

    .. math:: \beta(t) = \text{start} + (\text{end} - \text{start})
        \min\left(1, \frac{(t \bmod T) / T}{\text{rising}}\right)

    Arguments:
        period: Epochs of one cycle, :math:`T`.
        rising: Share of a cycle in which the weight rises.
        start: The weight at the start of a cycle.
        end: The weight at its end.

    Raises:
        ValueError: If `period` is not positive, `rising` is not in (0, 1], or a weight is negative.

    References:
        | Cyclical Annealing Schedule: A Simple Approach to Mitigating KL Vanishing
          (Fu et al., 2019)
        | https://arxiv.org/abs/1903.10145

    Example:
        >>> [Cyclic(period=10)(epoch) for epoch in (0.0, 2.5, 7.0, 12.5)]
        [0.0, 0.5, 1.0, 0.5]
    """

    period: float | int
    rising: float = 0.5
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        _check("period", self.period, self.start, self.end)
        if not 0 < self.rising <= 1:
            raise ValueError(f"rising is a share of a cycle, in (0, 1], got {self.rising}")

    def __call__(self, epoch: float | int) -> float:
        """The weight after so many epochs."""
        share = (epoch % self.period) / self.period
        return self.start + (self.end - self.start) * min(1.0, share / self.rising)

    def check(self, num_epochs: int) -> None:
        """Refuses training that ends within the first cycle."""
        if self.period > num_epochs:
            raise ValueError(
                f"a cycle of the KL weight takes {self.period} epochs, and training {num_epochs}: "
                "let it go through one cycle at least"
            )


def _check(name: str, length: float | int, start: float, end: float) -> None:
    if not length > 0:
        raise ValueError(f"{name} is positive, got {length}")
    if start < 0 or end < 0:
        raise ValueError(f"a weight of the KL term is at least 0, got start {start}, end {end}")
