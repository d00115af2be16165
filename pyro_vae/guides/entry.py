"""Guides of any origin that are tied to the rows they were trained on, and new rows for them."""

from collections.abc import Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from torch import Tensor

from .._types import Batch, Data, ProgramLike
from ..programs import Program, evaluating, modules_of
from .climbing import FitRows
from .contract import check_sites
from .guide import Guide
from .maps import InferenceMap
from .posteriors import Posterior
from .shared import values_of
from .tied import REMEDY, automatic_globals, automatic_posterior, program_posterior, tied_site

_GLOBAL_DRAWS = 200  # of sites that all data share: a point is wanted, not an estimate


def maps_of(guide: ProgramLike) -> list[InferenceMap]:
    """Inference maps of a guide: its own, or those of the guides that it delegates to."""
    modules = (part for module in modules_of(guide) for part in module.modules())
    return list(dict.fromkeys(part.map for part in modules if isinstance(part, Guide)))


def is_tied_to_rows(guide: ProgramLike) -> bool:
    """Whether a guide, or one that it delegates to, answers only for its training rows."""
    return isinstance(guide, AutoGuide) or any(map.per_row for map in maps_of(guide))


def row_buffers(guide: ProgramLike) -> list[Tensor]:
    """What belongs to rows: tables with their optimizers."""
    return [buffer for map in maps_of(guide) if map.per_row for buffer in map.buffers()]


def for_new_rows(
    guide: ProgramLike,
    data: Data,
    fitting: FitRows | None = None,
    *,
    given: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Any:
    """The guide for data it was not trained on: fitted to them if it is tied to rows.

    Arguments:
        guide: A :class:`pyro_vae.Guide`, or a guide program written by hand.
        data: The batch tensor, or a tuple of them.
        fitting: How to fit; see :class:`FitRows`.
        given: Values of the latent sites that all data share.
        seed: Seed of the draws; the caller's random stream is left alone.
        progress: Whether to show a progress bar; by default on terminals and in notebooks.

    Returns:
        A guide that is not tied to rows as it is, else one with parameters for every new row.

    Raises:
        TypeError: If the guide is a module around one that is tied to rows: what that module
            makes of it is not known for new rows.
    """
    if not is_tied_to_rows(guide):
        return guide
    if isinstance(guide, AutoGuide):
        raise TypeError(f"{type(guide).__name__} is tied to its rows: {REMEDY}")
    if not isinstance(guide, Guide):
        raise TypeError(
            f"{type(guide).__name__} holds a pv.Guide with free parameters for every training row, "
            "which has no parameters for other data: pass that pv.Guide itself, whose rows are "
            "fitted to new data, or put an amortized guide, pv.Encoder(net), inside"
        )
    return guide.fit_rows(data, fitting, given=given, seed=seed, progress=progress)


def given_globals(
    program: Program, guide: ProgramLike, batch: Batch, values: Mapping[str, Tensor] | None
) -> Program:
    """The program with its global sites at given values, or at the mean of their posterior.

    For a guide written by hand that is the mean of draws, of the unconstrained values.
    """
    if values is not None or not program.global_sites:
        return program.given(values or {})
    return program.given(_mean_globals(program, guide, batch), "the mean of their posterior")


@torch.no_grad()
def _mean_globals(program: Program, guide: ProgramLike, batch: Batch) -> dict[str, Tensor]:
    own = getattr(guide, "global_values", None)
    if own is not None:
        values: dict[str, Tensor] = own()
        return values
    if isinstance(guide, AutoGuide):
        return values_of(program, automatic_globals(program, guide)[0])
    return values_of(program, _mean_of_draws(program, guide, batch))


def _mean_of_draws(program: Program, guide: ProgramLike, batch: Batch) -> Tensor:
    rows = tuple(part[:1] for part in batch)
    try:
        with torch.random.fork_rng():  # the draw of this run is no draw of anybody's
            program.run_guide(guide, rows)
    except Exception:  # it is tied to all of its rows
        rows = batch
    means: dict[str, list[Tensor]] = {site.name: [] for site in program.global_sites}
    for _ in range(_GLOBAL_DRAWS):
        run = program.run_guide(guide, rows)
        check_sites(program, run, means)
        for site in program.global_sites:
            means[site.name].append(site.flatten(run[site.name].value))
    return torch.cat([torch.stack(draws).mean(dim=0) for draws in means.values()])


def program_of(model: ProgramLike, guide: ProgramLike, batch: Batch) -> Program:
    """The structure of a model; a guide made for that very model knows it already."""
    program = getattr(guide, "program", None)
    if isinstance(program, Program) and program.model == model:  # methods are never the same
        return program
    return Program(model, *batch)


def posterior_of(guide: ProgramLike, program: Program, batch: Batch) -> Posterior:
    """What a guide says about a batch, whoever made it; checked by calling it on a few rows.

    Raises:
        TypeError: If the guide is an automatic guide of Pyro's that is not mean-field.
        ValueError: If the guide is tied to rows and these are not all of them.
    """
    if isinstance(guide, AutoGuide):
        return automatic_posterior(program, guide, len(batch[0]))
    posterior = getattr(guide, "posterior", None)
    if posterior is None:
        return program_posterior(program, guide, batch)
    # A map of ours may look at the model, with its global sites at the same values.
    given = {"given": program.fixed} if program.fixed else {}
    answer: Posterior = posterior(*batch, **given)
    return answer


def require_new_rows(model: ProgramLike, guide: ProgramLike, rows: Batch) -> None:
    """Refuses a guide that has no answer for other data than its own, before it is trained.

    Arguments:
        model: The model.
        guide: The guide, which may not have been called yet.
        rows: All rows that it is for.

    Raises:
        TypeError: If it is tied to these rows and has no way of fitting others; with the remedy.
    """
    if isinstance(guide, Guide):
        return
    if is_tied_to_rows(guide):
        for_new_rows(guide, rows, progress=False)
    elif getattr(guide, "posterior", None) is None:
        program = program_of(model, guide, rows)
        with evaluating(model, guide):
            site = tied_site(program, guide, rows)
        if site is not None:
            raise TypeError(f"q of site '{site}' in the guide is tied to its rows: {REMEDY}")


def prepare_training(program: Program, guide: ProgramLike, rows: Batch, batch_size: int) -> bool:
    """Gets a guide that is tied to rows ready to be trained on them.

    Arguments:
        program: The model.
        guide: The guide.
        rows: All rows that it is trained on.
        batch_size: Rows of a step.

    Returns:
        Whether it has to be called with all rows, in their order: it is tied to them, and made by
        hand or by Pyro.

    Raises:
        ValueError: If it is, and a step has fewer rows.
    """
    for map in maps_of(guide):
        map.remember(*rows)
    if maps_of(guide):
        return False
    with evaluating(guide):
        site = "" if isinstance(guide, AutoGuide) else tied_site(program, guide, rows)
    if site is None:
        return False
    if batch_size < len(rows[0]):
        raise ValueError(
            f"the guide is tied to its {len(rows[0])} rows, and a step has {batch_size} of them: "
            f"pass batch_size={len(rows[0])}; or, {REMEDY}"
        )
    if isinstance(guide, AutoGuide) and guide.prototype_trace is None:
        with poutine.block():
            guide(*rows)  # makes its parameters
    return True
