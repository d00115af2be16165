"""Asks the ladder for log p(y) of a program under a guide, and counts what came."""

import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.evidence import RUNGS, Inference, LadderMarginal, Proposal, Rung, Widened
from pyro_vae.evidence.fitted import starting_points
from pyro_vae.evidence.optima import best_of_family
from pyro_vae.evidence.weights import conditioned
from pyro_vae.guides import FamilyPosterior, FitRows, Posterior
from pyro_vae.programs import Program
from pyro_vae.randomness import stream
from tests.trust.programs import PROGRAMS, Known

_EXACT = (Rung.CLOSED_FORM, Rung.QUADRATURE)
_ROUNDING = 1e-6  # nats; weights that are all alike have an error below it, and are exact


def _fitted(program: Program, posterior: Posterior, batch: tuple[Tensor, ...]) -> FamilyPosterior:
    family = pv.FullRankNormal()
    places = starting_points(program, posterior, batch, family)
    fit = best_of_family(program, batch, family, places, FitRows(tolerance=0.01), progress=False)
    return FamilyPosterior(family, fit.parameters)


def _shifted(good: FamilyPosterior) -> FamilyPosterior:
    """By one standard deviation in every latent."""
    deviations = good.family(good.parameters).stddev
    latents = deviations.shape[-1]
    moved = torch.cat([good.parameters[:, :latents] + deviations, good.parameters[:, latents:]], 1)
    return replace(good, parameters=moved)


def _scaled(factor: float) -> Proposal:
    def guide(program: Program, posterior: Posterior, batch: tuple[Tensor, ...]) -> Posterior:
        return Widened(factor)(program, _fitted(program, posterior, batch), batch)

    return guide


GUIDES: dict[str, Proposal] = {
    "good": _fitted,
    "narrow": _scaled(0.7),
    "wide": _scaled(2.0),
    "shifted": lambda *inference: _shifted(_fitted(*inference)),
    "untrained": lambda program, posterior, batch: posterior,
}
"""From the prior: a Gaussian fitted to each datum, ways to spoil it, and the prior itself."""


class Task(NamedTuple):
    """Some of the data of one program under one guide.

    Arguments:
        program: Its name.
        guide: Its name.
        data: How many of the program there are.
        first: The first that is asked for.
        number: How many are.
        seed: Of the ladder's draws.
    """

    program: str
    guide: str
    data: int
    first: int
    number: int
    seed: int = 0


class Answer(NamedTuple):
    """What the ladder says of some data, beside the truth: a number of each in every list.

    Arguments:
        off: Its log p(y) less the true one, nats.
        error: As it states it, nats.
        reliable: Whether it says so.
        rung: Position in :data:`pyro_vae.evidence.RUNGS`.
        draws: Of all data.
        seconds: Of one core.
    """

    off: list[float]
    error: list[float]
    reliable: list[bool]
    rung: list[int]
    draws: int
    seconds: float

    @classmethod
    def of(cls, found: LadderMarginal, log_p: Tensor, seconds: float) -> "Answer":
        """An answer beside the truth."""
        columns = (found.value - log_p, found.error, found.reliable, found.rung)
        off, error, reliable, rung = (column.tolist() for column in columns)
        return cls(off, error, reliable, rung, int(found.num_samples.sum()), seconds)


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
    error: float
    draws: int
    seconds: float
    rungs: dict[str, int]

    @classmethod
    def of(cls, program: str, guide: str, answers: Sequence[Answer]) -> "Cell":
        """Counts answers to all parts of the data."""
        columns = zip(*(answer[:4] for answer in answers), strict=True)
        off, error, reliable, rung = (torch.tensor(list(chain(*column))) for column in columns)
        off = off.abs()
        exact = torch.tensor([RUNGS[place] in _EXACT for place in rung.tolist()])
        sampled = reliable & ~exact & (error > _ROUNDING)
        beyond = (exact & (off > error + 1e-9)) | (reliable & ~exact & ~sampled & (off > _ROUNDING))
        counts = rung.bincount(minlength=len(RUNGS)).tolist()
        return cls(
            program, guide, len(off), int(reliable.sum()), int(sampled.sum()),
            covered=int((off <= 1.96 * error)[sampled].sum()),
            beyond=int(beyond.sum()),
            wrong=int((reliable & ~(off <= 5 * error + _ROUNDING)).sum()),
            error=float(error.median()),
            draws=sum(answer.draws for answer in answers),
            seconds=sum(answer.seconds for answer in answers),
            rungs={rung.name.lower(): n for rung, n in zip(RUNGS, counts, strict=True) if n},
        )  # fmt: skip

    def row(self) -> str:
        """A line of the table."""
        share = f"{self.covered / self.sampled:.1%}" if self.sampled else "-"
        rungs = ", ".join(f"{name} {count}" for name, count in self.rungs.items())
        return (
            f"| {self.program:21} | {self.guide:9} | {self.reliable / self.data:7.1%} | {share:>6} "
            f"| {self.beyond:6} | {self.wrong:5} | {self.error:8.2g} | {self.draws:10,} "
            f"| {self.seconds:7.1f} | {rungs} |"
        )


HEADER = (
    f"| {'program':21} | {'guide':9} | trusted |  cover | beyond | wrong |    error |      draws "
    "| seconds | rungs |\n|" + "|".join(["---"] * 2 + ["---:"] * 7 + ["---"]) + "|"
)


@cache
def known(name: str, num: int) -> Known:
    """A program and its data; the same for the same number."""
    torch.manual_seed(zlib.crc32(name.encode()))
    return PROGRAMS[name](num)


def asked(task: Task) -> Answer:
    """The ladder's answer; whoever asks has set the dtype of the truth, float64."""
    case, rows = known(task.program, task.data), slice(task.first, task.first + task.number)
    data, ladder = tuple(tensor[rows] for tensor in case.batch), pv.Tightest()
    guide = pv.Guide(case.model, pv.GlobalParameters(), example=tuple(t[:2] for t in data))
    with conditioned(case.model, guide, data, task.seed) as (program, prior, batch):
        posterior = GUIDES[task.guide](program, prior, batch)
        own = stream(task.seed, f"trust.{task.guide}")  # so two guides share no draw
        begun = time.process_time()
        estimator = ladder.sampled if case.sampled else ladder
        found = estimator(Inference(program, posterior, batch), seed=own, progress=False)
        return Answer.of(found, case.log_p[rows], time.process_time() - begun)


def cells(name: str, num: int, guides: Sequence[str], seed: int = 0) -> list[Cell]:
    """Some guides of one program, in this process."""
    tasks = [Task(name, guide, num, 0, num, seed) for guide in guides]
    return [Cell.of(name, task.guide, [asked(task)]) for task in tasks]
