"""The rows that training reads: tensors in memory, or data read on demand."""

from collections.abc import Generator, Iterable, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torch.utils.data import Dataset as TorchDataset

from .._types import Batch, ProgramLike
from ..data import OnDisk, RowReader
from ..data.streams import chunks
from ..evidence.weights import check_data
from ..guides.entry import is_tied_to_rows
from ..programs import as_batch
from ..programs.missing import has_missing
from ..randomness import forked


class InMemory:
    """A reader of rows from tensors in memory, which are made contiguous for speed."""

    def __init__(self, batch: Batch) -> None:
        # Columns of a data frame are contiguous; a compiled loop would copy them in every call.
        self.batch = tuple(part.contiguous() for part in batch)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.batch[0])

    def read(self, rows: Tensor) -> Batch:
        """Returns the rows at these positions, from every tensor."""
        return tuple(part.index_select(0, rows.to(part.device)) for part in self.batch)


class Moved:
    """A reader that moves the rows of another reader to a device."""

    def __init__(self, reader: RowReader, device: torch.device) -> None:
        self.reader, self.device = reader, device

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.reader)

    def read(self, rows: Tensor) -> Batch:
        """Returns the rows at these positions, from every tensor, on the device."""
        return as_batch(self.reader.read(rows), self.device)


class Collated:
    """A reader of a map-style torch data set, in which each item is a row.

    An item is a tensor, an array or a number, or a tuple of these. NumPy arrays in float64 and
    Python's floats are cast to torch's default dtype.
    """

    def __init__(self, dataset: TorchDataset[Any]) -> None:
        if not isinstance(dataset, Sized):
            raise TypeError(
                "a data set must state its number of rows; got a "
                f"{type(dataset).__name__} without a length: add a method __len__"
            )
        self.dataset = dataset

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.dataset)

    def read(self, rows: Tensor) -> Batch:
        """Returns the items at these positions, stacked: one tensor for each tensor of an item."""
        items = [self._item(row) for row in rows.tolist()]
        name, first = type(self.dataset).__name__, [tuple(part.shape) for part in items[0]]
        for row, item in zip(rows.tolist(), items, strict=True):
            shapes = [tuple(part.shape) for part in item]
            if shapes != first:
                raise ValueError(
                    f"all rows of {name} must have tensors of the same shapes; got {first} for "
                    f"row {int(rows[0])} and {shapes} for row {row}: let __getitem__ pad or cut "
                    "the tensors, and use nan for missing entries"
                )
        return tuple(torch.stack(parts) for parts in zip(*items, strict=True))

    def _item(self, row: int) -> Batch:
        item = self.dataset[row]
        parts = item if isinstance(item, tuple) else (item,)
        if isinstance(item, list) and any(isinstance(part, Tensor) for part in item):
            parts = tuple(item)
        try:
            return tuple(map(_entry, parts))
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"row {row} of {type(self.dataset).__name__} must be a tensor, or a tuple of "
                f"tensors, arrays or numbers; got a {type(item).__name__} ({error}): let "
                "__getitem__ return one of these"
            ) from error


def _entry(part: object) -> Tensor:
    """Converts one entry of a data set's item to a tensor."""
    if isinstance(part, Tensor):
        return part
    tensor = torch.as_tensor(np.asarray(part))
    return tensor.to(torch.get_default_dtype()) if tensor.dtype == torch.float64 else tensor


def reader_of(data: Any, device: torch.device) -> RowReader:
    """Returns a reader of training data; memory-mapped arrays are not read into memory.

    Raises:
        TypeError: If the rows of the data cannot be indexed; the error says what to pass instead.
    """
    if isinstance(data, DataLoader):
        raise TypeError(
            "`fit` makes batches itself, and takes no DataLoader: pass the loader's data set and "
            f"batch size, as in fit(..., loader.dataset, batch_size={data.batch_size})"
        )
    if isinstance(data, IterableDataset):
        raise TypeError(
            "the rows of an IterableDataset cannot be indexed: write a class with __len__ and "
            "read(rows), as in pv.data.OnDisk"
        )
    if isinstance(data, TensorDataset):
        data = data.tensors
    elif isinstance(data, TorchDataset):
        return Moved(Collated(data), device)
    parts = data if isinstance(data, tuple) else (data,)
    if any(isinstance(part, np.memmap) for part in parts):
        data = OnDisk(*parts)
    if any(isinstance(part, Tensor) and part.layout != torch.strided for part in parts):
        raise TypeError("the rows of a sparse tensor cannot be indexed: pass y.to_dense()")
    if isinstance(data, RowReader):
        return Moved(data, device)
    return InMemory(as_batch(data, device))


def check_rows(model: ProgramLike, guide: ProgramLike, reader: RowReader) -> Tensor:
    """Checks all rows before training, as :func:`pyro_vae.evidence.weights.check_data` does.

    Data on disk are read once, piece by piece, and are not checked for constant columns.

    Returns:
        The number of missing entries and of all entries of every tensor, `(tensors, 2)`.

    Raises:
        ValueError: If rows are refused, or if the guide has parameters for each row but the data
            are on disk.
    """
    if isinstance(reader, InMemory):
        check_data(model, reader.batch, for_training=True)
        return _missing(reader.batch)
    if is_tied_to_rows(guide):
        raise ValueError(
            "a guide with free parameters for every row recognizes rows by their content, so the "
            "data must be in memory: pass tensors, or use an amortized guide, pv.Encoder(...)"
        )
    first, missing = 0, torch.zeros(1, 2, dtype=torch.int64, device="cpu")
    for batch in chunks(reader):
        try:
            check_data(model, batch)
        except ValueError as error:
            last = first + len(batch[0]) - 1
            raise ValueError(
                f"in rows {first} to {last} (add {first} to the row numbers below): {error}"
            ) from error
        first += len(batch[0])
        missing = missing + _missing(batch)
    return missing


def _missing(batch: Batch) -> Tensor:
    """Counts the missing entries and all entries of every tensor; returns `(tensors, 2)`."""
    counts = [(int(part.isnan().sum()) if has_missing(part) else 0, part.numel()) for part in batch]
    return torch.tensor(counts, device="cpu")


def share_missing(total: Tensor) -> float:
    """Returns the share of missing entries in those tensors that have missing entries."""
    missing, entries = total[total[:, 0] > 0].sum(dim=0).tolist()
    return float(missing / max(1, entries))


def head(reader: RowReader) -> Batch:
    """Returns the first two rows, or the only row: enough to find a program's structure."""
    return reader.read(torch.arange(min(2, len(reader)), device="cpu"))


def spread_rows(count: int, most: int) -> Int[Tensor, " rows"]:
    """Returns positions of at most `most` rows: one row from each of as many ranges of the data.

    The row of each range is drawn with a fixed seed. Evenly spaced rows of hourly data could all be
    from the same hour of the day.
    """
    if count <= most:
        return torch.arange(count, device="cpu")
    ends = torch.arange(most + 1, device="cpu") * count // most
    with forked(0, "fit.spread rows"):
        drawn = torch.rand(most, dtype=torch.float64, device="cpu")
    return ends[:-1] + (drawn * ends.diff()).long()


def read_ahead(reader: RowReader, requests: Iterable[Tensor]) -> Generator[Batch, None, None]:
    """Reads batches in order; while a batch is in use, the next one is read in the background.

    The reader is called in a single thread, which starts with the first batch and ends with the
    iterator: exhaust the iterator, or close it (`contextlib.closing`).

    Arguments:
        reader: The source of the rows.
        requests: The rows of each batch.

    Raises:
        Exception: Any exception of the reader, raised when the iterator reaches the failed batch.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="pyro_vae read_ahead")
    try:
        reading: Future[Batch] | None = None
        for rows in requests:
            following = pool.submit(reader.read, rows)
            if reading is not None:
                yield reading.result()
            reading = following
        if reading is not None:
            yield reading.result()
    finally:
        # Wait for a read that has begun, since the caller may close the file next.
        pool.shutdown(wait=True, cancel_futures=True)
