"""The training options of `fit`, checked; data are not among them."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from .._types import Batch
from ..objectives import Objective
from .callbacks import Callback, EarlyStopping, StopWhenConverged
from .checkpoints import Checkpoint, in_words
from .optimizers import OptimizerFactory, SchedulerFactory
from .products import Products


@dataclass(frozen=True)
class Plan:
    """The training options of `fit`."""

    num_epochs: int
    batch_size: int
    objective: Any  # an ELBO; the base class does not declare differentiable_loss
    optimizer: OptimizerFactory | torch.optim.Optimizer
    scheduler: SchedulerFactory
    train_model: bool
    callbacks: tuple[Callback, ...]
    checkpoint: Checkpoint | None
    compile: bool | None
    precision: Products | None
    seed: int
    progress: bool | None

    def __post_init__(self) -> None:
        for name in ("num_epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1, got {getattr(self, name)}")
        if self.objective is not None and not hasattr(self.objective, "differentiable_loss"):
            raise TypeError(
                f"{type(self.objective).__name__} has no differentiable_loss, which fit needs; "
                "use Trace_ELBO(), TraceMeanField_ELBO() or TraceEnum_ELBO(), or write your own "
                "loop with pyro.infer.SVI and pv.minibatch"
            )
        if isinstance(self.objective, Objective):
            self.objective.check(self.num_epochs)

    @property
    def warmup(self) -> float:
        """Epochs of the objective's schedule."""
        return self.objective.warmup if isinstance(self.objective, Objective) else 0.0

    def told(self, held_out: Batch | None, patience: int | None) -> list[object]:
        """Options that have to be the same in all processes."""
        numbers = (self.num_epochs, self.batch_size, patience, self.seed)
        return [*numbers, self.train_model, self.precision, held_out is None]

    def identity(self) -> dict[str, str]:
        """Options that have to be the same when a run resumes from a checkpoint."""
        names = ("num_epochs", "batch_size", "objective", "train_model", "compile", "precision")
        kinds = (EarlyStopping, StopWhenConverged)
        stopping = [in_words(part) for part in self.callbacks if isinstance(part, kinds)]
        given = {name: in_words(getattr(self, name)) for name in (*names, "seed")}
        return given | {"patience": str(stopping)}

    def rounded(self) -> AbstractContextManager[None]:
        """Around training steps: products are computed at the requested precision."""
        return nullcontext() if self.precision is None else self.precision.active()
