"""The rows that training reads: tensors in memory, or what is read when it is needed."""

import warnings
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, default_collate
from torch.utils.data import Dataset as TorchDataset

from .._types import Batch
from ..data import OnDisk, RowReader
from ..data.streams import chunks
from ..evidence import check_data
from ..guides import is_tied_to_rows
from ..programs import as_batch, has_missing


class InMemory:
    """Tensors, as a reader of their rows."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.batch[0])

    def read(self, rows: Tensor) -> Batch:
        """The tensors of these rows."""
        return tuple(part[rows.to(part.device)] for part in self.batch)


class Moved:
    """A reader whose rows are put on a device."""

    def __init__(self, reader: RowReader, device: torch.device) -> None:
        self.reader, self.device = reader, device

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.reader)

    def read(self, rows: Tensor) -> Batch:
        """The tensors of these rows, on the device."""
        return as_batch(self.reader.read(rows), self.device)


class Collated:
    """A map-style data set of torch's, as a reader of its rows; a row is a tensor, or several."""

    def __init__(self, dataset: TorchDataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.dataset)  # type: ignore[arg-type]

    def read(self, rows: Tensor) -> Batch:
        """The tensors of these rows."""
        batch = default_collate([self.dataset[row] for row in rows.tolist()])
        return tuple(batch) if isinstance(batch, list | tuple) else (batch,)


def reader_of(data: Any, device: torch.device) -> RowReader:
    """A reader of training data; memory-mapped arrays stay where they are.

    Raises:
        TypeError: If data are of a kind that has no rows to draw; with the line to write.
    """
    if isinstance(data, DataLoader):
        raise TypeError(
            "fit draws batches by itself, from rows that it can name: in place of the DataLoader "
            f"pass its data set and its batch size, fit(..., loader.dataset, batch_size="
            f"{data.batch_size})"
        )
    if isinstance(data, IterableDataset):
        raise TypeError(
            "an IterableDataset has no rows to draw: write a class with __len__ and read(rows), as "
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
        raise TypeError("a sparse tensor has no rows to draw: pass y.to_dense()")
    if isinstance(data, RowReader):
        return Moved(data, device)
    return InMemory(as_batch(data, device))


def check_rows(model: Any, guide: Any, reader: RowReader) -> Tensor:
    """Checks all rows at the door, as :func:`pyro_vae.evidence.check_data` does.

    What is on disk is read once for it, piece by piece; whether a column is constant throughout
    is not looked at there.

    Returns:
        Missing entries and all entries of every tensor, `(tensors, 2)`.

    Raises:
        ValueError: If rows are refused, or the guide has parameters of its own for each row of
            data that are on disk.
    """
    if isinstance(reader, InMemory):
        check_data(model, reader.batch)
        return _missing(reader.batch)
    if is_tied_to_rows(guide):
        raise ValueError(
            "a guide with free parameters for every row knows its rows by all of their content, "
            "which has to be in memory: pass tensors, or take an amortized guide, pv.Encoder(...)"
        )
    first, missing = 0, torch.zeros(1, 2, dtype=torch.int64)
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
    """Missing entries and all entries of every tensor, `(tensors, 2)`."""
    counts = [(int(part.isnan().sum()) if has_missing(part) else 0, part.numel()) for part in batch]
    return torch.tensor(counts)


def share_missing(total: Tensor) -> float:
    """The share of entries that are missing, in the tensors that have such."""
    missing, entries = total[total[:, 0] > 0].sum(dim=0).tolist()
    return float(missing / max(1, entries))


def head(reader: RowReader) -> Batch:
    """Two rows, or one if there are no more: enough to see what a program is."""
    return reader.read(torch.arange(min(2, len(reader))))


def read_ahead(reader: RowReader, requests: Iterable[Tensor]) -> Generator[Batch, None, None]:
    """Reads batches of rows in their order, those after the current one in the background.

    Rows in memory are taken when it is their turn. Of other readers one call runs at a time, in a
    thread that ends with the iterator: exhaust it, or close it (`contextlib.closing`).

    Arguments:
        reader: Where the rows are.
        requests: The rows of each batch.

    Raises:
        Exception: What the reader raises, in the order of the batches: when it is the turn of
            the one that could not be read.
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
