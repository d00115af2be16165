"""Counts ELBOs that are called reliable, and those of them that are wrong: 13 programs, 5 guides.

`python -m tests.trust.elbos [--data N] [--runs N] [--draws K ...] [programs ...]` compares ELBOs
with sums over a grid (:mod:`tests.trust.lines`). It prints counts for each number of draws, and
with `--cells` those of each program and guide. Such a cell is called ordinary if, with every number
of draws, its intervals cover as they should (:data:`COVERS`) and no run is off by five errors. An
ELBO of an ordinary cell should not be doubted.
"""

import argparse
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.evidence import ImportanceSampling, Inference
from pyro_vae.evidence.results import mean_with_doubts
from pyro_vae.evidence.weights import conditioned
from pyro_vae.guides import FamilyPosterior
from tests.trust.lines import Line, ordinary

COVERS = 0.925  # share of 95% intervals in a cell that suffices to call the cell ordinary
_SMALL = 1e-6  # nats

GUIDES = {
    "good": (1.0, 0.0),
    "narrow": (0.6, 0.0),
    "wide": (2.0, 0.0),
    "shifted": (1.0, 1.0),
    "untrained": None,
}
"""Width and shift of a Gaussian guide, in standard deviations of the posterior; or N(0, 1)."""


@dataclass(frozen=True)
class Cell:
    """Runs of some programs under some guides.

    Arguments:
        off: Estimates less the true ELBOs, in standard errors; 0 if off by less than a millionth.
        reliable: Which of them are called so.
    """

    off: Tensor
    reliable: Tensor

    @classmethod
    def joined(cls, cells: Iterable["Cell"]) -> "Cell":
        """One cell of several."""
        parts = list(cells)
        return cls(*(torch.cat([getattr(c, k) for c in parts]) for k in ("off", "reliable")))

    @property
    def wrong(self) -> int:
        """Number of reliable ELBOs that are off by more than five errors."""
        return int((self.off.abs() > 5)[self.reliable].sum())

    @property
    def is_ordinary(self) -> bool:
        """Whether the plain intervals cover, so that nothing should be doubted."""
        covered = (self.off.abs() <= 1.96).double().mean()
        return float(covered) >= COVERS and float(self.off.abs().max()) <= 5

    def __str__(self) -> str:
        """States counts of the runs."""
        return self.stated("ELBOs")

    def stated(self, what: str) -> str:
        """States counts of the runs, of which each estimated one of `what`."""
        off, kept = self.off.abs(), self.off.abs()[self.reliable]
        return (
            f"{len(off):6,} {what}, {(off > 5).double().mean():.2%} off by 5 errors, at most "
            f"{float(off.max()):.0f}; {self.reliable.double().mean():5.1%} reliable, "
            f"{(kept <= 1.96).double().mean():.1%} of these covered, {self.wrong} off by 5 errors"
        )


def parameters(line: Line, y: Tensor, guide: str) -> Tensor:
    """Means and log standard deviations of a guide for every datum, `(data, 2)`."""
    if (spoilt := GUIDES[guide]) is None:
        return torch.zeros(len(y), 2)
    (mean, sd), (width, shift) = line.posterior(y), spoilt
    return torch.stack([mean + shift * sd, (width * sd).log()], dim=-1)


def cells(
    name: str, line: Line, guide: str, draws: Iterable[int], data: int, runs: int
) -> dict[int, Cell]:
    """Runs of one program under one guide, by their number of draws."""
    y = line.simulate(name, data)
    given = parameters(line, y, guide)
    truth, found = line.elbo(y, given[:, 0], given[:, 1].exp()), {}
    example = pv.Guide(line.model, pv.GlobalParameters(), example=y[:2])
    with conditioned(line.model, example, y, 0) as (program, _, batch):
        inference = Inference(program, FamilyPosterior(pv.DiagonalNormal(), given), batch)
        for number in draws:
            parts = []
            for seed in range(runs):
                plain = ImportanceSampling(number).sampling(inference, seed=seed, progress=False)
                log_weights = torch.cat([part.log_weights for part in plain.weights()], dim=1)
                mean, doubts = mean_with_doubts(log_weights)
                away = mean.value - truth
                off = (away / mean.error).where(away.abs() > _SMALL, 0.0)
                parts.append(Cell(off, ~torch.stack(list(doubts.values())).any(dim=0)))
            found[number] = Cell.joined(parts)
    return found


def main() -> None:
    """Prints the counts."""
    parser = argparse.ArgumentParser(prog="python -m tests.trust.elbos", description=__doc__)
    parser.add_argument("programs", nargs="*", help="all unless named")
    parser.add_argument("--data", type=int, default=80, help="data of each program")
    parser.add_argument("--runs", type=int, default=4, help="runs of each datum")
    parser.add_argument("--draws", type=int, nargs="+", default=[100, 1000, 5000])
    parser.add_argument("--cells", action="store_true", help="print every program and guide")
    chosen = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    found: dict[int, list[Cell]] = {number: [] for number in chosen.draws}
    for name, line in ordinary().items():
        if name not in (chosen.programs or ordinary()):
            continue
        for guide in GUIDES:
            own = cells(name, line, guide, chosen.draws, chosen.data, chosen.runs)
            for number, cell in own.items():
                found[number].append(cell)
                if chosen.cells:
                    print(f"{name:18} {guide:9} {number:5} draws: {cell}", flush=True)
    every = list(zip(*found.values(), strict=True))
    plain = [i for i, own in enumerate(every) if all(cell.is_ordinary for cell in own)]
    for number, parts in found.items():
        print(f"{number} draws, {len(parts)} cells: {Cell.joined(parts)}")
        print(f"{number} draws, {len(plain)} ordinary: {Cell.joined(parts[i] for i in plain)}")


if __name__ == "__main__":
    main()
