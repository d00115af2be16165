"""How much memory does a memory map need, for an epoch, an evaluation and the gap of a large file?

A file of float32 rows is mapped, used for one epoch of training, and evaluated with ten draws per
datum. With `--gap`, the inference gap is computed, too. The benchmark prints the time and the
largest anonymous memory of each part, which does not include pages of the file that the system
caches. A part that takes more than the budget fails.

Run:  python benchmarks/larger_than_memory.py      (--smoke for a quick look; --folder where the
file fits; --gap for the gap, too)
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scale import Peak, timed

import pyro_vae as pv

COLUMNS, PIECE = 1024, 1000
BUDGET = 3072  # MiB
DRAWS = 10


def mapped(folder: str, gigabytes: float) -> np.ndarray:
    """Writes and maps a file of rows: the same noise in every piece, around growing means."""
    rows = int(gigabytes * 1e9 / 4 / COLUMNS)
    path = Path(folder, "y.npy")
    array = np.lib.format.open_memmap(path, "w+", np.float32, (rows, COLUMNS))
    noise = np.random.default_rng(0).normal(size=(PIECE, COLUMNS)).astype(np.float32)
    for start in range(0, rows, PIECE):
        array[start : start + PIECE] = noise[: rows - start] + start / rows
    array.flush()
    mapped: np.ndarray = np.load(path, mmap_mode="r")
    return mapped


def fits(what: str, rows: int, call: Callable[[], object]) -> bool:
    """Runs a part, and returns whether it kept within the budget."""
    with Peak().watched() as peak, timed(what, rows, "row"):
        call()
    return peak.report(BUDGET)


def main() -> None:
    """Trains, evaluates and, if asked, computes the gap."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=6.0)
    parser.add_argument("--folder", default=None)
    parser.add_argument("--gap", action="store_true")
    parser.add_argument("--smoke", action="store_true")
    given = parser.parse_args()
    torch.manual_seed(0)
    model = pv.models.VAE(pv.nets.MLPDecoder(2, COLUMNS, (8,)), pv.likelihoods.Gaussian(), 2)
    guide = pv.Guide(model, pv.Encoder(pv.nets.MLPEncoder(COLUMNS, (8,))))
    draws = pv.ImportanceSampling(DRAWS)
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        y = mapped(folder, 0.05 if given.smoke else given.gigabytes)
        print(f"{len(y):,} rows of {COLUMNS} float32, {y.nbytes / 1e9:.2f} GB")
        parts: dict[str, Callable[[], object]] = {
            "fit": lambda: pv.fit(model, guide, y, num_epochs=1, batch_size=512),
            "evaluate": lambda: pv.evaluate(model, guide, y, draws),
        }
        if given.gap:
            parts["gap"] = lambda: pv.inference_gap(model, guide, y, estimator=draws)
        kept = [fits(what, len(y), call) for what, call in parts.items()]
    sys.exit(not all(kept))


if __name__ == "__main__":
    main()
