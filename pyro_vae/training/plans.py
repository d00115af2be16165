"""How to train, as `fit` was told: checked, and without what it is told about data."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .._types import Batch
from ..objectives import Objective
from .optimizers import OptimizerFactory, SchedulerFactory
from .products import Products


@dataclass(frozen=True)
class Plan:
    """How to train, as `fit` was told."""

    num_epochs: int
    batch_size: int
    objective: Any  # an ELBO; the base class does not declare differentiable_loss
    optimizer: OptimizerFactory
    scheduler: SchedulerFactory
    patience: int | None
    warmup: int
    per_batch: Callable[[Tensor], Tensor] | None
    train_model: bool
    seed: int
    progress: bool | None
    compile: bool | None = None
    shards: int | None = None
    precision: Products | None = None

    def __post_init__(self) -> None:
        for name in ("num_epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1, got {getattr(self, name)}")
        if not 0 <= self.warmup < self.num_epochs:
            raise ValueError(
                f"the KL warm-up takes {self.warmup} of {self.num_epochs} epochs: it has to end "
                "before training does, or the model is never trained on the ELBO"
            )
        if self.objective is not None and not hasattr(self.objective, "differentiable_loss"):
            raise TypeError(
                f"{type(self.objective).__name__} has no differentiable_loss, which fit needs; "
                "use Trace_ELBO(), TraceMeanField_ELBO() or TraceEnum_ELBO(), or train it in a "
                "loop of your own with pyro.infer.SVI and pv.minibatch"
            )
        if isinstance(self.objective, Objective):
            if self.warmup:
                raise ValueError(
                    f"warmup= weighs the KL term of Pyro's ELBOs, not of {self.objective}: use "
                    f"objective=BetaELBO(LinearWarmup({self.warmup})) in its place"
                )
            self.objective.check(self.num_epochs)

    def told(self, held_out: Batch | None) -> list[object]:
        """What has to be the same in all processes."""
        numbers = (self.num_epochs, self.batch_size, self.patience, self.warmup, self.seed)
        return [*numbers, self.train_model, self.shards, self.precision, held_out is None]

    def rounded(self) -> AbstractContextManager[None]:
        """Around training steps: products are made as was asked for."""
        return nullcontext() if self.precision is None else self.precision.active()

    def kl_weight(self, epoch: float) -> float:
        """Rises linearly to 1 during the warm-up; `epoch` counts from 0 and may be a fraction."""
        return 1.0 if self.warmup == 0 else min(1.0, epoch / self.warmup)
