"""Cells of the corpus: a program, a guide, a question, and what came of it."""

import math
import re
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO
from pyro.optim import Adam  # type: ignore[attr-defined]
from torch import Tensor, nn

import pyro_vae as pv
from tests.corpus.case import PROGRAMS, Case, Trunk

PACKAGE = str(Path(pv.__file__).parent)
NAMES = re.compile(r"'\w+|\w+=|pv\.\w+")  # of a site or plate, an argument, a remedy
ERRORS = 5.0  # a correct cell of four data fails with a probability near 2e-6


@dataclass(frozen=True)
class Outcome:
    """What came of a cell: `right`, `doubted`, `refused`, `wrong` or `failed`; and in words.

    Nothing in a `doubted` cell was called reliable; a `failed` one ended in an error from inside
    Pyro or torch, or in one that names nothing of the program.
    """

    kind: str
    words: str = ""
    seconds: float = 0.0


class Wrong(AssertionError):
    """A number that is wrong although it can be trusted by its own account."""


class Doubted(AssertionError):
    """Nothing of what came was called reliable."""


def require(holds: Tensor | object, words: str) -> None:
    """Raises `Wrong` unless everything holds."""
    if not bool(torch.as_tensor(holds).all()):
        raise Wrong(words)


# Guides of a program.

MAPS: dict[str, Callable[[Case], pv.InferenceMap]] = {
    "encoder": lambda case: pv.Encoder(Trunk(*case.data)),
    "local": lambda case: pv.LocalParameters(len(case.data[0])),
    "refined": lambda case: pv.Refined(pv.Encoder(Trunk(*case.data)), steps=2),
    "global": lambda case: pv.GlobalParameters(),
}
GUIDES = ("author", *MAPS)


def guide_of(case: Case, name: str) -> Any:
    """The author's own guide, or one whose parameters come from a map."""
    if name == "author":
        return case.guide
    return pv.Guide(case.model, MAPS[name](case), example=case.data)


# Questions about a program and a guide.


def slack(truth: Tensor) -> Tensor:
    """What float32 may round."""
    return 1e-6 + 4e-6 * truth.abs()


def bound(case: Case, name: str) -> None:
    """The ELBO is below the truth, and log p by the same draws is it wherever called reliable."""
    guide, given = guide_of(case, name), case.given or None
    result = pv.evaluate(case.model, guide, case.data, pv.ImportanceSampling(200), given=given)
    value, error = result.bound.value, result.bound.error
    require(value.isfinite(), f"an ELBO of {value}")
    above = value - case.log_prob
    require(above <= ERRORS * error + slack(case.log_prob), f"ELBO - log p = {above} ± {error}")
    near(result.log_marginal, case.log_prob)


def evidence(case: Case, name: str) -> None:
    """Log p(y_n) is the truth wherever it is called reliable; at least one datum is."""
    decided(case, lambda estimator: log_marginal(case, guide_of(case, name), estimator))


def decided(case: Case, question: Callable[[Any], None]) -> None:
    """Asks with the estimator of the case; in doubt, as verdicts say, with the tightest."""
    try:
        question(case.estimator)
    except Doubted:
        question(pv.Tightest())


def log_marginal(case: Case, guide: Any, estimator: Any) -> None:
    """Log p(y_n) by one estimator."""
    given = case.given or None
    result = pv.log_marginal_likelihood(case.model, guide, case.data, estimator, given=given)
    agrees(result, case.log_prob)


def agrees(result: Any, truth: Tensor) -> None:
    """Asserts that something is called reliable, and what is so, is the truth."""
    near(result, truth)
    if not result.reliable.any():
        raise Doubted("; ".join(result.why_not(0)))


def near(result: Any, truth: Tensor) -> None:
    """Asserts that what is called reliable is the truth, within five errors."""
    off = result.value - truth
    close = off.abs() <= ERRORS * result.error + slack(truth)
    require(close | ~result.reliable, f"log p - truth = {off} ± {result.error}, reliable")


def gap(case: Case, name: str) -> None:
    """The parts add up, have their signs, and stand on the truth."""
    decided(case, lambda estimator: parts_of_gap(case, guide_of(case, name), estimator))


def parts_of_gap(case: Case, guide: Any, estimator: Any) -> None:
    """The gap by one estimator."""
    result = pv.inference_gap(
        case.model, guide, case.data, given=case.given or None, num_samples=200,
        estimator=estimator, fitting=pv.FitRows(num_particles=16),
    )  # fmt: skip
    inference, sum_of_parts = (
        result.inference.value,
        (result.approximation.value + result.amortization.value),
    )
    require((inference - sum_of_parts).abs() <= slack(inference), "the parts do not add up")
    for kind in ("inference", "approximation", "amortization"):
        part = getattr(result, kind)
        negative = part.value < -ERRORS * part.error - slack(case.log_prob)
        require(~(negative & result.reliable), f"{kind} = {part.value} ± {part.error}")
    agrees(result.log_marginal, case.log_prob)


def other_rows(case: Case, name: str) -> None:
    """The ELBO of some rows in another order is what it was: q depends on a row's content alone.

    A guide that is tied to rows says so, and is told which ones they are.
    """
    guide, some = guide_of(case, name), torch.tensor([2, 1])
    data = tuple(part[some] for part in case.data)
    before = elbo_of(case, guide, case.data)
    try:
        after = elbo_of(case, guide, data)
    except ValueError as refusal:
        if "pv.minibatch" not in str(refusal):
            raise
        with pv.minibatch(some, num_data=len(case.data[0])):
            after = elbo_of(case, guide, data)
    off = after.value - before.value[some]
    error = (before.error[some] ** 2 + after.error**2).sqrt()
    close = off.abs() <= ERRORS * error + slack(case.log_prob[some])
    require(close, f"ELBO of rows 2 and 1 after - before = {off} ± {error}")


def elbo_of(case: Case, guide: Any, data: tuple[Tensor, ...]) -> Any:
    """The ELBO of some data."""
    return pv.elbo(case.model, guide, data, 100, given=case.given or None)


def parts_of(*objects: Any) -> Iterator[nn.Module]:
    """The modules in programs, whether they are modules, methods or closures."""
    for item in objects:
        inner = getattr(item, "__self__", item)
        if isinstance(inner, nn.Module):
            yield from inner.modules()
        for cell in getattr(item, "__closure__", None) or ():
            if isinstance(cell.cell_contents, nn.Module):
                yield from cell.cell_contents.modules()


def fit(case: Case, name: str) -> None:
    """Two epochs leave modes alone and end in finite numbers."""
    guide = guide_of(case, name)
    modules = list(parts_of(case.model, guide))
    modes = [module.training for module in modules]
    size = case.batch_size
    result = pv.fit(case.model, guide, case.data, num_epochs=2, batch_size=size, progress=False)
    require(torch.as_tensor(result.history.elbo).isfinite(), f"ELBO {result.history.elbo}")
    require([module.training for module in modules] == modes, "a module changed its mode")


def compare(case: Case, name: str) -> None:
    """Under a fixed model log p of the same data is the truth, whatever the guide."""
    candidate = case.guide if name == "author" else MAPS[name](case)
    table = pv.compare(
        case.model, {"this": candidate, "global": pv.GlobalParameters()}, case.data, case.data,
        train_model=False, num_epochs=1, evaluation=pv.ImportanceSampling(100),
        estimator=pv.Tightest(), progress=False,
    )  # fmt: skip
    require(len(table.results) == 2, "a guide is missing")
    if not case.given:  # else conditional on what training found for the shared sites
        agrees(table.results["this"].gap.log_marginal, case.log_prob)


def arviz(case: Case, name: str) -> None:
    """Draws of every continuous latent, finite."""
    data = pv.to_inference_data(case.model, guide_of(case, name), case.data, num_samples=40)
    names = list(data.posterior.data_vars)
    require(len(names) > 0, "no latent site in the posterior")
    for site in names:
        require(torch.as_tensor(data.posterior[site].values).isfinite(), f"{site} is not finite")


def svi(case: Case, name: str) -> None:
    """Three steps of a user's own loop, on a minibatch, move what they train."""
    guide = guide_of(case, name)
    pyros = TraceEnum_ELBO(max_plate_nesting=2) if case.discrete else Trace_ELBO()
    loop = SVI(case.model, guide, Adam({"lr": 0.01}), case.loss or pyros)
    rows = torch.arange(case.batch_size)
    losses, states = [], []
    for _ in range(3):
        with pv.minibatch(rows, num_data=len(case.data[0])):
            losses.append(loop.step(*(part[rows] for part in case.data)))
        states.append(state_of(guide, case))
    require(all(map(math.isfinite, losses)), f"losses {losses}")
    moved = any(not torch.equal(*pair) for pair in zip(states[0], states[-1], strict=True))
    require(moved or not any(part.numel() for part in states[0]), "nothing moved")


def state_of(guide: Any, case: Case) -> list[Tensor]:
    """What training moves: entries of Pyro's store, and where a table's rows are."""
    stored = [value.detach().clone() for value in pyro.get_param_store().values()]
    return [*stored, guide.mean(case.data)] if isinstance(guide, pv.Guide) else stored


QUESTIONS: dict[str, Callable[[Case, str], None]] = {
    "elbo": bound, "rows": other_rows, "evidence": evidence, "gap": gap, "fit": fit,
    "compare": compare, "arviz": arviz, "svi": svi,
}  # fmt: skip


# Asking.


def ask(name: str, guide: str, question: str) -> Outcome:
    """What comes of one cell; a refusal's remedy is followed, and must be right."""
    return followed(attempt(PROGRAMS[name](), guide, question), PROGRAMS[name](), guide, question)


def followed(outcome: Outcome, case: Case, guide: str, question: str) -> Outcome:
    """A refusal, if its remedies and theirs lead to what is right; else something wrong."""
    if outcome.kind != "refused":
        return outcome
    for word, remedy in case.remedies.items():
        if word in outcome.words:
            with seeded():
                changed = remedy()
            after = followed(attempt(changed, guide, question), changed, guide, question)
            if after.kind not in ("right", "refused"):
                return Outcome("wrong", f"the remedy is {after.kind}: {after.words}")
    return outcome


def attempt(case: Case, guide: str, question: str) -> Outcome:
    """Makes the guide, asks the question; never raises."""
    start = time.perf_counter()
    kind, words = "right", ""
    pyro.clear_param_store()
    try:
        with warnings.catch_warnings(), seeded():
            warnings.simplefilter("ignore")
            QUESTIONS[question](case, guide)
    except Wrong as error:
        kind, words = "wrong", str(error)
    except Doubted as error:
        kind, words = "doubted", str(error)
    except Exception as error:
        kind, words = judged(error)
    finally:
        pyro.clear_param_store()
    return Outcome(kind, " ".join(words.split()), time.perf_counter() - start)


def judged(error: Exception) -> tuple[str, str]:
    """A refusal is of the library's own making, of the kinds that it promises, and names names."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = frames[-1].filename.startswith(PACKAGE)
    words = f"{type(error).__name__}: {error}"
    promised = isinstance(error, (ValueError, TypeError, NotImplementedError))
    if ours and promised and NAMES.search(str(error)):
        return "refused", words
    where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}"
    return "failed", f"{words} (from {where})"


@contextmanager
def seeded() -> Iterator[None]:
    """The same weights of nets in every cell, and a random stream left as it was found."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20)
        yield


def cells(names: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """Every cell of some programs."""
    for name in names:
        for guide in GUIDES:
            for question in QUESTIONS:
                yield name, guide, question
