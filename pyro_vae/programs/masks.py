r"""Masked latents: restores the densities that masks remove; log p(y) stays the same.

A program that masks a latent site says that some data have no such latent: a series has ended, or
an object is absent. A value z' that is drawn at a masked site has no density in the program, and no
data depend on this value. So a further factor q(z') that integrates to one changes nothing,

.. math:: p(y_n, z_n) = \int p(y_n, z_n) \, q(z') \, dz' .

Here q is the site's unmasked distribution. With this factor, the program has a density of all its
latents.
"""

from collections.abc import Iterable
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import MaskedDistribution
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Independent, TransformedDistribution

from .._types import Distribution

_WRITTEN = "_as_written"


def unmasked(distribution: Distribution) -> Distribution:
    """Returns the distribution without masks; draws are the same with and without masks."""
    if isinstance(distribution, MaskedDistribution):
        return unmasked(distribution.base_dist)
    if isinstance(distribution, Independent):
        base = unmasked(distribution.base_dist)
        if base is not distribution.base_dist:
            return dist.Independent(base, distribution.reinterpreted_batch_ndims)
    return distribution


def base_of(distribution: torch.distributions.Distribution) -> torch.distributions.Distribution:
    """Returns the distribution inside `Independent` and mask wrappers, or the object itself."""
    while isinstance(distribution, MaskedDistribution | Independent):
        distribution = distribution.base_dist
    return distribution


def is_masked(distribution: Distribution) -> bool:
    """Whether a distribution has a mask, which may be inside wrappers or transformations."""
    while isinstance(distribution, Independent | TransformedDistribution):
        distribution = distribution.base_dist
    return isinstance(distribution, MaskedDistribution)


def entry_mask(distribution: Distribution, mask: Any, value: Tensor) -> Tensor | None:
    """Combines a site's masks into one, in the shape of the value; `None` if it has no masks.

    The mask is true for entries whose density is kept.

    Arguments:
        distribution: The distribution of the value, which may contain masks.
        mask: The mask that handlers gave the site.
        value: The site's value.
    """
    masks = [(mask, distribution.event_dim)]
    inner, events = distribution, distribution.event_dim
    while isinstance(inner, MaskedDistribution | Independent):
        if isinstance(inner, MaskedDistribution):
            masks.append((inner._mask, events))  # noqa: SLF001 (Pyro has no other name for it)
        else:
            events -= inner.reinterpreted_batch_ndims
        inner = inner.base_dist
    found = [
        _shaped(part, events, value)
        for part, events in masks
        if part is not None and part is not True
    ]
    return torch.stack(found).all(dim=0) if found else None


def _shaped(mask: Any, events: int, value: Tensor) -> Tensor:
    """Expands a mask, which lacks the last `events` dimensions, to the shape of the value."""
    mask = torch.as_tensor(mask, device=value.device).bool()
    return mask.reshape(mask.shape + (1,) * events).expand(value.shape)


class Unmasked(Messenger):
    """Handler that removes the masks of the named sites, and records the masked distributions."""

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        self.names = frozenset(names)

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.names:
            msg["infer"] = {**msg["infer"], _WRITTEN: (msg["fn"], msg["mask"])}
            msg.update(fn=unmasked(msg["fn"]), mask=None)


def as_written(node: Any) -> tuple[Distribution, Any]:
    """The distribution and the mask that the program gave a site, before masks were removed."""
    return node["infer"].get(_WRITTEN, (node["fn"], node["mask"]))
