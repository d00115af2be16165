"""Asks the ladder for log p(y) of a program under a guide, and counts what came."""

import time
import zlib
from collections.abc import Callable
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
class Answer:
    """What came of one program under one guide."""

    program: str
    guide: str
    known: Known
    found: LadderMarginal
    seconds: float

    @property
    def off(self) -> Tensor:
        """Estimates less truth, in nats."""
        return self.found.value - self.known.log_p

    @property
    def exact(self) -> Tensor:
        """Data that were accepted by a way without draws."""
        return torch.tensor([rung in _EXACT for rung in self.found.rungs])

    @property
    def covered(self) -> Tensor:
        """Whether each interval of 95 percent holds the truth."""
        return self.off.abs() <= 1.96 * self.found.error + 1e-6

    @property
    def beyond(self) -> Tensor:
        """Exact answers that are off by more than they state."""
        return self.exact & (self.off.abs() > self.found.error + 1e-9)

    @property
    def wrong(self) -> Tensor:
        """Reliable, and off by more than five errors and a millionth of a nat."""
        return self.found.reliable & (self.off.abs() > 5 * self.found.error + 1e-6)

    def row(self) -> str:
        """A line of the table."""
        sampled = self.found.reliable & ~self.exact
        share = f"{self.covered[sampled].double().mean():6.1%}" if bool(sampled.any()) else "     -"
        counts = self.found.rung.bincount(minlength=len(RUNGS)).tolist()
        named = zip(RUNGS, counts, strict=True)
        rungs = " ".join(f"{rung.name.lower()}:{count}" for rung, count in named if count)
        return (
            f"{self.program:22} {self.guide:10} {self.found.reliable.double().mean():6.1%} "
            f"{share} {int(self.beyond.sum()):6} {int(self.wrong.sum()):5} "
            f"{float(self.found.error.median()):9.2g} {int(self.found.num_samples.sum()):9} "
            f"{self.seconds:7.1f}  {rungs}"
        )


HEADER = (
    f"{'program':22} {'guide':10} {'trusted':>6} {'cover':>5} {'beyond':>6} {'wrong':>5} "
    f"{'error':>9} {'draws':>9} {'seconds':>7}  rungs"
)


def known(name: str, num: int) -> Known:
    """A program and its data; the same for the same number."""
    torch.manual_seed(zlib.crc32(name.encode()))
    return PROGRAMS[name](num)


def answers(name: str, num: int, guides: list[str], seed: int = 0) -> list[Answer]:
    """All guides of one program; they share the fit that all but the untrained one come from."""
    case = known(name, num)
    guide = pv.Guide(case.model, pv.GlobalParameters(), example=tuple(t[:2] for t in case.batch))
    ladder = pv.Tightest()
    came = []
    with prepared(case.model, guide, case.batch, seed) as (program, prior, batch):
        good = _fitted(program, prior, batch)
        for which in guides:
            posterior = GUIDES[which](program, prior, good, batch)
            begun = time.perf_counter()
            climb = ladder.sampled if case.sampled else ladder
            own = stream(seed, f"trust.{which}")  # guides that climb share no draw
            found = climb(Inference(program, posterior, batch), seed=own, progress=False)
            came.append(Answer(name, which, case, found, time.perf_counter() - begun))
    return came
