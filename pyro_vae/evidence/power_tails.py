r"""Measures how fast posteriors fall far from their centers.

If the density of a latent falls as :math:`|z|^{-a}`, its standard deviation is finite for
:math:`a > 3`. But the error of a standard deviation that is estimated from draws of the posterior
is finite only for :math:`a > 5`, and no sample of ordinary size shows :math:`a`. The log joint
shows it. With the mean :math:`m` and the standard deviation :math:`s` of latent l,

.. math:: a = -\frac{\log p(y, m + c' s\, e_l) - \log p(y, m + c\, s\, e_l)}{\log (c' / c)}

for large :math:`c < c'`. If the density depends only on the length of z, all latents can be large
at the same time. So the fall is also measured along directions in which all :math:`L` latents grow.
There the power of the log joint is higher by :math:`L - 1` than the power of each latent's density,
so :math:`L - 1` is subtracted.
"""

import math

import pyro
import torch
from jaxtyping import Float
from torch import Tensor

from .weights import Inference, rows_at_once

_NEAR, _FAR = 1e3, 1e5  # distances in standard deviations between which the fall is measured


def tail_powers(
    inference: Inference,
    mean: Float[Tensor, "batch latents"],
    sd: Float[Tensor, "batch latents"],
) -> Float[Tensor, "batch latents"]:
    """Returns the power :math:`a` with which the posterior density of each latent falls.

    The result is infinite for densities that fall faster than any power, and large for those that
    fall exponentially. It is also infinite if the program fails far from the mean.

    Arguments:
        inference: The model, the data, and a posterior, which is not used.
        mean: Mean of every latent.
        sd: Standard deviation of every latent.
    """
    latents = mean.shape[-1]
    axes = torch.eye(latents, dtype=mean.dtype, device=mean.device)
    alternating = 1 - 2 * (torch.arange(latents, device=mean.device) % 2)
    every = torch.stack([torch.ones_like(axes[0]), alternating.to(axes)])
    directions = torch.cat([axes, -axes, every, -every])[:, None]  # (directions, 1, latents)
    z = torch.cat([mean + distance * sd * directions for distance in (_NEAR, _FAR)])
    program, _, batch = inference
    limit = rows_at_once(program, batch)
    try:
        with pyro.validation_enabled(is_validate=False):
            pieces = z.to(program.dtype).split(max(1, limit // z.shape[1]))
            found = torch.cat([program.log_joint(piece, *batch) for piece in pieces]).double()
    except (ValueError, RuntimeError):
        return torch.full_like(mean, torch.inf)
    near, far = found.chunk(2)
    power = (near - far) / math.log(_FAR / _NEAR)
    power = power.where(near > -torch.inf, torch.inf).nan_to_num(torch.inf, torch.inf)
    alone = power[: 2 * latents].unflatten(0, (2, latents)).amin(dim=0)
    together = power[2 * latents :].amin(dim=0) - (latents - 1)
    return torch.minimum(alone, together).mT
