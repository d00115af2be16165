"""What is minimized: the objective, with the KL term weighed while it warms up."""

from typing import Any

from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample

from ..objectives import Objective
from ..programs import Program


class WeighKL(Messenger):
    """Scales the latent sites of model and guide, which is their KL term."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and not site_is_subsample(msg):
            msg["scale"] = msg["scale"] * self.weight


def objective_of(asked: Any, program: Program) -> Any:
    """The objective; one that sums discrete sites out where there are such."""
    names = program.structure.enumerated
    if asked is None:
        nesting = program.structure.nesting
        return TraceEnum_ELBO(max_plate_nesting=nesting) if names else Trace_ELBO()
    if names and not isinstance(asked, TraceEnum_ELBO | Objective):
        raise ValueError(
            f"{type(asked).__name__} would draw the discrete latent site(s) {list(names)} from "
            "the prior; use TraceEnum_ELBO, which sums them out, or leave objective= out"
        )
    return asked
