"""How a guide splits a flat draw among its sites, and puts them into plates.

With `Trace_ELBO(num_particles=K, vectorize_particles=True)` Pyro runs a guide once, inside a plate
of size `K` that lies left of the plates of the program. A flat draw of shape `(K, 1, batch,
latents)` then holds the latents of `K` particles. To be split among sites, the draw is reshaped
to one row per particle and datum. The particles then return to the dimensions from which they came.
"""

import math
from collections.abc import Sequence
from contextlib import ExitStack

import pyro
from pyro.distributions import Delta
from pyro.distributions.distribution import Distribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from torch import Tensor
from torch.distributions import register_kl


class Point(Delta):
    r"""A `Delta` whose log density, a negative log Jacobian, counts in all of Pyro's objectives.

    A guide draws a flat vector, and then samples each site from a point mass at its part of this
    vector. The log density of the point mass is part of log q. Pyro's `TraceMeanField_ELBO` ignores
    the log density of a `Delta`, so its loss would be off by the log Jacobian of every site with a
    constrained support. For a `Point` at v, the objective uses this registered divergence:

    .. math:: \mathrm{KL} = \log q(v) - \log p(v)

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

    def _pyro_sample(self, msg: Message[..., Tensor]) -> None:
        delta = msg["fn"]
        if isinstance(delta, Delta):
            msg["fn"] = Point(delta.v, delta.log_density, delta.event_dim)


class Plates:
    """The plates that one call of a guide opens; sites in the same plate share a plate object."""

    def __init__(self) -> None:
        self._made: dict[str, pyro.plate] = {}

    def open(self, layout: tuple[tuple[str, int, int], ...]) -> ExitStack:
        """Opens the plates of a site; each plate is created at its first use."""
        stack = ExitStack()
        for name, size, dim in layout:
            if name not in self._made:
                # Pyro records size -1 for a plate that was opened without one.
                self._made[name] = pyro.plate(name, size if size > 0 else None, dim=dim)
            stack.enter_context(self._made[name])
        return stack


def has_particles(ahead: Sequence[int]) -> bool:
    """Whether a guide is run for several particles at once.

    The particles take up the dimensions left of the program's own dimensions; `ahead` holds the
    sizes of these extra dimensions.
    """
    return math.prod(ahead) > 1


def ahead_of_plates(x: Tensor, ahead: Sequence[int], num_dims: int) -> Tensor:
    """Moves particles from the first dimension to dimensions left of the program's.

    Arguments:
        x: A tensor of shape `(particles, *own)`.
        ahead: Sizes of the dimensions left of the program's; their product is `particles`.
        num_dims: Number of the program's dimensions. If `own` has fewer, dimensions of size 1 are
            added on its left. If `own` has more, the surplus ones take the place of dimensions of
            size 1 at the end of `ahead`.

    Example:
        >>> import torch
        >>> ahead_of_plates(torch.zeros(7, 5), (7, 1), 2).shape  # 5 rows in the last of 2 plates
        torch.Size([7, 1, 1, 5])
    """
    taken = len(ahead)
    while taken and ahead[taken - 1] == 1:
        taken -= 1
    own = x.shape[1:]
    ones = (1,) * (len(ahead) - taken + num_dims - len(own))
    return x.reshape(*ahead[:taken], *ones, *own)


def rows_apart(x: Tensor, axis: int, ahead: Sequence[int], num_dims: int) -> Tensor:
    """Splits an axis of size `particles * batch`, and moves the particles to dimensions `ahead`.

    Example:
        >>> import torch
        >>> rows_apart(torch.zeros(35, 3), 0, (7, 1), 2).shape  # 5 rows with events of size 3
        torch.Size([7, 1, 5, 3])
    """
    if not has_particles(ahead):
        return x
    apart = x.unflatten(axis, (math.prod(ahead), -1)).movedim(axis, 0)
    return ahead_of_plates(apart, ahead, num_dims)
