"""Functions for guides of every kind: `pv.Guide`, modules that contain one, and Pyro's guides.

Code outside this folder treats these kinds alike. For any guide, this module finds the posterior of
a batch, a guide for new rows, the global sites, the model, and the trainable parts. Unsupported
requests are refused with a message that names the guide or site.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Annotated, Protocol, runtime_checkable

import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from torch import Tensor, nn

from .._annotations import Interval
from .._types import Batch, Data, ProgramLike
from ..formatting import count_of
from ..programs import Program, Run, evaluating
from ..programs.copies import SelfContained, no_new_parameters
from ..programs.modes import modules_of, reached_by
from ..programs.pieces import take_rows
from ..programs.traces import OutsideSupportError, TracedSite, total_log_prob
from ..randomness import forked, undisturbed
from .contract import (
    check_masks,
    check_sites,
    density_sites,
    drawn_discrete,
    is_delta,
    shared_densities,
)
from .families import TrainableFamily
from .guide import Guide
from .maps import InferenceMap
from .optimization import FitRows
from .posteriors import NoLatents, Posterior
from .row_fits import RowFit
from .shared import GlobalDraw, values_of
from .tied import (
    REMEDY,
    automatic_globals,
    automatic_posterior,
    is_uncalled,
    program_posterior,
    tied_site,
)

_FEW = 2  # rows that show which sites a guide has
_MANY = 1000  # rows that show whether q of the global sites depends on the data
_GLOBAL_DRAWS = 200  # draws for the mean of global sites, which need not be precise
_MEAN = "the mean of their posterior"


@runtime_checkable
class WithProgram(Protocol):
    """A guide that knows the model it was made for."""

    program: Program


@runtime_checkable
class WithPosterior(Protocol):
    """A guide with its own method for the posterior, such as a module around a `Guide`."""

    def posterior(self, *batch: Tensor, given: Mapping[str, Tensor] = ...) -> Posterior:
        """The posterior of a batch, with the global sites at the given values."""


@runtime_checkable
class WithGlobals(Protocol):
    """A guide with its own method for values of the global sites."""

    def global_values(self) -> dict[str, Tensor]:
        """Values of the global sites at the mean of their posterior."""


def guides_in(guide: ProgramLike) -> list[Guide]:
    """Lists every `pv.Guide` inside a guide, and the guide itself if it is a `pv.Guide`."""
    modules = (part for module in modules_of(guide) for part in module.modules())
    return list(dict.fromkeys(part for part in modules if isinstance(part, Guide)))


def maps_of(guide: ProgramLike) -> list[InferenceMap]:
    """Inference maps of a `pv.Guide`, or of every `pv.Guide` inside another guide."""
    return list(dict.fromkeys(part.map for part in guides_in(guide)))


def is_tied_to_rows(guide: ProgramLike) -> bool:
    """Whether a guide, or a guide inside it, works only for its training rows."""
    return isinstance(guide, AutoGuide) or any(map.per_row for map in maps_of(guide))


def updated_by_maps(guide: ProgramLike, leaves: Iterable[Tensor]) -> set[Tensor]:
    """Selects the leaf tensors that are updated by the guide's maps and not by an optimizer."""
    maps = maps_of(guide)
    return {leaf for leaf in leaves if any(map.owns(leaf) for map in maps)}


def row_buffers(guide: ProgramLike) -> list[Tensor]:
    """Buffers of the guide that belong to rows: parameter tables and their optimizer state."""
    return [buffer for map in maps_of(guide) if map.per_row for buffer in map.buffers()]


def model_of(guide: ProgramLike | None) -> ProgramLike | None:
    """The model that a guide was made for; `None` if the guide does not know it."""
    program = _own_program(guide)
    return None if program is None else program.model


def _own_program(guide: ProgramLike | None) -> Program | None:
    """The program that a guide was made for; `None` if the guide does not hold a `Program`."""
    if isinstance(guide, WithProgram) and isinstance(guide.program, Program):
        return guide.program
    return None


def has_parameters(guide: ProgramLike) -> bool:
    """Whether a guide may have trainable parameters. A guide with `ExactPosterior` has none."""
    held = reached_by(guide)
    # The parameters of a `SelfContained` program may not exist before its first call.
    return any(isinstance(part, Tensor | SelfContained) for part in held) or any(
        parameter.numel() > 0
        for module in held
        if isinstance(module, nn.Module)
        for parameter in module.parameters()
    )


def has_only_rows(guide: ProgramLike) -> bool:
    """Whether a guide trains a table of parameters per datum, and nothing else."""
    return (
        isinstance(guide, Guide)
        and guide.map.per_row
        and guide.shared is None
        and not isinstance(guide.family, TrainableFamily)
    )


def refined_guide(guide: ProgramLike, steps: int) -> Guide | None:
    """Copies a `Guide`; the copy refines the map's output by a few optimization steps.

    Returns `None` if the guide is not a `Guide`, is tied to rows, or has no parameters.
    """
    if not isinstance(guide, Guide) or is_tied_to_rows(guide) or not has_parameters(guide):
        return None
    return guide.refined(steps)


def row_fit_of(guide: ProgramLike) -> RowFit | None:
    """Result of fitting a guide's rows by `fit_rows` or `extended`; `None` if neither was used."""
    return guide.row_fit if isinstance(guide, Guide) else None


class SharedOnly:
    """A guide with the global sites of another guide, and without local sites.

    It can be called with any data, even if the other guide is tied to its training rows.

    Arguments:
        guide: The guide whose global sites are used.
    """

    def __init__(self, guide: Guide) -> None:
        self.guide, self.program = guide, guide.program

    def global_values(self) -> dict[str, Tensor]:
        """Values of the global latent sites, at the mean of their posterior."""
        return self.guide.global_values()

    def posterior(self, *batch: Tensor, given: Mapping[str, Tensor] | None = None) -> NoLatents:
        """Returns a posterior without latents."""
        return NoLatents.of(self.program, batch)

    def __call__(self, *batch: Tensor) -> None:
        """Does nothing, because there are no local sites to sample."""


def shared_only(guide: ProgramLike) -> ProgramLike:
    """Returns a guide with only the global sites of a `Guide`, for simulating data.

    The returned guide accepts any rows, even if the `Guide` is tied to other rows. A guide written
    by hand is returned unchanged, because only a call shows its global sites.
    """
    return SharedOnly(guide) if isinstance(guide, Guide) else guide


def for_any_rows(
    guide: ProgramLike | None, given: Mapping[str, Tensor] | None
) -> tuple[ProgramLike | None, Mapping[str, Tensor] | None]:
    """Returns a guide that accepts any rows, and values of the global sites.

    In place of a `Guide` that is tied to rows, `None` is returned. The values are then `given` or,
    by default, the means under this guide. With any other guide, both arguments are returned
    unchanged.
    """
    if not isinstance(guide, Guide) or not is_tied_to_rows(guide):
        return guide, given
    return None, (guide.global_values() or None) if given is None else given


def for_new_rows(
    guide: ProgramLike,
    data: Data,
    fitting: FitRows | None = None,
    *,
    given: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> ProgramLike:
    """Returns a guide for new data; a guide that is tied to rows is fitted to these data.

    Arguments:
        guide: A :class:`pyro_vae.Guide`, or a guide program written by hand.
        data: The batch tensor, or a tuple of batch tensors.
        fitting: How to fit; see :class:`FitRows`.
        given: Values of the global latent sites.
        seed: Seed of the draws; the caller's random stream is left alone.
        progress: Whether to show a progress bar; by default on terminals and in notebooks.

    Returns:
        The same guide if it is not tied to rows; otherwise a new guide with parameters for every
        new row.

    Raises:
        TypeError: If the guide is one of Pyro's automatic guides, or a module around a guide that
            is tied to rows. How the module would use the inner guide for new rows is unknown.
    """
    if not is_tied_to_rows(guide):
        return guide
    if isinstance(guide, AutoGuide):
        raise TypeError(
            f"{type(guide).__name__} has free parameters for each training row, so it has a "
            f"posterior only for all training rows together: {REMEDY}"
        )
    if not isinstance(guide, Guide):
        raise TypeError(
            f"{type(guide).__name__} contains a pv.Guide with free parameters for its training "
            "rows only: pass the inner pv.Guide itself, which can fit new rows, or build the "
            "inner guide with pv.Encoder(net)"
        )
    return guide.fit_rows(data, fitting, given=given, seed=seed, progress=progress)


def no_guide(*_batch: Tensor) -> None:
    """Serves as the guide if none was passed; refuses to supply values of global sites."""
    raise ValueError(
        "the program has global latent sites, and no guide provides their values: pass "
        "`given={'name': value}` with a value for each site"
    )


def given_globals(
    program: Program, guide: ProgramLike, batch: Batch, values: Mapping[str, Tensor] | None
) -> Program:
    """Returns the program with global sites fixed at `values`, by default their posterior mean.

    For a guide written by hand, this mean is estimated from draws of the unconstrained values,
    unless the means of all sites are known.
    """
    if not program.global_sites and not values:
        return program
    if values is not None:
        return program.given_valid(values)
    return program.given(*_mean_globals(program, guide, batch))


@torch.no_grad()
def _mean_globals(
    program: Program, guide: ProgramLike, batch: Batch
) -> tuple[dict[str, Tensor], str]:
    """Returns the posterior means of the global sites, and a text that describes these values."""
    if isinstance(guide, WithGlobals):
        return guide.global_values(), _MEAN
    if isinstance(guide, AutoGuide):
        return values_of(program, automatic_globals(program, guide)), _MEAN
    rows = _rows_for_globals(program, guide, batch)
    found = _known_means(program, guide, rows)
    if found is not None:
        return found, _MEAN
    source = f"the mean of {_GLOBAL_DRAWS} draws from their posterior"
    return values_of(program, _mean_of_draws(program, guide, rows)), source


def _known_means(program: Program, guide: ProgramLike, rows: Batch) -> dict[str, Tensor] | None:
    """Returns the means of the global sites under q, if they are known.

    Returns `None` if a mean is unknown, if a site is not real-valued, or if the sites are dependent
    under q.
    """
    if not all(site.is_real for site in program.global_sites):
        return None
    sites = _independent(program, guide, rows)
    try:
        # Clones, because a mean may be a parameter of the guide, which further training changes.
        means = {n: s.distribution.mean.detach().clone() for n, s in (sites or {}).items()}
    except NotImplementedError:  # of a transformed distribution, for example
        return None
    return means if means and all(bool(mean.isfinite().all()) for mean in means.values()) else None


def _mean_of_draws(program: Program, guide: ProgramLike, rows: Batch) -> Tensor:
    """Estimates the mean of the global sites' flat unconstrained vector from a guide's draws."""
    sites = _independent(program, guide, rows) if len(rows[0]) > _FEW else None
    if sites is not None:  # drawn in a single run, because runs on many rows are slow
        shape = torch.Size((_GLOBAL_DRAWS,))
        drawn = {name: site.distribution.sample(shape) for name, site in sites.items()}
        draws = [{name: part[k] for name, part in drawn.items()} for k in range(_GLOBAL_DRAWS)]
    else:
        names = [site.name for site in program.global_sites]
        draws = []
        for _ in range(_GLOBAL_DRAWS):
            run = program.run_guide(guide, rows)
            check_sites(program, run, names)
            draws.append(run.values(names))
    return torch.cat([
        torch.stack([site.flatten(values[site.name]) for values in draws]).mean(dim=0)
        for site in program.global_sites
    ])  # fmt: skip


def _independent(program: Program, guide: ProgramLike, rows: Batch) -> dict[str, TracedSite] | None:
    """Runs a guide, and returns its global sites if they are independent under q.

    Returns `None` if the distribution of a site differs between two runs, which shows that it
    depends on other sites, or if it is a `Delta`.
    """
    one, other = (program.run_guide(guide, rows) for _ in range(2))
    names = [site.name for site in program.global_sites]
    check_sites(program, one, names)
    for name in names:
        value, q, again = one[name].value, one[name].distribution, other[name].distribution
        try:
            same = torch.equal(q.log_prob(value), again.log_prob(value))
        except ValueError:  # the value lies outside the support of the other q
            return None
        if is_delta(q) or not same:
            return None
    return {name: one[name] for name in names}


def _rows_for_globals(program: Program, guide: ProgramLike, batch: Batch) -> Batch:
    """Returns the rows on which a guide is run to find its q of the global sites.

    A few rows are enough if q is the same when the guide is run on many more rows. Otherwise q
    depends on the data, and the whole batch is returned.
    """
    few, _ = _trial_run(program, guide, batch)
    if len(few[0]) == len(batch[0]):
        return batch
    with undisturbed():
        many = program.run_guide(guide, take_rows(batch, slice(_MANY)))
        shared = [site.name for site in density_sites(many) if not site.is_in(program.plate)]
        part = program.run_guide(guide, few, many.values(shared))
    try:
        alike = [torch.allclose(many[n].log_prob, part[n].log_prob, rtol=1e-4) for n in shared]
    except OutsideSupportError:  # the support of q depends on the data
        return batch
    return few if all(alike) else batch


def draw_globals(
    program: Program, guide: ProgramLike, batch: Batch, num_samples: int, seed: int
) -> list[GlobalDraw]:
    """Returns draws of the global latent sites under a `Guide` or a guide written by hand.

    Arguments:
        program: The model.
        guide: The guide, with a posterior of the global sites.
        batch: Data that a guide written by hand is run on; the draws may depend on all of these
            data.
        num_samples: Number of draws.
        seed: Seed of the draws.

    Returns:
        `num_samples` draws. Each holds the constrained value of every global site, and the log
        density of these values, a scalar in nats.
    """
    own = guide.guide if isinstance(guide, SharedOnly) else guide
    zero = torch.zeros((), device="cpu")
    if isinstance(own, Guide):
        if own.shared is None:
            return [GlobalDraw({}, zero)] * num_samples
        with forked(seed, "globals"), evaluating(own, own.model):
            return own.shared.draw(own.program, num_samples)
    names, draws = [site.name for site in program.global_sites], []
    with forked(seed, "globals"):
        for _ in range(num_samples):
            run = program.run_guide(guide, batch)
            log_guide = total_log_prob(shared_densities(program, run), zero)
            draws.append(GlobalDraw(run.values(names), log_guide))
            del run  # holds a trace of all data, so only one run may be in memory at a time
    return draws


def program_of(model: ProgramLike, guide: ProgramLike, batch: Batch) -> Program:
    """Returns the `Program` of a model; reuses the guide's `Program` if it is for this model.

    Raises:
        TypeError: If `guide` is a map, which is only a part of a guide.
        ValueError: If the guide was made for a model with other latent sites.
    """
    if isinstance(guide, InferenceMap):
        name = type(guide).__name__
        raise TypeError(
            f"`guide` must be a guide of the model; got the inference map {name}: build a guide "
            f"from this map with pv.Guide(model, {name}(...))"
        )
    program = _own_program(guide)
    if program is None:
        return Program(model, *batch)
    if program.model == model:  # not `is`: a bound method is made anew by every access
        return program
    other = Program(model, *batch)
    sizes, expected = ({site.name: site.size for site in p.latent_sites} for p in (program, other))
    if sizes != expected:
        raise ValueError(
            f"the guide was made for a model whose latent sites have the sizes {sizes}, but the "
            f"latent sites of this model have the sizes {expected}: build a guide for this model "
            "with pv.Guide(model, ...)"
        )
    return other


def posterior_of(guide: ProgramLike, program: Program, batch: Batch) -> Posterior:
    """The posterior of a batch under any guide. A guide written by hand is checked on a few rows.

    If all local latent sites are discrete, and the guide samples no discrete site, the posterior
    has no latents.

    Raises:
        TypeError: If the guide is one of Pyro's automatic guides but not a mean-field one.
        ValueError: If the guide is tied to rows, and the batch does not consist of all these rows.
    """
    check_masks(program, batch)
    if not program.latent_sites and not samples_discrete(program, guide, batch):
        return NoLatents.of(program, batch)
    if isinstance(guide, AutoGuide):
        return automatic_posterior(program, guide, len(batch[0]))
    if not isinstance(guide, WithPosterior):
        return program_posterior(program, guide, batch)
    # A map that uses the model must see the values at which the program's global sites are fixed.
    return guide.posterior(*batch, **({"given": program.fixed} if program.fixed else {}))


def samples_discrete(program: Program, guide: ProgramLike, batch: Batch) -> list[str]:
    """Names of the model's discrete sites that the guide samples; the model sums out the others."""
    if not program.structure.enumerated or _is_complete(guide):
        return []
    _, run = _trial_run(program, guide, batch)
    return [] if run is None else drawn_discrete(program, run)


def model_for(program: Program, guide: ProgramLike, batch: Batch) -> ProgramLike:
    """Returns the model as a Pyro objective needs it, with discrete sites marked to be summed out.

    Masked latents of the model get their full densities, unless the guide masks them, too.
    """
    masked = program.structure.masked
    if masked and not _is_complete(guide):
        _, run = _trial_run(program, guide, batch)
        alike = [] if run is None else [n for n in masked if n in run and run[n].is_masked]
        masked = tuple(name for name in masked if name not in alike)
    return program.enumerating(program.whole(masked))


def _is_complete(guide: ProgramLike) -> bool:
    """Whether a guide's class ensures that it samples all continuous sites, without masks."""
    return isinstance(guide, WithPosterior | AutoGuide)


def _trial_run(program: Program, guide: ProgramLike, batch: Batch) -> tuple[Batch, Run | None]:
    """Runs a guide once, to find out which sites it has; random state and parameters do not change.

    The guide is called with a few rows and, if this fails, with the whole batch. Returns the rows
    and the run. If both calls fail, the run is `None`: the guide's next call raises the error.
    """
    if is_uncalled(guide):
        return batch, None
    with undisturbed(), torch.no_grad(), no_new_parameters():
        for rows in (take_rows(batch, slice(_FEW)), batch):
            with suppress(Exception):  # the guide may be tied to all of its rows
                return rows, program.run_guide(guide, rows)
    return batch, None


def require_sites(program: Program, guide: ProgramLike, batch: Batch) -> None:
    """Refuses a guide that lacks a latent site of the model, or has one that the model lacks.

    Pyro only warns about such sites, and trains with an "ELBO" that may be above log p(y).

    Raises:
        ValueError: If the guide is refused; the message names the site.
    """
    if _is_complete(guide):
        return
    _, run = _trial_run(program, guide, batch)
    if run is not None:
        names = [site.name for site in program.latent_sites]
        check_sites(program, run, names + [site.name for site in program.global_sites])


def require_new_rows(model: ProgramLike, guide: ProgramLike, rows: Batch) -> None:
    """Refuses, before training, a guide that cannot be used for data outside its training rows.

    Arguments:
        model: The model.
        guide: The guide, which may not have been called yet.
        rows: All rows that the guide will be trained on.

    Raises:
        TypeError: If the guide is tied to these rows and cannot fit other rows; the message has the
            remedy.
    """
    if isinstance(guide, Guide):
        return
    if is_tied_to_rows(guide):
        for_new_rows(guide, rows, progress=False)
    elif not isinstance(guide, WithPosterior):
        program = program_of(model, guide, rows)
        with evaluating(model, guide):
            site = tied_site(program, guide, rows)
        if site is not None:
            raise TypeError(
                f"q of site '{site}' in the guide is tied to the training rows, so the guide has "
                f"a posterior only for all of these rows together: {REMEDY}"
            )


def prepare_training(
    program: Program, guide: ProgramLike, rows: Batch, batch_size: Annotated[int, Interval(0)]
) -> bool:
    """Prepares a guide for training; checks whether the guide must be called with all rows.

    Arguments:
        program: The model.
        guide: The guide.
        rows: All rows that the guide will be trained on.
        batch_size: Rows per step.

    Returns:
        Whether the guide has to be called with all rows, in order. This is so if the guide is tied
        to its rows and is not a `pv.Guide`.

    Raises:
        ValueError: If the guide has to be called with all rows, and a step has fewer rows.
    """
    for map in maps_of(guide):
        map.remember(*rows)
    with evaluating(program.model):
        check_masks(program.at_start(), rows)
    if maps_of(guide):
        return False
    uncalled = is_uncalled(guide)
    if not uncalled:
        _create_parameters(guide, rows)  # or trial calls would create them for a few rows
    with evaluating(guide):
        is_automatic = uncalled or isinstance(guide, AutoGuide)
        if not is_automatic and tied_site(program, guide, rows) is None:
            return False
    if batch_size < len(rows[0]):
        raise ValueError(
            f"the guide is tied to its {count_of(len(rows[0]), 'training row')}, but a step has "
            f"only {count_of(batch_size, 'row')}: pass `batch_size={len(rows[0])}`, or use "
            f"pv.Guide(model, pv.LocalParameters({len(rows[0])})), which takes batches of any size"
        )
    if uncalled:
        _create_parameters(guide, rows)
    return True


def _create_parameters(guide: ProgramLike, rows: Batch) -> None:
    """Calls a guide with all rows if it is, or contains, an automatic guide without parameters."""
    parts = [part for module in modules_of(guide) for part in module.modules()]
    uncalled = [part for part in parts if is_uncalled(part)]
    if not uncalled:
        return
    with poutine.block():
        guide(*rows)
    for part in uncalled:
        for parameter in part.parameters():
            parameter.data = parameter.data.contiguous()  # Pyro expands a first value
