"""Values that follow from a flat draw, as distributions of a guide's sites."""

from typing import Any

from pyro.distributions import Delta
from pyro.distributions.distribution import Distribution
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import register_kl


class Point(Delta):
    r"""A `Delta` whose log density, minus the log Jacobian, counts in Pyro's objectives.

    A guide draws a flat vector and samples each site from a point. The log density of the point is
    part of log q. Pyro's `TraceMeanField_ELBO` leaves it out for a `Delta`, so that its loss would
    be off by the log Jacobian of every site with a constrained support. It calls instead

    .. math:: \mathrm{KL} = \log q(v) - \log p(v)

    at the point v.

    Example:
        >>> import torch
        >>> from pyro.distributions import LogNormal
        >>> from torch.distributions import kl_divergence
        >>> point = Point(torch.tensor(1.0), log_density=torch.tensor(0.5))
        >>> kl_divergence(point, LogNormal(0.0, 1.0))
        tensor(1.4189)
    """


@register_kl(Point, Distribution)  # type: ignore[untyped-decorator]
def _kl_of_point(p: Point, q: Distribution) -> Tensor:
    return p.log_density - q.log_prob(p.v)


class WithPoints(Messenger):
    """Handler that puts a :class:`Point` in place of each `Delta` of a guide."""

    def _pyro_sample(self, msg: Any) -> None:
        delta = msg["fn"]
        if isinstance(delta, Delta):
            msg["fn"] = Point(delta.v, delta.log_density, delta.event_dim)
