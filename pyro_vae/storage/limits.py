"""Limits on loading: no more memory and no more tensors than the size of the files justifies.

The JSON file of a saved model states the sizes of the model's parts, and a forged file can state
any sizes. So while the parts are built, the size of every new tensor is checked before memory is
allocated.
"""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..formatting import count_of

# Bytes of JSON, enough for 60,000 columns; as Python objects they take about 20 times as many.
MAX_HEADER = 32 * 2**20
_MAX_ENTRIES = 8 * 2**20  # bytes of JSON in a safetensors file, enough for 80,000 tensors
_SPARE = 100 * 2**20  # bytes in reserve, for objects that are built and freed
_SMALL = 2**20  # bytes; a tensor of at most this size is small
_TIMES = 10  # new tensors allowed for each saved tensor
_FEW = 1_000  # new tensors, or objects, allowed in addition
_REPEATING = {"repeat", "new_empty", "new_full", "new_ones", "new_zeros"}


class Budget(TorchDispatchMode):
    """Limits the size and the number of new tensors, in proportion to the saved tensors.

    Arguments:
        tensors: The saved tensors.

    Raises:
        ValueError: Before an operation that would exceed the limit.

    Example:
        >>> with Budget({"weight": torch.ones(2, 2)}):  # doctest: +ELLIPSIS
        ...     torch.nn.Linear(10**6, 10**6)
        Traceback (most recent call last):
        ValueError: the record asks for 4,000,000,000,000 bytes, but the save has 16 ...
    """

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.saved = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        self.bytes_left = 3 * self.saved + _SPARE
        self.num_saved = len(tensors)
        self.tensors_left = _TIMES * len(tensors) + _FEW

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors, name = list(_tensors(args)), func.name().removeprefix("aten::")
        dtype = kwargs.get("dtype") or torch.get_default_dtype()
        if not tensors:  # then the operation creates a tensor of a size given in numbers
            self._count(_elements(name, args) * dtype.itemsize)
        else:  # an expanded tensor takes no memory until an operation copies it
            times = math.prod(args[1]) if name in _REPEATING else 1
            most = max(tensor.numel() * tensor.element_size() for tensor in tensors)
            self._check(most * times)
        return func(*args, **kwargs)

    def _count(self, wanted: int) -> None:
        """Subtracts a new tensor of `wanted` bytes from the budget."""
        self._check(wanted)
        self.tensors_left -= 1
        if wanted > _SMALL:  # small tensors are soon freed
            self.bytes_left -= wanted

    def _check(self, wanted: int) -> None:
        """Refuses a new tensor of `wanted` bytes if it exceeds the budget."""
        if wanted > self.bytes_left or self.tensors_left < 0:
            what = f"{wanted:,} bytes" if self.tensors_left >= 0 else "many more tensors"
            raise ValueError(
                f"the record asks for {what}, but the save has {self.saved:,} bytes in "
                f"{count_of(self.num_saved, 'tensor', ',')}, so the JSON file was changed after it "
                "was written: copy the original folder again"
            )


def require_few_objects(recorded: object, tensors: dict[str, Tensor]) -> None:
    """Refuses a JSON record that lists more objects than the saved tensors justify.

    Even an object without tensors takes time and memory.

    Raises:
        ValueError: If the record lists too many objects.
    """
    number = json.dumps(recorded).count('"class"')
    numbers = sum(tensor.numel() for tensor in tensors.values())
    if number > _FEW + numbers:  # every column of a table has numbers in the decoder
        raise ValueError(
            f"the record lists {count_of(number, 'object', ',')}, too many for a save whose "
            f"tensors have {count_of(numbers, 'number', ',')}, so the JSON file was changed after "
            "it was written: copy the original folder again"
        )


def is_whole(path: Path) -> bool:
    """Whether a safetensors file has the length that its header states; reads only the header."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(size, _MAX_ENTRIES):
            return False
        try:
            entries = json.loads(file.read(length))
            entries.pop("__metadata__", None)
            ends = [int(entry["data_offsets"][1]) for entry in entries.values()]
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return False
    return size == 8 + length + max(ends, default=0)


def _tensors(args: Sequence[object]) -> Iterator[Tensor]:
    """Yields the tensors among the arguments of an operation, including those inside lists."""
    for part in args:
        if isinstance(part, Tensor):
            yield part
        elif isinstance(part, list | tuple):
            yield from _tensors(part)


def _elements(name: str, args: Sequence[object]) -> int:
    """Returns the number of elements of the tensor that an operation would create."""
    for part in args:
        if isinstance(part, list | tuple):
            return math.prod(part)
    numbers = [part for part in args if isinstance(part, int | float)]
    if name.startswith("arange"):
        start, end, step = {1: (0, *numbers, 1), 2: (*numbers, 1)}.get(len(numbers), numbers)
        return int(abs((end - start) / (step or 1)))
    return math.prod(part for part in numbers if isinstance(part, int))
