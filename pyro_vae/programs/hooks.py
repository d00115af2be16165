"""Optional methods of a model, and where they are looked up."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from .._types import Batch, ProgramLike


class ModelHooks(NamedTuple):
    """Methods that a model may have; `None` for those it lacks.

    Arguments:
        prototype: `()`: a few rows of data, with which the program is run to find its sites.
        check: `(y)`: refuses data outside the likelihood's support.
        decode: `(z, *covariates)`: mean of p(y | z).
        sample_data: `(z, *covariates)`: draws from p(y | z).
        sample_missing: `(z, *covariates)`: draws from p(y | z) of entries that are missing.
        exact_posterior: `(*batch)`: p(z | y) as a `MultivariateNormal`.
        log_evidence: `(*batch)`: log p(y), `(batch,)`, in nats.
    """

    prototype: Callable[[], Tensor | Batch] | None = None
    check: Callable[[Tensor], None] | None = None
    decode: Callable[..., Tensor] | None = None
    sample_data: Callable[..., Tensor] | None = None
    sample_missing: Callable[..., Tensor] | None = None
    exact_posterior: Callable[..., Any] | None = None
    log_evidence: Callable[..., Any] | None = None


def hooks_of(model: ProgramLike) -> ModelHooks:
    """The optional methods of a model; if it is a bound method, those of its object too."""
    owner, names = owner_of(model), ModelHooks._fields
    return ModelHooks(*(getattr(model, name, getattr(owner, name, None)) for name in names))


def owner_of(program: Any) -> Any:
    """The object of a bound method; else the program itself."""
    return getattr(program, "__self__", program)


def name_of(program: Any) -> str:
    """The name of a function or a method; for any other object, the name of its class."""
    return getattr(program, "__name__", type(program).__name__)
