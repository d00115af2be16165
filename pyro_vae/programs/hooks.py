"""Optional methods of a model, and where they are looked up."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor
from torch.distributions import MultivariateNormal

from .._types import Batch, ProgramLike


class ModelHooks(NamedTuple):
    """Optional methods of a model; `None` for each method that the model lacks.

    Arguments:
        prototype: `prototype()` returns a few rows of data, on which the program is run to find
            its sites.
        check: `check(y)` refuses data outside the likelihood's support.
        decode: `decode(z, *covariates)` returns the mean of p(y | z).
        sample_data: `sample_data(z, *covariates)` draws from p(y | z).
        sample_missing: `sample_missing(z, *covariates)` draws values of missing entries from
            p(y | z).
        exact_posterior: `exact_posterior(*batch)` returns p(z | y) as a `MultivariateNormal`.
        log_evidence: `log_evidence(*batch)` returns log p(y), `(batch,)`, in nats.
    """

    prototype: Callable[[], Tensor | Batch] | None = None
    check: Callable[[Tensor], None] | None = None
    decode: Callable[..., Tensor] | None = None
    sample_data: Callable[..., Tensor] | None = None
    sample_missing: Callable[..., Tensor] | None = None
    exact_posterior: Callable[..., MultivariateNormal] | None = None
    log_evidence: Callable[..., Tensor] | None = None


def hooks_of(model: ProgramLike) -> ModelHooks:
    """Finds a model's optional methods.

    If the model is itself a bound method, the methods of the object that it belongs to are found.
    """
    owner, names = owner_of(model), ModelHooks._fields
    return ModelHooks(*(getattr(model, name, getattr(owner, name, None)) for name in names))


def owner_of(program: Any) -> Any:
    """The object that a bound method belongs to; any other program is returned unchanged."""
    return getattr(program, "__self__", program)


def name_of(program: Any) -> str:
    """The name of a function or a method; for any other object, the name of its class."""
    return getattr(program, "__name__", type(program).__name__)
