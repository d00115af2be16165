"""Reading ahead: while a step runs, the rows of the next one are read in a thread."""

from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from torch import Tensor

from .._types import Batch
from ..data import RowReader
from .rows import InMemory


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
