"""The rows that training reads: tensors in memory, or data read on demand."""

import warnings
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
from ..evidence import check_data
from ..guides import is_tied_to_rows
from ..programs import as_batch, has_missing


class InMemory:
    """A reader of rows of tensors in memory."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.batch[0])

    def read(self, rows: Tensor) -> Batch:
        """The tensors of these rows."""
        return tuple(part.index_select(0, rows.to(part.device)) for part in self.batch)


class Moved:
    """A reader that moves its rows to a device."""

    def __init__(self, reader: RowReader, device: torch.device) -> None:
        self.reader, self.device = reader, device

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.reader)

    def read(self, rows: Tensor) -> Batch:
        """The tensors of these rows, on the device."""
        return as_batch(self.reader.read(rows), self.device)


class Collated:
    """A reader of a map-style torch data set, each of whose items is one tensor or several.

    Numbers that are not tensors, such as NumPy's, get torch's default dtype if they are float64.
    """

    def __init__(self, dataset: TorchDataset[Any]) -> None:
        if not isinstance(dataset, Sized):
            raise TypeError(
                f"{type(dataset).__name__} does not say how many rows it has: give it a __len__"
            )
        self.dataset = dataset

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.dataset)

    def read(self, rows: Tensor) -> Batch:
        """The tensors of these rows."""
        items = [self._item(row) for row in rows.tolist()]
        name, first = type(self.dataset).__name__, [tuple(part.shape) for part in items[0]]
        for row, item in zip(rows.tolist(), items, strict=True):
            shapes = [tuple(part.shape) for part in item]
            if shapes != first:
                raise ValueError(
                    f"the rows of {name} should have tensors of the same shapes, got {first} for "
                    f"row {int(rows[0])} and {shapes} for row {row}: let __getitem__ pad or cut "
                    "them, with nan for entries that are missing"
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
                f"row {row} of {type(self.dataset).__name__} is a {type(item).__name__}, expected "
                f"a tensor, or a tuple of tensors, arrays or numbers: {error}; let __getitem__ "
                "return those"
            ) from error


def _entry(part: Any) -> Tensor:
    """One tensor of a row."""
    if isinstance(part, Tensor):
        return part
    tensor = torch.as_tensor(np.asarray(part))
    return tensor.to(torch.get_default_dtype()) if tensor.dtype == torch.float64 else tensor


def reader_of(data: Any, device: torch.device) -> RowReader:
    """A reader of training data; memory-mapped arrays stay where they are.

    Raises:
        TypeError: If the data have no rows that can be indexed; says what to write instead.
    """
    if isinstance(data, DataLoader):
        raise TypeError(
            "fit makes its own batches: in place of the DataLoader pass its data set and its "
            "batch size, fit(..., loader.dataset, batch_size="
            f"{data.batch_size})"
        )
    if isinstance(data, IterableDataset):
        raise TypeError(
            "an IterableDataset has no rows to index: write a class with __len__ and read(rows), "
            "as "
            "pv.data.OnDisk has them"
        )
    if isinstance(data, TensorDataset):
        data = data.tensors
    elif isinstance(data, TorchDataset):
        return Moved(Collated(data), device)
    parts = data if isinstance(data, tuple) else (data,)
    if any(isinstance(part, np.memmap) for part in parts):
        data = OnDisk(*parts)
    if any(isinstance(part, Tensor) and part.layout != torch.strided for part in parts):
        raise TypeError("a sparse tensor has no rows to index: pass y.to_dense()")
    if isinstance(data, RowReader):
        return Moved(data, device)
    return InMemory(as_batch(data, device))


def check_rows(model: ProgramLike, guide: ProgramLike, reader: RowReader) -> Tensor:
    """Checks all rows before training, as :func:`pyro_vae.evidence.check_data` does.

    Data on disk are read once, piece by piece, and not checked for constant columns.

    Returns:
        Numbers of missing and of all entries of every tensor, `(tensors, 2)`.

    Raises:
        ValueError: If rows are refused, or the guide has parameters for each row and the data are
            on disk.
    """
    if isinstance(reader, InMemory):
        check_data(model, reader.batch)
        return _missing(reader.batch)
    if is_tied_to_rows(guide):
        raise ValueError(
            "a guide with free parameters for every row recognizes rows by their content, which "
            "has to be in memory: pass tensors, or use an amortized guide, pv.Encoder(...)"
        )
    first, missing = 0, torch.zeros(1, 2, dtype=torch.int64, device="cpu")
    for batch in chunks(reader):
        try:
            with warnings.catch_warnings():
                # A column may well be constant over a piece.
                warnings.filterwarnings("ignore", r".*columns are constant over", UserWarning)
                check_data(model, batch)
        except ValueError as error:
            last = first + len(batch[0]) - 1
            raise ValueError(f"in rows {first} to {last}, counted from {first}: {error}") from error
        first += len(batch[0])
        missing = missing + _missing(batch)
    return missing


def _missing(batch: Batch) -> Tensor:
    """Numbers of missing and of all entries of every tensor, `(tensors, 2)`."""
    counts = [(int(part.isnan().sum()) if has_missing(part) else 0, part.numel()) for part in batch]
    return torch.tensor(counts, device="cpu")


def share_missing(total: Tensor) -> float:
    """The share of missing entries in the tensors that have any."""
    missing, entries = total[total[:, 0] > 0].sum(dim=0).tolist()
    return float(missing / max(1, entries))


def head(reader: RowReader) -> Batch:
    """The first two rows, or the only one: enough to find a program's structure."""
    return reader.read(torch.arange(min(2, len(reader)), device="cpu"))


def spread_rows(count: int, most: int = 100) -> Int[Tensor, " rows"]:
    """Positions of at most `most` rows, evenly spread over all."""
    return torch.arange(0, count, -(-count // most), device="cpu")


def read_ahead(reader: RowReader, requests: Iterable[Tensor]) -> Generator[Batch, None, None]:
    """Reads batches of rows in order, each in the background while the one before is used.

    Rows in memory are read without a thread. Other readers are called in a single thread, which
    ends with the iterator: exhaust it, or close it (`contextlib.closing`).

    Arguments:
        reader: The source of the rows.
        requests: The rows of each batch.

    Raises:
        Exception: An exception of the reader, raised at the batch that could not be read.
    """
    if isinstance(reader, InMemory):
        yield from map(reader.read, requests)
        return
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
        # A read that has begun is waited for: the file may be closed next.
        pool.shutdown(wait=True, cancel_futures=True)
