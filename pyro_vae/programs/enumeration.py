"""Discrete latent sites, summed out exactly.

Pyro enumerates every value of a discrete site along a dimension of its own, left of the plates.
The log densities of all sites are then factors over these dimensions, and the sum over them, with
a product over the plates inside a datum, is Pyro's tensor variable elimination.
"""

from collections import OrderedDict
from typing import Any

from opt_einsum import shared_intermediates
from pyro.ops import packed
from pyro.ops.contract import contract_to_tensor
from pyro.poutine.trace_struct import Trace
from torch import Tensor


def sum_out(trace: Trace, names: list[str], plate: str) -> Tensor:
    r"""Log density of some sites with the enumerated ones summed out, by datum.

    .. math:: \log \sum_c \prod_s p(s \mid c, \ldots)

    Arguments:
        trace: A trace of the program under enumeration.
        names: Sites to take: the enumerated ones and those whose marginal density is wanted.
        plate: Name of the plate over data.

    Returns:
        `(rows,)`, in nats, masked but not scaled.
    """
    if "packed" not in trace.nodes[names[0]]:
        trace.compute_log_prob()
        trace.pack_tensors()
    factors: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
    summed = set()
    for name in names:
        site: Any = trace.nodes[name]
        ordinal = frozenset(
            trace.plate_to_symbol[frame.name]
            for frame in site["cond_indep_stack"]
            if frame.vectorized and frame.size > 1  # of one entry, a packed tensor has no axis
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
        raise AssertionError(f"a sum over discrete sites has dimensions {total._pyro_dims}")
    return total.reshape(-1)  # of one row it has no axis
