"""How much memory do ten million rows of local parameters need, and how much a file of 20 GB?

    rows    A small decoder is trained with `LocalParameters` for N data (8 features, 2 latents),
            for one pass in large batches. The data are in memory, because a table recognizes its
            rows by their content.
    file    N images of 784 bytes are written to a file, which is mapped into memory. All images
            are read once and checked, as `pv.fit` does with its data. A full epoch would take
            another half an hour, so a VAE is trained for one pass over every hundredth row (which
            `pv.fit` checks once more). Importance-weighted log p(y) is computed for some rows, one
            chunk at a time.

The benchmark measures the largest anonymous memory of the process (RssAnon of Linux, every 20 ms).
This is all the memory that the process allocated, without pages of the file that the system caches.
A run that takes more than its budget fails. Times and bytes per row are printed, too.

Run:  python benchmarks/scale.py      (--smoke for a quick look; --folder where 20 GB are free)
"""

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

import pyro_vae as pv
from pyro_vae.data import OnDisk, RowReader
from pyro_vae.data.streams import chunks
from pyro_vae.evidence.weights import check_data

FEATURES, LATENTS = 8, 2
PIXELS, BLOCK = 784, 2**17  # bytes of an image; images written at a time
EVERY = 0.02  # seconds between looks at the memory
MIB = 2**20


@dataclass(frozen=True)
class Sizes:
    """Sizes of the data and of the run, and the budgets of memory in MiB."""

    rows: int
    rows_batch: int
    rows_budget: int
    images: int
    every: int
    batch: int
    evaluated: int
    draws: int
    file_budget: int


FULL = Sizes(10_000_000, 16_384, 2048, 20 * 10**9 // PIXELS, 100, 512, 2_000, 1_000, 1024)
SMOKE = Sizes(20_000, 1_024, 2048, 20_000, 20, 100, 20, 100, 1024)


def anonymous() -> float:
    """Anonymous memory that the process holds now, in MiB."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if "RssAnon" in line) / 1024


@dataclass
class Peak:
    """The largest anonymous memory inside a `with` block, in MiB."""

    start: float = field(default_factory=anonymous)
    most: float = 0.0

    @contextmanager
    def watched(self) -> Iterator["Peak"]:
        """Measures the memory from a thread until the block is left."""
        done = threading.Event()

        def look() -> None:
            while not done.wait(EVERY):
                self.most = max(self.most, anonymous())

        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield self
        finally:
            done.set()
            thread.join()

    def report(self, budget: int) -> bool:
        """Prints the largest memory, and returns whether it is within the budget."""
        fits = self.most <= budget
        print(
            f"  largest anonymous memory {self.most:,.0f} MiB ({self.start:,.0f} before), budget "
            f"{budget:,} MiB: {'kept' if fits else 'EXCEEDED'}",
            flush=True,
        )
        return fits


@contextmanager
def timed(what: str, count: int, unit: str) -> Iterator[None]:
    """Prints how long a block took, in all and per unit."""
    start = time.perf_counter()
    yield
    seconds = time.perf_counter() - start
    print(f"  {what}: {seconds:,.1f} s, {1e3 * seconds / count:.3g} ms per {unit}", flush=True)


class Watch:
    """A transformation that leaves every batch unchanged and records when it came."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, y: Tensor) -> Tensor:
        """Records the time, and returns the batch unchanged."""
        self.times.append(time.perf_counter())
        return y

    def report(self) -> None:
        """Prints the median time between steps; the first call does not belong to a step."""
        steps = 1e3 * np.diff(self.times[1:])
        low, middle, high = np.quantile(steps, [0.05, 0.5, 0.95])
        print(
            f"  {len(steps) + 1} steps: {middle:.2f} ms per step ({low:.2f} to {high:.2f}: the "
            "middle 90 %)",
            flush=True,
        )


def rows_in_memory(sizes: Sizes) -> bool:
    """Trains with free parameters for every row; returns whether the budget was kept."""
    print(f"rows: LocalParameters({sizes.rows:,}), batches of {sizes.rows_batch:,}", flush=True)
    peak, watch = Peak(), Watch()
    with peak.watched():
        y = torch.randn(sizes.rows, FEATURES).mul_(0.3)
        y.addmm_(torch.randn(sizes.rows, LATENTS), torch.randn(LATENTS, FEATURES))
        model = pv.models.VAE(
            pv.nets.MLPDecoder(LATENTS, FEATURES, (32,)), pv.likelihoods.Gaussian(), LATENTS
        )
        guide = pv.Guide(model, pv.LocalParameters(sizes.rows))
        held = sum(part.nbytes for part in guide.map.buffers()) + 8 * sizes.rows  # and digests
        print(
            f"  data {y.nbytes / MIB:,.0f} MiB, table with its optimizer {held / MIB:,.0f} MiB "
            f"({held / sizes.rows:.0f} bytes per row)",
            flush=True,
        )
        with timed("pv.fit in all", sizes.rows, "row"):
            pv.fit(
                model, guide, pv.data.Augmented(y, watch), num_epochs=1,
                batch_size=sizes.rows_batch, progress=False,
            )  # fmt: skip
        watch.report()
    print(f"  largest memory / data and table: {peak.most * MIB / (held + y.nbytes):.2f}")
    return peak.report(sizes.rows_budget)


def write(path: Path, num_images: int) -> None:
    """Writes smooth images of a few shapes, shifted a little from block to block."""
    line = torch.linspace(0, 6, 28)
    phase = 6 * torch.rand(4, BLOCK, 1)
    wave = [((1 + index / 3) * line + phase[index]).sin() for index in range(2)]
    images = (wave[0].unsqueeze(-1) * wave[1].unsqueeze(-2)).reshape(BLOCK, PIXELS)
    block = (127.5 * (1 + images)).to(torch.uint8).numpy()
    header = {"descr": "|u1", "fortran_order": False, "shape": (num_images, PIXELS)}
    with path.open("wb") as file, tqdm(total=num_images, unit=" image", desc="write") as bar:
        np.lib.format.write_array_header_1_0(file, header)
        for index, first in enumerate(range(0, num_images, BLOCK)):
            part = np.roll(block, index, axis=1)[: num_images - first]
            part.tofile(file)
            bar.update(len(part))


class Every:
    """Every n-th row of a reader, from the first to the last."""

    def __init__(self, reader: RowReader, step: int) -> None:
        self.reader, self.step = reader, step

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.reader) // self.step

    def read(self, rows: Tensor) -> tuple[Tensor, ...]:
        """The tensors of these rows."""
        return self.reader.read(self.step * rows)


def rows_in_a_file(sizes: Sizes, path: Path) -> bool:
    """Checks, trains and evaluates on a mapped file; returns whether the budget was kept."""
    reader = OnDisk(np.load(path, mmap_mode="r"), transform=lambda y: y / 255)
    model = pv.models.VAE(
        pv.nets.MLPDecoder(8, PIXELS, (128,)), pv.likelihoods.Gaussian(), latent_dim=8
    )
    guide = pv.Guide(model, pv.Encoder(pv.nets.MLPEncoder(PIXELS, (128,))))
    peak, watch = Peak(), Watch()
    with peak.watched():
        with timed("all rows read and checked", len(reader), "row"):
            for batch in tqdm(chunks(reader), desc="check", unit=" chunk", leave=False):
                check_data(model, batch)
        part = Every(reader, sizes.every)
        with timed(f"pv.fit on every {sizes.every}th row, {len(part):,}", len(part), "row"):
            pv.fit(
                model, guide, pv.data.Augmented(part, watch), num_epochs=1,
                batch_size=sizes.batch, progress=False,
            )  # fmt: skip
        watch.report()
        with timed(f"log p(y), {sizes.draws} draws per row", sizes.evaluated, "row"):
            rows = torch.arange(sizes.evaluated) * len(reader) // sizes.evaluated
            method = pv.ImportanceSampling(sizes.draws)
            found = [
                pv.evaluate(model, guide, reader.read(some), method) for some in rows.split(500)
            ]
    mean = float(torch.cat([one.log_marginal.value for one in found]).mean())
    print(f"  mean log p(y) {mean:,.1f} nats")
    print(f"  size of the file / largest memory: {path.stat().st_size / MIB / peak.most:.1f}")
    return peak.report(sizes.file_budget)


def main() -> None:
    """Reads the arguments, and runs both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="few rows and a small file")
    parser.add_argument("--folder", help="where the file is written, and deleted afterwards")
    parser.add_argument("--only", choices=["rows", "file"], help="one of the two")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sizes, kept = SMOKE if options.smoke else FULL, True
    if options.only != "rows":  # first, since memory once had is not always given back
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            path = Path(folder) / "images.npy"
            write(path, sizes.images)
            print(f"file: {sizes.images:,} images, {path.stat().st_size / 1e9:.2f} GB", flush=True)
            kept = rows_in_a_file(sizes, path)
    if options.only != "file":
        kept = rows_in_memory(sizes) and kept
    sys.exit(0 if kept else "a run took more memory than its budget")


if __name__ == "__main__":
    main()
