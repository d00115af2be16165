"""Particles that Pyro vectorizes: draws in dimensions left of those of a program.

With `Trace_ELBO(num_particles=K, vectorize_particles=True)` Pyro runs a guide once, inside a plate
of size `K` that lies left of the plates of the program. A flat draw of shape `(K, 1, batch,
latents)` then holds the latents of `K` particles. To split it among sites, particles count as rows;
afterwards they are moved to the dimensions from which they came.
"""

import math
from collections.abc import Sequence

from torch import Tensor


def has_particles(ahead: Sequence[int]) -> bool:
    """Whether the dimensions left of those of the program hold more than one particle."""
    return math.prod(ahead) > 1


def ahead_of_plates(x: Tensor, ahead: Sequence[int], num_dims: int) -> Tensor:
    """Moves particles from the first dimension to dimensions left of the program's.

    Arguments:
        x: A tensor of shape `(particles, *own)`.
        ahead: Sizes of the dimensions left of the program's; their product is `particles`.
        num_dims: Number of dimensions of the program, on the right; `own` has at most as many, or
            takes dimensions of size one in `ahead`.

    Example:
        >>> import torch
        >>> ahead_of_plates(torch.zeros(7, 5), (7, 1), 2).shape  # 5 rows, one of two plates
        torch.Size([7, 1, 1, 5])
    """
    taken = len(ahead)
    while taken and ahead[taken - 1] == 1:
        taken -= 1
    own = x.shape[1:]
    ones = (1,) * (len(ahead) - taken + num_dims - len(own))
    return x.reshape(*ahead[:taken], *ones, *own)


def rows_apart(x: Tensor, axis: int, ahead: Sequence[int], num_dims: int) -> Tensor:
    """Moves particles that are rows, on an axis of size `particles * batch`, to dimensions ahead.

    Example:
        >>> import torch
        >>> rows_apart(torch.zeros(35, 3), 0, (7, 1), 2).shape  # 5 rows with events of size 3
        torch.Size([7, 1, 5, 3])
    """
    if not has_particles(ahead):
        return x
    apart = x.unflatten(axis, (math.prod(ahead), -1)).movedim(axis, 0)
    return ahead_of_plates(apart, ahead, num_dims)
