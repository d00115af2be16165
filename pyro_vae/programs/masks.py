r"""Masked latents: what a mask removes from their density, and what that means for log p(y).

A program that masks a latent site says that some data have no such latent: a series has ended, an
object is absent. A value drawn there has no density in the program, and no data depend on it. Any
density that integrates to one may take its place,

.. math:: p(y_n, z_n) = \int p(y_n, z_n) \, q(z') \, dz' ,

and here it is the site's own distribution, so that a program is a density of all its latents.
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
    """The distribution without its masks: the one that draws come from."""
    if isinstance(distribution, MaskedDistribution):
        return unmasked(distribution.base_dist)
    if isinstance(distribution, Independent):
        base = unmasked(distribution.base_dist)
        if base is not distribution.base_dist:
            return dist.Independent(base, distribution.reinterpreted_batch_ndims)
    return distribution


def base_of(distribution: Distribution) -> Distribution:
    """The distribution without `Independent` and mask wrappers."""
    while isinstance(distribution, MaskedDistribution | Independent):
        distribution = distribution.base_dist
    return distribution


def is_masked(distribution: Any) -> bool:
    """Whether a distribution masks some of its density."""
    while isinstance(distribution, Independent | TransformedDistribution):
        distribution = distribution.base_dist
    return isinstance(distribution, MaskedDistribution)


def entry_mask(distribution: Any, mask: Any, value: Tensor) -> Tensor | None:
    """Mask of the entries that have a density, in the shape of the value; `None` if all have one.

    Arguments:
        distribution: The distribution of the value, with masks of its own.
        mask: The mask that handlers gave the site.
        value: The value.
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
    mask = torch.as_tensor(mask, device=value.device).bool()
    return mask.reshape(mask.shape + (1,) * events).expand(value.shape)


class Unmasked(Messenger):
    """Removes the masks of named sites, and notes the masked distribution at each of them."""

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        self.names = frozenset(names)

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.names:
            msg["infer"] = {**msg["infer"], _WRITTEN: (msg["fn"], msg["mask"])}
            msg.update(fn=unmasked(msg["fn"]), mask=None)


def as_written(node: Any) -> tuple[Any, Any]:
    """The distribution and the mask that the program gave a site."""
    written: tuple[Any, Any] = node["infer"].get(_WRITTEN, (node["fn"], node["mask"]))
    return written
