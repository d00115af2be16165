"""What is minimized, and by what: objectives, optimizers and schedules."""

import math
from collections.abc import Callable
from typing import Any

import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ..objectives import BetaELBO, Objective
from ..programs import Program

OptimizerFactory = Callable[[list[Tensor]], torch.optim.Optimizer]
SchedulerFactory = Callable[[torch.optim.Optimizer], Any]


def adam(parameters: list[Tensor]) -> torch.optim.Optimizer:
    """Adam with step size 2e-3, the default optimizer."""
    return torch.optim.Adam(parameters, lr=2e-3)


def adam_with(lr: float) -> OptimizerFactory:
    """Adam with a step size of one's own."""
    return lambda parameters: torch.optim.Adam(parameters, lr=lr)


def constant(optimizer: torch.optim.Optimizer) -> Any:
    """Leaves the step size as it is."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0)


def hold_then_fall(num_epochs: int) -> SchedulerFactory:
    r"""The default schedule: constant for half of the epochs, then down to zero along a cosine.

    The first half travels; the second one settles, since at a constant step size the parameters
    keep jittering with the noise of the gradient, which costs a fraction of a nat.

    References:
        | SGDR: Stochastic Gradient Descent with Warm Restarts (Loshchilov & Hutter, 2017)
        | https://arxiv.org/abs/1608.03983

    Example:
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> hold_then_fall(4)(optimizer).lr_lambdas[0](3)
        0.5
    """

    def factor(epoch: int) -> float:
        progress = max(0.0, 2 * epoch / num_epochs - 1)  # 0 until half time, 1 at the end
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    return lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


class NoteScales(Messenger):
    """Notes whether a program scales a site by itself, as `poutine.scale` and KL annealing do."""

    def __init__(self) -> None:
        super().__init__()
        self.found = False

    def _pyro_sample(self, msg: Any) -> None:
        if not site_is_subsample(msg):
            scale = msg["scale"]
            self.found |= isinstance(scale, Tensor) or scale != 1


class Unscaled(Messenger):
    """Takes away every scale that a program gives its sites: what is reported has none.

    The factor N / B of a mini-batch stands further out, and stays.
    """

    def _pyro_sample(self, msg: Any) -> None:
        msg["scale"] = 1.0


def objective_of(asked: Any, program: Program) -> Any:
    """The objective; one that sums discrete sites out where there are such.

    Arguments:
        asked: What the caller asked for, if anything.
        program: The program.
    """
    names = program.structure.enumerated
    by_rows = program.structure.combinations is not None
    if asked is None and by_rows:
        return BetaELBO(1.0)
    if asked is None:
        nesting = program.structure.nesting
        return TraceEnum_ELBO(max_plate_nesting=nesting) if names else Trace_ELBO()
    if by_rows and isinstance(asked, TraceEnum_ELBO):
        raise ValueError(
            f"TraceEnum_ELBO enumerates {list(names)} along dimensions of their own, over which "
            "this program does not broadcast; leave objective= out, or use "
            "pv.objectives.BetaELBO(1.0), which repeats rows for their values"
        )
    if names and not isinstance(asked, TraceEnum_ELBO | Objective):
        raise ValueError(
            f"{type(asked).__name__} would draw the discrete latent site(s) {list(names)} from "
            "the prior; use TraceEnum_ELBO, which sums them out, or leave objective= out"
        )
    return asked
