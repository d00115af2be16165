"""Rows that are read on demand, for data sets that do not fit into memory."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from .._arguments import shown
from .._types import Batch

CHUNK = 2**20  # numbers read at a time when all rows are read: 8 MB in float64


@runtime_checkable
class RowReader(Protocol):
    """Data whose rows can be read on demand; `pv.fit` needs only the methods `__len__` and `read`.

    Implement these two methods to train on a database table or a folder of files.
    """

    def __len__(self) -> int:
        """Returns the number of rows."""

    def read(self, rows: Int64[Tensor, " batch"]) -> Batch:
        """Reads the rows at the given positions, in the given order, as tensors.

        The first axis of each tensor indexes the data.
        """


class OnDisk:
    """Arrays that are read row by row, such as memory-mapped npy files or datasets of h5py.

    Datasets of zarr can be used, too. When rows are read, the first array is converted to torch's
    default dtype, and so are other arrays of floating-point numbers. A later change of the default
    dtype has no effect on this object.

    Arguments:
        arrays: Arrays `(rows, *datum)` with the same number of rows. Each array needs a shape and a
            dtype, and must accept an array of increasing positions as an index.
        transform: A function of the rows read from the first array, such as `lambda y: y / 255`.

    Raises:
        ValueError: If there is no array or no row, or the numbers of rows differ.
        TypeError: If an array does not hold real numbers.

    Example:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/pixels.npy"
        >>> np.save(path, np.arange(6, dtype=np.uint8).reshape(3, 2))
        >>> rows = OnDisk(np.load(path, mmap_mode="r"), transform=lambda y: y / 255)
        >>> len(rows), rows.read(torch.tensor([2, 0]))[0] * 255
        (3, tensor([[4., 5.],
                [0., 1.]]))
    """

    def __init__(self, *arrays: Any, transform: Callable[[Tensor], Tensor] | None = None) -> None:
        self.arrays, self.transform = arrays, transform
        self.dtypes = [_dtype_of(array, index) for index, array in enumerate(arrays)]
        lengths = [len(array) for array in arrays]
        if len(set(lengths)) != 1 or lengths[0] == 0:
            raise ValueError(
                "arrays on disk must have the same number of rows, and at least one; got "
                f"{lengths} rows: pass arrays with one row per datum"
            )

    def __len__(self) -> int:
        """Returns the number of rows."""
        return len(self.arrays[0])

    def read(self, rows: Int64[Tensor, " batch"]) -> Batch:
        """Reads the rows at the given positions, in the given order, as tensors."""
        positions = rows.cpu().numpy()
        order = np.argsort(positions, kind="stable")  # files are read front to back
        first, *others = (
            _read(array, positions[order], np.argsort(order), dtype)
            for array, dtype in zip(self.arrays, self.dtypes, strict=True)
        )
        return (first if self.transform is None else self.transform(first), *others)


@dataclass(frozen=True, eq=False)
class Augmented:
    """Training data whose batches are changed each time they are used, for example by noise.

    The transformation uses the random stream of the run, so that the same seed gives the same
    batches. Validation data are not changed.

    Arguments:
        data: As for :func:`pyro_vae.fit`: tensors, arrays, or rows that are read on demand.
        augment: Maps the first tensor of a batch to a tensor of the same shape, such as
            :class:`pyro_vae.data.Redrawn`.

    Raises:
        TypeError: If `augment` is not a function of tensors.
        ValueError: If `augment` returns a tensor of a different shape.

    Example:
        >>> from pyro_vae.data import Redrawn
        >>> len(Augmented(torch.full((5, 2), 0.5), Redrawn()))
        5
    """

    data: Any
    augment: Callable[[Tensor], Tensor]

    def __post_init__(self) -> None:
        if not callable(self.augment) or isinstance(self.augment, type):
            raise TypeError(
                f"`augment` must be a function of a tensor; got {self.augment!r}: pass a function "
                "such as lambda y: y + 0.1 * torch.randn_like(y), or pv.data.Redrawn()"
            )

    def __len__(self) -> int:
        """Returns the number of rows."""
        return len(self.data[0] if isinstance(self.data, tuple) else self.data)

    def change(self, batch: Batch) -> Batch:
        """Transforms the first tensor of a batch."""
        first, *others = batch
        new: object = self.augment(first)
        if not isinstance(new, Tensor):
            raise TypeError(
                f"`augment` must return a tensor; got {type(new).__name__}: let the function "
                "return the transformed batch"
            )
        if new.shape != first.shape:
            raise ValueError(
                f"`augment` must keep the shape {tuple(first.shape)} of a batch; got "
                f"{tuple(new.shape)}: let the function change the values only, not the shape"
            )
        return (new, *others)


def augmentation_of(data: Any) -> tuple[Any, Augmented | None]:
    """Returns the data that an `Augmented` object wraps, and the object itself.

    Any other data are returned unchanged, together with None.
    """
    return (data.data, data) if isinstance(data, Augmented) else (data, None)


def chunks(reader: RowReader) -> Iterator[Batch]:
    """Reads all rows in order, a chunk at a time.

    Use this function to estimate the marginal likelihood of a data set on disk.

    Example:
        >>> reader = OnDisk(np.zeros((10, 2**18)))
        >>> [len(y) for y, in chunks(reader)]
        [4, 4, 2]
    """
    columns = sum(part[0].numel() for part in reader.read(torch.arange(1, device="cpu")))
    size = max(1, CHUNK // max(1, columns))
    for rows in torch.arange(len(reader), device="cpu").split(size):
        yield reader.read(rows)


@runtime_checkable
class _Stored(Protocol):
    """An array from which single rows can be read, such as an array of NumPy, h5py or zarr."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> Any: ...

    def __getitem__(self, rows: Any) -> Any: ...


def _dtype_of(array: object, index: int) -> torch.dtype | None:
    """Returns the dtype to which an array is converted; None if it keeps its own dtype."""
    if not isinstance(array, _Stored) or isinstance(array, Tensor) or not array.shape:
        raise TypeError(
            f"array {index} must be an array of NumPy, h5py or zarr with rows; got {shown(array)}: "
            "pass such an array, as in np.asarray(rows)"
        )
    kind = np.dtype(array.dtype).kind
    if kind not in "biuf":
        raise TypeError(
            f"array {index} must hold real numbers; got dtype {array.dtype}: convert the array to "
            "numbers"
        )
    return torch.get_default_dtype() if kind == "f" or index == 0 else None


def _read(
    array: Any,
    positions: Shaped[np.ndarray, " batch"],
    back: Shaped[np.ndarray, " batch"],
    dtype: torch.dtype | None,
) -> Tensor:
    """Reads the rows at increasing positions as a tensor, and reorders them by the index `back`."""
    values = np.asarray(array[positions])[back]
    # torch has no big-endian numbers, and no arithmetic on unsigned ones.
    native = values.astype(values.dtype.newbyteorder("="), copy=False)
    if native.dtype.kind == "u" and native.dtype.itemsize > 1:
        native = native.astype(np.int64)
    tensor = torch.from_numpy(native)
    return tensor if dtype is None else tensor.to(dtype)
