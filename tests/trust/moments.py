"""Counts standard deviations of posteriors that are called reliable, and those that are wrong.

`python -m tests.trust.moments [--data N] [programs ...]` asks :func:`pyro_vae.posterior_draws` for
the posteriors of :mod:`tests.trust.lines`, from the prior as the guide, and compares with sums over
a grid.
"""

import argparse
import warnings

import torch

import pyro_vae as pv
from pyro_vae.results import Doubt
from tests.trust.elbos import Cell
from tests.trust.lines import Line, flat, heavy, ordinary


def cell(name: str, line: Line, data: int) -> Cell:
    """Standard deviations of the posteriors of one program."""
    y = line.simulate(name, data)
    guide = pv.Guide(line.model, pv.GlobalParameters(), example=y[:2])
    draws = pv.posterior_draws(line.model, guide, y, num_samples=2, progress=False)
    value, error = (part[:, 0] for part in draws.posterior_sd)
    off = (value - line.posterior(y)[1]) / error
    known = torch.stack([mask for doubt, mask in draws.doubts.items() if doubt != Doubt.SD_TAIL])
    asked = ~known.any(dim=0)
    return Cell(off[asked], draws.sd_covers[asked, 0])


def main() -> None:
    """Prints the counts."""
    parser = argparse.ArgumentParser(prog="python -m tests.trust.moments", description=__doc__)
    parser.add_argument("programs", nargs="*", help="all unless named")
    parser.add_argument("--data", type=int, default=60, help="data of each program")
    chosen = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    groups = {"ordinary": ordinary(), "power law": heavy(), "flat likelihood": flat()}
    for group, lines in groups.items():
        found = []
        for name, line in lines.items():
            if name in (chosen.programs or lines):
                found.append(cell(name, line, chosen.data))
                print(f"{name:24} {found[-1].stated('standard deviations')}", flush=True)
        if found:
            print(f"{group:24} {Cell.joined(found).stated('standard deviations')}\n", flush=True)


if __name__ == "__main__":
    main()
