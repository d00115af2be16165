r"""Densities and draws near the edges of a support, where the value itself is rounded.

A sparse prior such as Gamma(0.03, 0.03) has much of its mass below the smallest floating-point
number, and Beta(0.03, 0.03) has much of its mass where x rounds to 1. The unconstrained value u
(log x, the logit of x, or stick-breaking logits) is not rounded there, and the density of u is
computed from u alone. For a gamma distribution,

.. math:: \log p(u) = a u - r e^u + a \log r - \log \Gamma(a), \qquad x = e^u \sim \Gamma(a, r)

Draws do not pass through x either: the logarithm of a gamma variate :math:`G_a \sim \Gamma(a, 1)`
is drawn directly. With :math:`E \sim \mathrm{Exp}(1)` independent of :math:`G_{a + 1}`,

.. math:: \log G_a = \log G_{a + 1} - E / a .

The log density of x is the log density of u minus the log Jacobian, and these two are finite.

References:
    | Generating Random Variates Using Transformations with Small Shape (Marsaglia & Tsang, 2000)
    | https://doi.org/10.1145/358407.358414
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from pyro.distributions import SineBivariateVonMises, SineSkewed
from pyro.distributions.torch_distribution import MaskedDistribution
from pyro.distributions.transforms import OrderedTransform
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import (
    AffineTransform,
    Beta,
    ComposeTransform,
    Dirichlet,
    ExpTransform,
    Gamma,
    Independent,
    InverseGamma,
    Kumaraswamy,
    MixtureSameFamily,
    SigmoidTransform,
    StickBreakingTransform,
    TransformedDistribution,
    VonMises,
    Weibull,
    biject_to,
    constraints,
)
from torch.distributions.constraints import Constraint
from torch.distributions.transforms import IndependentTransform, TanhTransform, Transform
from torch.distributions.utils import broadcast_all
from torch.nn.functional import logsigmoid

from .._types import Distribution
from .masks import base_of

_UNCONSTRAINED = "_unconstrained"  # key of a site's `infer`, where its unconstrained value is kept
# Newer versions of torch have this type for the support of a mixture; older ones return the
# support of a component.
_MIXED = getattr(constraints, "MixtureSameFamilyConstraint", ())


# Transforms to a support, with values that stay inside the support despite rounding.


class Positive(ExpTransform):
    """Transform from u to :math:`x = e^u`, with x limited to positive and finite numbers."""

    def _call(self, x: Tensor) -> Tensor:
        limits = torch.finfo(x.dtype)
        return x.exp().clamp(limits.tiny, limits.max)


class Simplex(StickBreakingTransform):
    """Stick-breaking transform, computed with logarithms.

    What is left of the stick is computed as a product, since 1 minus a sum would lose digits.
    """

    def log_values(self, x: Tensor) -> Tensor:
        """Logarithms of the simplex coordinates, `(..., K)`, for K - 1 logits `x`."""
        taken, rest = self._sticks(x)
        left = rest.cumsum(-1)
        before = torch.cat([torch.zeros_like(left[..., :1]), left], dim=-1)
        return before + torch.cat([taken, torch.zeros_like(left[..., :1])], dim=-1)

    def of_logs(self, log_values: Tensor) -> Tensor:
        """Inverse of `log_values`: returns logits. The coordinates need not be normalized."""
        tails = log_values.flip(-1).logcumsumexp(-1).flip(-1)
        return log_values[..., :-1] - tails[..., 1:] + _offsets(tails[..., 1:])

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Log Jacobian, computed from the logits `x` alone, because `y` may be rounded."""
        rest = self._sticks(x)[1]
        return (self.log_values(x)[..., :-1] + rest).sum(-1)

    def _sticks(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logs of the two shares into which each step breaks the stick: one taken off, one left."""
        x = x - _offsets(x)
        return logsigmoid(x), logsigmoid(-x)

    def _call(self, x: Tensor) -> Tensor:
        return self.log_values(x).softmax(-1).clamp(min=torch.finfo(x.dtype).tiny)

    def _inverse(self, y: Tensor) -> Tensor:
        return self.of_logs(y.clamp(min=torch.finfo(y.dtype).tiny).log())


def _offsets(x: Tensor) -> Tensor:
    r"""Offsets to subtract from a simplex's logits, so that logits of 0 give equal parts."""
    return torch.arange(x.shape[-1], 0, -1, dtype=x.dtype, device=x.device).log()


_HALF_LINES = (type(constraints.positive), type(constraints.nonnegative))
_ANGLES = (VonMises, SineBivariateVonMises, SineSkewed)
TURN = constraints.interval(-math.pi, math.pi)  # the support of an angle


def support_of(distribution: Distribution) -> Any:
    """The support of a distribution: `distribution.support`, except in two cases.

    The support of angles is one full turn. Torch gives them the real line, but the integral of a
    periodic density over the real line is infinite. The support of a transformed distribution, such
    as a shifted log-normal or a log-uniform, is the image of the support before the last transform.
    Torch ignores the bounds before this transform, and returns the whole range of the transform.
    """
    entry = TURN if _is_angle(distribution) else _image(base_of(distribution))
    if entry is None:
        return distribution.support
    dims = len(distribution.event_shape)
    return constraints.independent(entry, dims) if dims else entry


def _is_angle(inner: Any) -> bool:
    """Whether the values of a distribution are angles.

    A mixture has angles as values if its components have.
    """
    while not isinstance(inner, _ANGLES):
        if isinstance(inner, MixtureSameFamily):
            inner = inner.component_distribution
        elif isinstance(inner, MaskedDistribution | Independent):
            inner = inner.base_dist
        else:
            return False
    return True


def _image(x: Any) -> Constraint | None:
    """Support of an entry of `x`, found by applying its last transform to bounds of the input.

    `None` means that torch's support can be used. This is also the answer if the values before the
    transform are discrete or have no bounds, or if the transform is neither increasing for all
    entries nor decreasing for all entries.
    """
    if not isinstance(x, TransformedDistribution) or not x.transforms:
        return None
    *before, last = (part for transform in x.transforms for part in _parts(transform))
    declared = entry_of(x.support)
    own = type(x).__name__ != "TransformedDistribution"  # the base of a Gumbel has other bounds
    if own and not (isinstance(last, AffineTransform) and declared is constraints.real):
        return None
    base: Any = TransformedDistribution(x.base_dist, before) if before else x.base_dist
    inner = entry_of(base.support if own and before else support_of(base))
    bounds, rises = _ends(inner), _rises(last)
    if inner.is_discrete or bounds == (None, None) or rises is None:
        return None
    ends = zip(bounds, _ends(last.domain), _ends(last.codomain)[:: 1 if rises else -1], strict=True)
    low, high = [_moved(last, *end) for end in ends][:: 1 if rises else -1]
    if _equal(low, _ends(declared)[0]) and _equal(high, _ends(declared)[1]):
        return None
    if high is None:
        return constraints.greater_than(low)
    return constraints.less_than(high) if low is None else constraints.interval(low, high)


def _ends(constraint: Constraint) -> tuple[Any, Any]:
    """Lower and upper bound of a constraint on numbers; `None` stands for a missing bound."""
    entry = entry_of(constraint)
    return getattr(entry, "lower_bound", None), getattr(entry, "upper_bound", None)


def _rises(transform: Transform) -> bool | None:
    """Returns true if a transform of numbers is increasing, and false if it is decreasing.

    `None` if the transform is neither increasing for all entries nor decreasing for all entries.
    """
    try:
        sign = torch.as_tensor(transform.sign, device="cpu")
    except NotImplementedError:
        return None
    if transform.domain.event_dim or not (bool((sign > 0).all()) or bool((sign < 0).all())):
        return None
    return bool((sign > 0).all())


def _moved(transform: Transform, bound: Any, limit: Any, image: Any) -> Any:
    """Applies a transform to a bound of its argument.

    If there is no bound, or if the bound is `limit`, where the transform's domain ends, the result
    is `image`, the corresponding end of the codomain.
    """
    if bound is None or _equal(bound, limit):
        return image  # computed, the logit of 1 would be finite
    return transform(torch.as_tensor(bound, device=None if isinstance(bound, Tensor) else "cpu"))


def _equal(one: Any, other: Any) -> bool:
    """Whether two bounds are the same; `None` stands for no bound."""
    if one is None or other is None:
        return one is other
    return bool((torch.as_tensor(one).cpu() == torch.as_tensor(other).cpu()).all())


def _parts(transform: Transform) -> list[Transform]:
    """Lists the transforms that a composed transform applies, in order.

    For any other transform, the list contains only the transform itself.
    """
    return transform.parts if isinstance(transform, ComposeTransform) else [transform]


def entry_of(support: Constraint) -> Constraint:
    """Returns the constraint on a single entry, without `independent` wrappers."""
    support = plain(support)
    while isinstance(support, constraints.independent):
        support = plain(support.base_constraint)
    return support


def bounds_of(support: Constraint, value: Tensor) -> tuple[Tensor, Tensor]:
    """Lower and upper bounds of a support's entries; infinite where the support has no bound."""
    low, high = (0.0, 1.0) if entry_of(support) is constraints.simplex else _ends(support)
    ends = (-torch.inf if low is None else low, torch.inf if high is None else high)
    low, high = (torch.as_tensor(end, device=value.device).to(value) for end in ends)
    return low, high


def plain(support: Constraint) -> Constraint:
    """Replaces a mixture's support by a component's support; returns other supports unchanged."""
    while isinstance(support, _MIXED):
        support = support.base_constraint
    return support


def transform_to(support: Constraint) -> Transform:
    """Returns a transform from unconstrained values to a support.

    For positive numbers and the simplex, this transform rounds no value to the support's edge. For
    other supports the transform is `biject_to(support)`.
    """
    support = plain(support)
    if isinstance(support, constraints.independent):
        inner = transform_to(support.base_constraint)
        return IndependentTransform(inner, support.reinterpreted_batch_ndims)
    if support is constraints.simplex:
        return Simplex()
    if isinstance(support, _HALF_LINES):
        low = support.lower_bound
        if not isinstance(low, Tensor) and low == 0:
            return Positive()
    return biject_to(support)


# Distributions of the unconstrained value.


@runtime_checkable
class Unconstrained(Protocol):
    """Distribution of an unconstrained value u."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of the unconstrained value u."""

    def sample(self, shape: torch.Size, /) -> Tensor:
        """Returns draws of the unconstrained value u."""


def _log_gamma(concentration: Tensor, shape: torch.Size) -> Tensor:
    """Returns draws of log G, where G has a gamma distribution of rate 1."""
    concentration = concentration.expand(shape)
    larger = torch._standard_gamma(concentration + 1)
    return larger.log() - torch.empty_like(larger).exponential_() / concentration


@dataclass(frozen=True)
class _LogGamma:
    """Distribution of log x, where x has a gamma distribution."""

    x: Gamma

    def log_prob(self, value: Tensor) -> Tensor:
        shape, rate = self.x.concentration, self.x.rate
        return shape * (value + rate.log()) - rate * value.exp() - shape.lgamma()

    def sample(self, shape: torch.Size) -> Tensor:
        size = shape + self.x.batch_shape
        return _log_gamma(self.x.concentration, size) - self.x.rate.log()


@dataclass(frozen=True)
class _MinusLogGamma:
    """Distribution of log 1/x, where x has a gamma distribution."""

    inverse: _LogGamma

    def log_prob(self, value: Tensor) -> Tensor:
        return self.inverse.log_prob(-value)

    def sample(self, shape: torch.Size) -> Tensor:
        return -self.inverse.sample(shape)


@dataclass(frozen=True)
class _LogWeibull:
    r"""Distribution of log x, where x has a Weibull distribution.

    With scale :math:`\lambda` and shape k, :math:`(x / \lambda)^k` has an exponential distribution.
    """

    x: Weibull

    def log_prob(self, value: Tensor) -> Tensor:
        shape = self.x.concentration
        log_exponential = shape * (value - self.x.scale.log())
        return shape.log() + log_exponential - log_exponential.exp()

    def sample(self, shape: torch.Size) -> Tensor:
        power = self.x.concentration.expand(shape + self.x.batch_shape)
        return self.x.scale.log() + torch.empty_like(power).exponential_().log() / power


@dataclass(frozen=True)
class _LogitBeta:
    """Distribution of the logit of p, where p has a beta distribution."""

    p: Beta

    def log_prob(self, value: Tensor) -> Tensor:
        one, zero = self.p.concentration1, self.p.concentration0
        constant = (one + zero).lgamma() - one.lgamma() - zero.lgamma()
        return one * logsigmoid(value) + zero * logsigmoid(-value) + constant

    def sample(self, shape: torch.Size) -> Tensor:
        size = shape + self.p.batch_shape
        one, zero = (_log_gamma(c, size) for c in (self.p.concentration1, self.p.concentration0))
        return one - zero


@dataclass(frozen=True)
class _LogitKumaraswamy:
    """Distribution of the logit of p, where p has a Kumaraswamy distribution.

    With the parameters a and b, :math:`1 - (1 - p^a)^b` is uniform.
    """

    p: Kumaraswamy

    def log_prob(self, value: Tensor) -> Tensor:
        one, zero = self.p.concentration1, self.p.concentration0
        power = one * logsigmoid(value)
        rest = (zero - 1) * _log1mexp(power)
        return one.log() + zero.log() + power + logsigmoid(-value) + rest

    def sample(self, shape: torch.Size) -> Tensor:
        one, zero = broadcast_all(self.p.concentration1, self.p.concentration0)
        one, zero = (part.expand(shape + self.p.batch_shape) for part in (one, zero))
        log_p = _log1mexp(-torch.empty_like(zero).exponential_() / zero) / one
        return log_p - _log1mexp(log_p)


def _log1mexp(x: Tensor) -> Tensor:
    r"""Computes :math:`\log(1 - e^x)` for negative x, without loss of digits."""
    small = x > -0.6931471805599453  # minus log 2: either formula is accurate on its side
    near = (-x.where(small, -1.0).expm1()).log()
    return near.where(small, (-x.where(~small, -1.0).exp()).log1p())


@dataclass(frozen=True)
class _BrokenDirichlet:
    """Distribution of the stick-breaking logits of a Dirichlet."""

    simplex: Dirichlet

    def log_prob(self, value: Tensor) -> Tensor:
        shape, to = self.simplex.concentration, Simplex()
        constant = shape.sum(-1).lgamma() - shape.lgamma().sum(-1)
        density = ((shape - 1) * to.log_values(value)).sum(-1) + constant
        return density + to.log_abs_det_jacobian(value, value)

    def sample(self, shape: torch.Size) -> Tensor:
        size = shape + self.simplex.batch_shape + self.simplex.event_shape
        return Simplex().of_logs(_log_gamma(self.simplex.concentration, size))


_KNOWN: Mapping[tuple[type, type], Callable[[Any], Unconstrained]] = {
    (Gamma, ExpTransform): _LogGamma,
    (InverseGamma, ExpTransform): lambda x: _MinusLogGamma(_LogGamma(x.base_dist)),
    (Weibull, ExpTransform): _LogWeibull,
    (Beta, SigmoidTransform): _LogitBeta,
    (Kumaraswamy, SigmoidTransform): _LogitKumaraswamy,
    (Dirichlet, Simplex): _BrokenDirichlet,
}


def unconstrained(x: Any, transform: Transform) -> Unconstrained | None:
    """Distribution of u if `transform(u)` has distribution `x`; `None` if no formula is known."""
    if not type(x).__module__.startswith(("torch.distributions.", "pyro.distributions.")):
        return None  # a user's subclass may have another density
    for (distribution, kind), made in _KNOWN.items():
        if isinstance(x, distribution):
            return made(x) if isinstance(transform, kind) else None
    if not isinstance(x, TransformedDistribution):
        return None
    *before, last = x.transforms
    base = TransformedDistribution(x.base_dist, before) if before else x.base_dist
    if isinstance(transform, ComposeTransform):
        first, *rest = transform.parts  # an affine map that ends both `x` and `transform` cancels
        if isinstance(last, TanhTransform) and isinstance(first, SigmoidTransform):
            doubled = TransformedDistribution(base, [AffineTransform(0.0, 2.0)])
            return doubled if _is_affine(_TANH, rest) else None
        return unconstrained(base, first) if _is_affine(last, rest) else None
    # For example, u is normal if x is log-normal and the transform is ExpTransform.
    return base if type(last) in _LAST and isinstance(transform, type(last)) else None


_TANH = AffineTransform(-1.0, 2.0)  # tanh v is 2 sigmoid(2 v) - 1
_LAST = (ExpTransform, SigmoidTransform, StickBreakingTransform, OrderedTransform)


def _is_affine(last: Transform, rest: list[Transform]) -> bool:
    """Whether `last` is affine, and `rest` consists of a single transform, equal to `last`."""
    try:
        return isinstance(last, AffineTransform) and len(rest) == 1 and bool(last == rest[0])
    except RuntimeError:  # shapes that do not broadcast
        return False


def _of_entry(transform: Transform) -> Transform:
    """Returns the transform of a single entry, without `independent` wrappers."""
    while isinstance(transform, IndependentTransform):
        transform = transform.base_transform
    return transform


def log_prob_at(distribution: Distribution, u: Tensor, transform: Transform) -> Tensor | None:
    """Log density of a value, given the unconstrained value u; `None` if no formula is known.

    Masks inside the distribution are applied; masks from Pyro's handlers are not.
    """
    if isinstance(distribution, MaskedDistribution):
        whole = log_prob_at(distribution.base_dist, u, transform)
        return None if whole is None else scale_and_mask(whole, mask=distribution._mask)  # noqa: SLF001
    if isinstance(distribution, Independent):
        inner = log_prob_at(distribution.base_dist, u, transform)
        dims = list(range(-distribution.reinterpreted_batch_ndims, 0))
        return inner.sum(dims) if inner is not None and dims else inner
    entry = _of_entry(transform)
    of_u = unconstrained(distribution, entry)
    if of_u is None:
        return None
    jacobian = entry.log_abs_det_jacobian(u, u)
    dims = list(range(entry.codomain.event_dim - distribution.event_dim, 0))
    return of_u.log_prob(u) - (jacobian.sum(dims) if dims else jacobian)


def draw_unconstrained(
    distribution: Distribution, transform: Transform, shape: torch.Size
) -> Tensor | None:
    """Returns draws of unconstrained values; `None` if their distribution has no known formula."""
    of_u = unconstrained(base_of(distribution), _of_entry(transform))
    return None if of_u is None else of_u.sample(shape)


class AtEdges(Messenger):
    """Handler that records the unconstrained values of latent sites, whether given or drawn.

    The handler draws an unconstrained value itself if the distribution of this value is known and
    gradients are disabled (these draws carry no gradient). Any other site is sampled in the usual
    way, and nothing is recorded.

    Arguments:
        transforms: For each site, by name, the transform from unconstrained values to the support.
        given: Unconstrained values, by name, of sites that the handler does not draw.
    """

    def __init__(self, transforms: Mapping[str, Transform], given: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.transforms, self.given = transforms, given

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        if name not in self.transforms:
            return
        u = self.given.get(name)
        if u is None and msg["value"] is None and not torch.is_grad_enabled():
            u = draw_unconstrained(msg["fn"], self.transforms[name], torch.Size())
            msg["value"] = None if u is None else self.transforms[name](u)
        if u is not None:
            msg["infer"] = {**msg["infer"], _UNCONSTRAINED: (u, self.transforms[name])}


def recorded(node: Any) -> tuple[Tensor, Transform] | None:
    """Unconstrained value and transform of a site; `None` if :class:`AtEdges` recorded none."""
    return node["infer"].get(_UNCONSTRAINED)
