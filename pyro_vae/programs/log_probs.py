r"""Computes log densities of sites in few passes over memory, and sums out discrete sites.

Importance sampling spends as much time on the density of an image's pixels as on the decoder, and
most of that time goes into allocating large intermediate results. For the most common distributions
the sum over the entries of a datum is computed here, in small pieces that stay in the cache. For
every other distribution, the distribution's method `log_prob` is called.

Pyro enumerates the values of each discrete site along a new dimension, left of the plates. The
densities of all sites are then factors over these dimensions. Pyro's tensor variable elimination
multiplies the factors over the plates inside a datum, and sums over the enumerated dimensions.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from opt_einsum import shared_intermediates
from pyro.ops import packed
from pyro.ops.contract import contract_to_tensor
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from .missing import observed_features
from .modes import capturing
from .pieces import even_pieces, in_pieces

_CACHED = 100_000  # entries per piece: a few copies of a piece fit in a CPU's cache
_FACTORS = 112  # factors of at most 2: their product fits in a float32; a multiple of 16 for SIMD


def log_prob_of(distribution: Any, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Computes `distribution.log_prob(value)` up to rounding, by a faster method if one exists."""
    # Only these types: a subclass may have another density.
    if torch.is_grad_enabled() or type(distribution) not in _INDEPENDENT:
        return distribution.log_prob(value, *args, **kwargs)
    features = observed_features(distribution.base_dist, value)
    if type(features) not in _TERMS:
        return distribution.log_prob(value, *args, **kwargs)
    if features._validate_args:
        features._validate_sample(value)
    terms, parameters = _TERMS[type(features)]
    tensors = torch.broadcast_tensors(value, *parameters(features))
    return _by_pieces(terms, tensors, distribution.reinterpreted_batch_ndims)


def _by_pieces(sums: Callable[..., Tensor], tensors: Sequence[Tensor], event_dim: int) -> Tensor:
    """Applies `sums`, which adds up event dimensions, to a few rows of the tensors at a time."""
    tensors = [tensor.flatten(tensor.dim() - event_dim) for tensor in tensors]
    if tensors[0].dim() == 1 or capturing():  # a compiler fuses all steps into one pass
        return sums(*tensors)
    size = _CACHED // max(1, tensors[0][:1].numel())
    return torch.cat([sums(*piece) for piece in in_pieces(size, *tensors)])


def _bernoulli(value: Tensor, logits: Tensor) -> Tensor:
    r"""Sum of Bernoulli log probabilities of the entries y, with logits :math:`\eta`.

    .. math:: \sum_d y_d \eta_d - \max(\eta_d, 0) - \log(1 + e^{-|\eta_d|})

    The difference of the first two terms is taken for each entry before summing, because the
    difference of two large sums would lose digits.
    """
    linear = (value * logits).sub_(logits.relu()).sum(dim=-1)
    return linear - _log_product(logits.abs().neg_().exp_().add_(1))


def _log_product(factors: Tensor) -> Tensor:
    """Sum of the logarithms of factors between 1 and 2, computed from products of many factors.

    Fewer logarithms save time, because a logarithm takes longer than the other operations of a
    density. A product also loses fewer digits than a sum of logarithms.
    """
    most = min(_FACTORS, int(math.log2(torch.finfo(factors.dtype).max)))
    size = even_pieces(factors.shape[-1], most)
    blocks, rest = divmod(factors.shape[-1], size)
    products = factors[..., : blocks * size].unflatten(-1, (blocks, size)).prod(dim=-1)
    total = products.log_().sum(dim=-1)
    # The empty product is left out: for it, a compiler would store all factors.
    return total if rest == 0 else total + factors[..., -rest:].prod(dim=-1).log_()


def _normal(value: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    r"""Sum of normal log densities of the entries y, with means and standard deviations.

    .. math:: \sum_d -\tfrac{1}{2} ((y_d - \mu_d) / \sigma_d)^2 - \log(\sigma_d \sqrt{2 \pi})
    """
    standard = (value - loc).div_(scale)
    shared = scale
    for dim, stride in enumerate(scale.stride()[:-1]):
        if stride == 0:  # the scale is expanded: its logarithm is needed only once
            shared = shared.narrow(dim, 0, 1)
    constant = math.log(2 * math.pi) / 2
    return standard.square_().sum(dim=-1).div_(-2) - shared.log().add_(constant).sum(dim=-1)


_INDEPENDENT = (dist.Independent, torch.distributions.Independent)
_Terms = tuple[Callable[..., Tensor], Callable[[Any], tuple[Tensor, ...]]]
_TERMS: dict[type, _Terms] = {
    **dict.fromkeys(
        (dist.Bernoulli, torch.distributions.Bernoulli), (_bernoulli, lambda d: (d.logits,))
    ),
    **dict.fromkeys(
        (dist.Normal, torch.distributions.Normal), (_normal, lambda d: (d.loc, d.scale))
    ),
}


def sum_out(
    trace: Trace, names: list[str], plate: str, known: Mapping[str, Tensor] | None = None
) -> Tensor:
    r"""Joint log density of some sites per datum, with the enumerated sites summed out.

    .. math:: \log \sum_c \prod_s p(s \mid c, \ldots)

    Here c runs over the values of the enumerated sites, and s over the sites.

    Arguments:
        trace: A trace of the program, run under Pyro's enumeration.
        names: Sites to include: the enumerated sites, and those whose density is wanted.
        plate: Name of the plate over data.
        known: Log densities of some sites, by name, that were computed in another way.

    Returns:
        Log densities `(rows,)`, in nats, masked but not scaled.
    """
    if "packed" not in trace.nodes[names[0]]:
        for name, log_prob in (known or {}).items():  # Pyro computes only the missing ones
            node: Any = trace.nodes[name]
            node["unscaled_log_prob"] = node["log_prob"] = log_prob
            node["log_prob_sum"] = log_prob.sum()
        trace.compute_log_prob()
        trace.pack_tensors()
    factors: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
    summed = set()
    for name in names:
        site: Any = trace.nodes[name]
        ordinal = frozenset(
            trace.plate_to_symbol[frame.name]
            for frame in site["cond_indep_stack"]
            if frame.vectorized and frame.size > 1  # a packed tensor has no axis of size 1
        )
        parts = site["packed"]
        factor = packed.scale_and_mask(parts["unscaled_log_prob"], mask=parts["mask"])
        factors.setdefault(ordinal, []).append(factor)
        infer: dict[str, Any] = site["infer"]
        if infer.get("_enumerate_dim") is not None:
            summed.add(infer["_enumerate_symbol"])
    rows = frozenset(trace.plate_to_symbol[plate]) & frozenset().union(*factors)
    with shared_intermediates() as cache:
        total = contract_to_tensor(factors, summed, target_ordinal=rows, cache=cache)
    if set(total._pyro_dims) != rows:
        raise AssertionError(
            "the sum over discrete sites must leave only the dimension of the rows; got the "
            f"dimensions {total._pyro_dims}"
        )
    return total.reshape(-1)  # a single row has no axis
