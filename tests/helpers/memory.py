"""How many bytes of tensors are alive at once."""

from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """The most bytes that were alive at once, of tensors made inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}
        self._given: set[int] = set()  # storages from outside, such as weights, and views of them

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._made = {key: it for key, it in self._made.items() if not it[0].expired()}
        for storage in storages((args, kwargs)):
            if storage._cdata not in self._made:
                self._given.add(storage._cdata)
        out = func(*args, **(kwargs or {}))
        for storage in storages(out):
            if storage._cdata not in self._given:
                self._made[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.peak = max(self.peak, sum(size for _, size in self._made.values()))
        return out


def storages(tree: Any) -> list[torch.UntypedStorage]:
    """Of all tensors in nested tuples, lists and dicts."""
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
