"""The options of `fit`, except the data, after they have been checked."""

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from pyro.infer import ELBO

from .._types import Batch
from ..objectives import Objective
from ..objectives.base import Differentiable
from .callbacks import Callback, EarlyStopping, StopWhenConverged
from .checkpoints import Checkpoint, in_words
from .optimizers import OptimizerFactory, SchedulerFactory, hold_then_fall
from .products import Products

_FEWEST_EPOCHS = 50  # in the default budget
_FEWEST_STEPS = 3_000  # in the default budget; at step size 2e-3 a weight can move by a few units


@dataclass(frozen=True)
class Plan:
    """The options of `fit` except the data."""

    num_epochs: int | None
    batch_size: int
    objective: ELBO | None
    optimizer: OptimizerFactory | torch.optim.Optimizer
    scheduler: SchedulerFactory | None
    train_model: bool
    callbacks: tuple[Callback, ...]
    checkpoint: Checkpoint | None
    compile: bool | None
    precision: Products | None
    seed: int
    progress: bool | None

    def __post_init__(self) -> None:
        if self.objective is not None and not isinstance(self.objective, Differentiable):
            raise TypeError(
                "`objective` must have a method differentiable_loss; got "
                f"{type(self.objective).__name__} without this method: "
                "pass Trace_ELBO(), TraceMeanField_ELBO() or TraceEnum_ELBO(), or write your own "
                "loop with pyro.infer.SVI and pv.minibatch"
            )
        if isinstance(self.objective, Objective) and self.num_epochs is not None:
            self.objective.check(self.num_epochs)

    def over(self, num_data: int) -> "Plan":
        """Returns a copy in which the number of epochs and the schedule suit `num_data` rows."""
        if self.num_epochs is not None:
            return replace(self, scheduler=self.scheduler or hold_then_fall(self.num_epochs))
        steps_per_epoch = math.ceil(num_data / self.batch_size)
        budget = max(_FEWEST_EPOCHS, math.ceil(_FEWEST_STEPS / steps_per_epoch))
        callbacks = (*self.callbacks, StopWhenConverged())
        return replace(self, num_epochs=budget, callbacks=callbacks).over(num_data)

    @property
    def epochs(self) -> int:
        """Number of epochs, which is known only after a call of :meth:`over`."""
        assert self.num_epochs is not None
        return self.num_epochs

    @property
    def warmup(self) -> float:
        """Length of the objective's schedule, in epochs."""
        return self.objective.warmup if isinstance(self.objective, Objective) else 0.0

    def common_options(self, held_out: Batch | None, patience: int | None) -> list[object]:
        """Returns the options that must be the same in all processes."""
        numbers = (self.num_epochs, self.batch_size, patience, self.seed)
        return [*numbers, self.train_model, self.precision, held_out is None]

    def identity(self) -> dict[str, str]:
        """Returns a description of each option that must be the same when a run is resumed."""
        names = ("num_epochs", "batch_size", "objective", "train_model", "compile", "precision")
        kinds = (EarlyStopping, StopWhenConverged)
        stopping = [in_words(part) for part in self.callbacks if isinstance(part, kinds)]
        options = {name: in_words(getattr(self, name)) for name in (*names, "seed")}
        return options | {"patience": str(stopping)}

    def rounded(self) -> AbstractContextManager[None]:
        """Computes matrix products at the requested precision inside the block."""
        return nullcontext() if self.precision is None else self.precision.active()
