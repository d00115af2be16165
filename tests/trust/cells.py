"""Asks the ladder for log p(y) of a program under a guide, and counts what came."""

import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.evidence import (
    RUNGS,
    Inference,
    LadderMarginal,
    Rung,
    Widened,
    best_of_family,
    prepared,
    starts,
)
from pyro_vae.guides import FamilyPosterior, FitRows, Posterior
from pyro_vae.programs import Program
from pyro_vae.randomness import stream
from tests.trust.programs import PROGRAMS, Known

_EXACT = (Rung.CLOSED_FORM, Rung.QUADRATURE)
_ROUNDING = 1e-6  # nats; weights that are all alike have an error below it, and are exact


def _fitted(program: Program, prior: Posterior, batch: tuple[Tensor, ...]) -> FamilyPosterior:
    family = pv.FullRankNormal()
    places = starts(program, prior, batch, family)
    fit = best_of_family(program, batch, family, places, FitRows(tolerance=0.01), progress=False)
    return FamilyPosterior(family, fit.parameters)


def _shifted(good: FamilyPosterior) -> FamilyPosterior:
    """By one standard deviation in every latent."""
    deviations = good.family(good.parameters).stddev
    latents = deviations.shape[-1]
    moved = torch.cat([good.parameters[:, :latents] + deviations, good.parameters[:, latents:]], 1)
    return replace(good, parameters=moved)


Variant = Callable[[Program, Posterior, FamilyPosterior, tuple[Tensor, ...]], Posterior]
GUIDES: dict[str, Variant] = {
    "good": lambda program, prior, good, batch: good,
    "narrow": lambda program, prior, good, batch: Widened(0.7)(program, good, batch),
    "wide": lambda program, prior, good, batch: Widened(2.0)(program, good, batch),
    "shifted": lambda program, prior, good, batch: _shifted(good),
    "untrained": lambda program, prior, good, batch: prior,
}


@dataclass(frozen=True)
class Cell:
    """Counts of what came of one program under one guide.

    Arguments:
        program: Its name.
        guide: Its name.
        data: How many were asked for.
        reliable: Those that are called so.
        sampled: Those of the reliable whose error is a Monte Carlo one.
        covered: Those of the sampled whose interval of 95 percent holds the truth.
        beyond: Exact answers that are off by more than the error that they state.
        wrong: Reliable, and off by more than five errors and a millionth of a nat.
        least: Share that must be reliable.
        error: The median, in nats.
        draws: Of all data.
        seconds: Of one core.
        rungs: Data by the way that was accepted.
    """

    program: str
    guide: str
    data: int
    reliable: int
    sampled: int
    covered: int
    beyond: int
    wrong: int
    least: float
    error: float
    draws: int
    seconds: float
    rungs: dict[str, int]

    @classmethod
    def of(
        cls, program: str, guide: str, known: Known, found: LadderMarginal, seconds: float
    ) -> "Cell":
        """Counts estimates beside the truth."""
        off, reliable = (found.value - known.log_p).abs(), found.reliable
        exact = torch.tensor([rung in _EXACT for rung in found.rungs])
        sampled = reliable & ~exact & (found.error > _ROUNDING)
        beyond = (exact & (off > found.error + 1e-9)) | (
            reliable & ~exact & ~sampled & (off > _ROUNDING)
        )
        counts = found.rung.bincount(minlength=len(RUNGS)).tolist()
        return cls(
            program, guide, len(off), int(reliable.sum()), int(sampled.sum()),
            covered=int((off <= 1.96 * found.error)[sampled].sum()),
            beyond=int(beyond.sum()),
            wrong=int((reliable & (off > 5 * found.error + _ROUNDING)).sum()),
            least=known.least,
            error=float(found.error.median()),
            draws=int(found.num_samples.sum()),
            seconds=seconds,
            rungs={rung.name.lower(): n for rung, n in zip(RUNGS, counts, strict=True) if n},
        )  # fmt: skip

    def row(self) -> str:
        """A line of the table."""
        share = f"{self.covered / self.sampled:6.1%}" if self.sampled else "     -"
        rungs = " ".join(f"{name}:{count}" for name, count in self.rungs.items())
        return (
            f"{self.program:22} {self.guide:10} {self.reliable / self.data:7.1%} {share} "
            f"{self.beyond:6} {self.wrong:5} {self.error:9.2g} {self.draws:9} "
            f"{self.seconds:7.1f}  {rungs}"
        )


HEADER = (
    f"{'program':22} {'guide':10} {'trusted':>7} {'cover':>6} {'beyond':>6} {'wrong':>5} "
    f"{'error':>9} {'draws':>9} {'seconds':>7}  rungs"
)


def known(name: str, num: int) -> Known:
    """A program and its data; the same for the same number."""
    torch.manual_seed(zlib.crc32(name.encode()))
    return PROGRAMS[name](num)


def cells(name: str, num: int, guides: list[str], seed: int = 0) -> Iterator[Cell]:
    """Some guides of one program; they share the fit that all but the untrained one come from."""
    case = known(name, num)
    guide = pv.Guide(case.model, pv.GlobalParameters(), example=tuple(t[:2] for t in case.batch))
    ladder = pv.Tightest()
    with prepared(case.model, guide, case.batch, seed) as (program, prior, batch):
        good = _fitted(program, prior, batch)
        for which in guides:
            posterior = GUIDES[which](program, prior, good, batch)
            begun = time.process_time()
            climb = ladder.sampled if case.sampled else ladder
            own = stream(seed, f"trust.{which}")  # guides that climb share no draw
            found = climb(Inference(program, posterior, batch), seed=own, progress=False)
            yield Cell.of(name, which, case, found, time.process_time() - begun)
