r"""Log densities of sites, evaluated without gradients in as few passes over memory as it takes.

Importance sampling spends as much time on the density of the pixels of an image as on the network
that gives them: most of it goes into fresh memory for whole intermediate results. Where a
distribution is common enough to pay, its sum over a datum is made here in small pieces that stay
in the cache; every other one is asked itself.
"""

import math
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from .capture import capturing
from .missing import observed_features

_CACHED = 100_000  # entries of a piece, of which a few copies stay in a CPU's cache


def log_prob_of(distribution: Any, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`distribution.log_prob(value)`, the same but for rounding."""
    # These types and no subclass, which may mean something else.
    if torch.is_grad_enabled() or type(distribution) not in _INDEPENDENT:
        log_prob: Tensor = distribution.log_prob(value, *args, **kwargs)
        return log_prob
    features = observed_features(distribution.base_dist, value)
    if type(features) not in _TERMS:
        return distribution.log_prob(value, *args, **kwargs)
    if features._validate_args:
        features._validate_sample(value)
    terms, names = _TERMS[type(features)]
    tensors = torch.broadcast_tensors(value, *(getattr(features, name) for name in names))
    return _by_pieces(terms, tensors, distribution.reinterpreted_batch_ndims)


def _by_pieces(terms: Callable[..., Tensor], tensors: tuple[Tensor, ...], event_dim: int) -> Tensor:
    """Sums over a datum, some of the leftmost batch dimension at a time, if there is one."""
    event = list(range(-event_dim, 0))
    if tensors[0].dim() == event_dim or capturing():  # a compiler makes one pass of it all
        return terms(*tensors).sum(dim=event)
    size = max(1, _CACHED // max(1, tensors[0][:1].numel()))
    pieces = zip(*(tensor.split(size) for tensor in tensors), strict=True)
    return torch.cat([terms(*piece).sum(dim=event) for piece in pieces])


def _bernoulli(value: Tensor, logits: Tensor) -> Tensor:
    r""":math:`y \eta - \max(\eta, 0) - \log(1 + e^{-|\eta|})`.

    Entry by entry, since sums of large terms that cancel later would lose digits.
    """
    softplus = logits.abs().neg_().exp_().add_(1).log_()
    return (value * logits).sub_(logits.relu()).sub_(softplus)


def _normal(value: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    r""":math:`-\frac{1}{2} ((y - \mu) / \sigma)^2 - \log \sigma - \frac{1}{2} \log 2 \pi`."""
    standard = (value - loc).div_(scale)
    constant = math.log(2 * math.pi) / 2
    return standard.square_().div_(-2).sub_(scale.log()).sub_(constant)


_INDEPENDENT = (dist.Independent, torch.distributions.Independent)
_TERMS: dict[type, tuple[Callable[..., Tensor], tuple[str, ...]]] = {
    **dict.fromkeys((dist.Bernoulli, torch.distributions.Bernoulli), (_bernoulli, ("logits",))),
    **dict.fromkeys((dist.Normal, torch.distributions.Normal), (_normal, ("loc", "scale"))),
}
