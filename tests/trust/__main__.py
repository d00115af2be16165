"""Prints the table, and says which promises are broken.

`python -m tests.trust [--size N] [--guide G ...] [--out FILE] [programs ...]`. With `--out` each
cell is written to a file as it comes, and a run that was cut short goes on from there.
"""

import argparse
import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

import torch

from tests.trust.cells import GUIDES, HEADER, Cell, cells
from tests.trust.programs import PROGRAMS
from tests.trust.promises import broken


def asked(name: str, size: int, guides: list[str], seed: int) -> list[Cell]:
    """All cells of a program, in a process of its own."""
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    return list(cells(name, size, guides, seed))


def came(chosen: argparse.Namespace, left: list[tuple[str, list[str]]]) -> Iterator[Cell]:
    """Cells that are still to be asked, in the order in which they come."""
    with ProcessPoolExecutor(chosen.jobs) as pool:
        tasks = [pool.submit(asked, name, chosen.size, gs, chosen.seed) for name, gs in left]
        for task in as_completed(tasks):
            yield from task.result()


def main() -> None:
    """Asks every cell, prints a line of each, and ends with what is broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.trust", description=__doc__)
    parser.add_argument("programs", nargs="*", help="all unless named")
    parser.add_argument("--size", type=int, default=500, help="data of each cell")
    parser.add_argument("--guide", choices=GUIDES, action="append")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--out", type=Path, help="file of cells, which are not asked again")
    chosen = parser.parse_args()
    lines = chosen.out.read_text().splitlines() if chosen.out and chosen.out.exists() else []
    done = [Cell(**json.loads(line)) for line in lines]
    names, guides = chosen.programs or list(PROGRAMS), chosen.guide or list(GUIDES)
    known = {(c.program, c.guide) for c in done if c.data == chosen.size}
    done = [c for c in done if c.data == chosen.size and c.program in names and c.guide in guides]
    left = [(name, [g for g in guides if (name, g) not in known]) for name in names]
    print("\n".join([HEADER, *(cell.row() for cell in done)]), flush=True)
    for cell in came(chosen, [(name, own) for name, own in left if own]):
        done.append(cell)
        print(cell.row(), flush=True)
        if chosen.out:
            with chosen.out.open("a") as file:
                print(json.dumps(asdict(cell)), file=file)
    faults = broken(done)
    seconds = sum(cell.seconds for cell in done)
    print(f"{len(done)} cells, {seconds:.0f} s of a core; {len(faults)} promises broken")
    if faults:
        raise SystemExit("\n".join(faults))


if __name__ == "__main__":
    main()
