"""Sites of a program: how their values are laid out in a flat unconstrained vector."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Transform, constraints
from torch.distributions.constraints import Constraint

from .edges import TURN, bounds_of, entry_of, support_of, transform_to
from .traces import TracedSite

_ROUNDINGS = 8.0  # rounding errors by which a transform may overshoot the bounds of an interval
_SUM = 1e-6  # how much a sum of probabilities may differ from 1, as in torch's own check


@dataclass(frozen=True)
class GlobalSite:
    """One global latent site, and how its value is laid out in the flat vector.

    Arguments:
        name: Name of the site.
        shape: Shape of the unconstrained value (plates, then event).
        support: The constraint that the site's values satisfy.
        transform: The transform from unconstrained values to the support.
        event_dim: Number of event dimensions of the value.
        plates: Name, size and dimension of each plate that the site is in.
    """

    name: str
    shape: tuple[int, ...]
    support: Constraint
    transform: Transform
    event_dim: int
    plates: tuple[tuple[str, int, int], ...]

    @property
    def size(self) -> int:
        """Number of entries of the site in the flat unconstrained vector."""
        return math.prod(self.shape)

    @property
    def is_real(self) -> bool:
        """Whether the support is the whole space, so that the transform does nothing."""
        return entry_of(self.support) is constraints.real

    def constrain(self, flat: Float[Tensor, "*particles size"]) -> tuple[Tensor, Tensor]:
        """Returns the site's value, and the log Jacobian in the shape of the log density."""
        unconstrained = flat.reshape((*flat.shape[:-1], *self.shape))
        value = self.transform(unconstrained)
        return value, self.transform.log_abs_det_jacobian(unconstrained, value)

    def flatten(self, value: Tensor) -> Tensor:
        """Converts a value to a flat unconstrained vector; refuses values outside the support."""
        require_within(self.name, self.support, value)
        return self.transform.inv(value).reshape(self.size)

    def require_valid(self, value: Tensor) -> None:
        """Refuses a value that a caller chose, if it is nan, infinite or outside the support.

        An angle may be any finite number. No later check would find a wrong value, because a
        density that is conditional on the value does not evaluate the site's prior.
        """
        wrong = ~value.isfinite()
        if entry_of(self.support) is not TURN:
            wrong |= _outside(self.support, value)
        if bool(wrong.any()):
            raise ValueError(
                f"the value of global site '{self.name}' must be finite and in the site's support, "
                f"{self.support}; got {float(value[wrong][0]):.6g}: pass "
                "`given=guide.global_values()`, or one of the draws of guide.sample_globals()"
            )


@dataclass(frozen=True)
class LatentSite:
    """One latent site of one datum, and how its value is laid out in the flat vector.

    Arguments:
        name: Name of the site.
        axis: Position of the datum axis in the site's value.
        inner_shape: Shape of one datum's unconstrained value (inner plates, then event).
        support: The constraint that the site's values satisfy.
        transform: The transform from unconstrained values to the support.
        is_real: Whether the support is the whole space, so that the transform does nothing.
        event_dim: Number of event dimensions of the value.
        plates: Name, size and dimension of each of the site's plates, except the plate over data.
    """

    name: str
    axis: int
    inner_shape: tuple[int, ...]
    support: Constraint
    transform: Transform
    is_real: bool
    event_dim: int
    plates: tuple[tuple[str, int, int], ...]

    @property
    def size(self) -> int:
        """Number of entries of the site in the flat unconstrained vector."""
        return math.prod(self.inner_shape)

    @property
    def is_plain_vector(self) -> bool:
        """Whether the site's value equals the flat vector.

        This is so for a real vector with one event dimension, without plates inside a datum.
        """
        return self.is_real and self.event_dim == 1 and len(self.inner_shape) == 1

    def unconstrained(self, flat: Float[Tensor, "rows size"]) -> Tensor:
        """Reshapes flat vectors to the unconstrained value, in the site's order of dimensions."""
        return flat.reshape(len(flat), *self.inner_shape).movedim(0, self.axis)

    def constrain(self, flat: Float[Tensor, "rows size"]) -> tuple[Tensor, Tensor]:
        """Returns the site's value, and the log Jacobian in the shape of the log density."""
        unconstrained = self.unconstrained(flat)
        value = self.transform(unconstrained)
        return value, self.transform.log_abs_det_jacobian(unconstrained, value)

    def flatten(self, value: Tensor, unconstrained: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Converts a value to flat vectors; returns them and the log Jacobian of :meth:`constrain`.

        If the unconstrained value is known, pass it: it may be more accurate than one that is
        computed from the value.
        """
        if unconstrained is None:
            require_within(self.name, self.support, value)
            unconstrained = self.transform.inv(value)
        log_jacobian = self.transform.log_abs_det_jacobian(unconstrained, value)
        rows = value.shape[self.axis]
        return unconstrained.movedim(self.axis, 0).reshape(rows, self.size), log_jacobian


def global_site(site: TracedSite) -> GlobalSite:
    """Finds the layout of a latent site that is outside the plate over data.

    Raises:
        ValueError: If the site is discrete, or no transform to its support is known.
    """
    if site.is_discrete:
        raise ValueError(
            f"latent site '{site.name}' is discrete ({type(site.distribution).__name__}) and "
            "shared by all data, but guides support only continuous global sites: make this site "
            "continuous, or fix each value in turn with pyro.condition and compare the results"
        )
    support = _with_bounds(support_of(site.distribution), lambda bound: bound)
    transform = _transform_to(site.name, support)
    with torch.no_grad():
        unconstrained = transform.inv(site.value)
    return GlobalSite(
        name=site.name,
        shape=tuple(unconstrained.shape),
        support=support,
        transform=transform,
        event_dim=site.distribution.event_dim,
        plates=_plates(site),
    )


def latent_site(site: TracedSite, plate: str, plate_dim: int) -> LatentSite:
    """Finds the layout of a latent site that is in the plate over data."""
    function, value = site.distribution, site.value
    axis = value.dim() - function.event_dim + plate_dim
    shape = value.shape[axis:]
    support = _with_bounds(support_of(function), lambda bound: _of_all_data(bound, shape))
    _check_support(site.name, support, shape)
    transform = _transform_to(site.name, support)
    with torch.no_grad():
        unconstrained = transform.inv(value)
    return LatentSite(
        name=site.name,
        axis=axis,
        inner_shape=tuple(unconstrained.movedim(axis, 0).shape[1:]),
        support=support,
        transform=transform,
        is_real=entry_of(support) is constraints.real,
        event_dim=function.event_dim,
        plates=tuple(inner for inner in _plates(site) if inner[0] != plate),
    )


def _plates(site: TracedSite) -> tuple[tuple[str, int, int], ...]:
    """Name, size and dimension of a site's plates; sequential plates (loops) are left out."""
    return tuple((f.name, f.size, f.dim) for f in site.frames if f.dim is not None)


def _transform_to(name: str, support: Constraint) -> Transform:
    """Finds the transform to a site's support; raises an error if no transform is known."""
    try:
        return transform_to(support)
    except (NotImplementedError, TypeError) as error:
        raise ValueError(
            f"latent site '{name}' has the support {support}, and pyro_vae has no transform from "
            "unconstrained numbers to it: compute the value from another latent. For a point on a "
            "sphere, sample a normal z and use z / |z|, as "
            "pyro.infer.reparam.ProjectedNormalReparam does"
        ) from error


def require_within(name: str, support: Constraint, value: Tensor) -> None:
    """Refuses values that lie outside a site's support by more than rounding; nan is accepted.

    The density outside the support is zero, and no unconstrained value corresponds to such values.
    """
    if entry_of(support) is constraints.real:
        return
    outside = _outside(support, value)
    if bool(outside.any()):
        raise ValueError(
            f"latent site '{name}' must have values in the support that it has in the model, "
            f"{support}; got {float(value[outside][0]):.6g}: let the guide sample this site from a "
            "distribution with that support, such as a dist.TransformedDistribution of a normal"
        )


def _outside(support: Constraint, value: Tensor) -> Tensor:
    """Marks the entries of a value that lie outside a support's bounds by more than rounding."""
    low, high = bounds_of(support, value)
    rounding = _ROUNDINGS * torch.finfo(value.dtype).eps
    outside = (value < low - rounding * low.abs()) | (value > high + rounding * high.abs())
    if entry_of(support) is constraints.simplex:
        off = (value.sum(dim=-1, keepdim=True) - 1).abs()
        outside = outside | (off > _SUM + rounding * value.shape[-1])
    return outside


def _of_all_data(bound: Tensor, shape: torch.Size) -> Tensor:
    """Reduces a bound that was expanded over the data to one row; keeps any other bound."""
    axis = -len(shape)
    # Entries share memory along an axis that was expanded.
    expanded = bound.dim() >= -axis and bound.shape[axis] > 1 and bound.stride(axis) == 0
    return bound.narrow(axis, 0, 1) if expanded else bound


def _with_bounds(support: Constraint, change: Callable[[Tensor], Tensor]) -> Constraint:
    """Returns a copy of a support in which `change` is applied to each bound.

    The new bounds are constants without a gradient, so they stay the same if training moves a bound
    of the model.
    """
    if isinstance(support, constraints.independent):
        inner = _with_bounds(support.base_constraint, change)
        return constraints.independent(inner, support.reinterpreted_batch_ndims)
    bounds = {
        name: change(bound.detach())
        for name, bound in vars(support).items()
        if isinstance(bound, Tensor)
    }
    if not bounds:
        return support
    constant = copy.copy(support)
    vars(constant).update(bounds)
    return constant


def _check_support(name: str, support: Constraint, shape: torch.Size) -> None:
    """Refuses a support whose bounds differ between data.

    `shape` is the shape of the site's value, starting at the datum axis.
    """
    bounds = [bound for bound in vars(entry_of(support)).values() if isinstance(bound, Tensor)]
    if any(bound.dim() >= len(shape) and bound.shape[-len(shape)] > 1 for bound in bounds):
        raise ValueError(
            f"the support of latent site '{name}' must have the same bounds for all data: sample "
            "this site from a distribution with constant bounds, such as Uniform(0, 1), and "
            "rescale the value"
        )
