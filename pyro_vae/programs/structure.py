"""The structure of a program, found by a few runs: its plate over data and its sites.

The program is run on two and on three copies of one row. The plate over data is the plate whose
size follows the number of rows. A site inside this plate belongs to one datum; a site outside the
plate is shared by all data. A program without a density per datum is refused here; the error names
the site or plate at fault.
"""

import inspect
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import (
    ImproperUniform,
    RelaxedBernoulliStraightThrough,
    RelaxedOneHotCategoricalStraightThrough,
)
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from .._types import Batch, ProgramLike
from ..formatting import count_of
from ..randomness import forked
from .enumeration import Combinations, combinations
from .masks import base_of, is_masked, unmasked
from .missing import PartlyObserved, has_missing, unwrapped
from .modes import evaluating
from .pieces import take_rows
from .plates import Subsampling, whole_plate
from .sites import GlobalSite, LatentSite, global_site, latent_site
from .traces import Determined, TracedSite, run

_ROWS = (2, 3)  # in the two runs that are compared
_ROUNDED = (RelaxedBernoulliStraightThrough, RelaxedOneHotCategoricalStraightThrough)
_OPEN_PLATE = "open `with pyro.plate('data', len(y)):` around the sites of a datum in each call"
_SITES = 10_000  # a program with more sites probably loops forever
_PRIOR_RUNS = 15  # as in Pyro's automatic guides, for the median of the prior

Sites = dict[str, TracedSite]


@dataclass(frozen=True)
class Structure:
    """The sites and plates of a program.

    Arguments:
        plate: Name of the plate over data.
        plate_dim: Dimension of that plate, counted from the right.
        nesting: Number of dimensions used by plates.
        subsampling: Plate size and subsample size that the program requests; `None` if the program
            requests no subsample.
        latent_sites: Continuous latent sites of a datum.
        enumerated: Discrete latent sites of a datum, which are summed out.
        discrete_values: All combinations of the values of the sites in `enumerated`; `None` if
            there are none, or too many.
        combinations: The combinations in `discrete_values` if the rows are repeated for every
            combination; `None` if the sites are enumerated by broadcasting.
        global_sites: Global latent sites, shared by all data.
        global_start: A point near the middle of the global sites' prior, flat and unconstrained.
        global_spread: Per entry, the distance from `global_start` within which four in five prior
            draws lie.
        masked: Names of the latent sites that are masked, by a handler or by their distribution.
        determined: Names of the sites whose value follows from other sites (`Delta` sites).
        observed: Names of the observed sites of a datum.
        dtype: Dtype of the latents.
        device: Device of the latents.
    """

    plate: str
    plate_dim: int
    nesting: int
    subsampling: Subsampling | None
    latent_sites: tuple[LatentSite, ...]
    enumerated: tuple[str, ...]
    discrete_values: Combinations | None
    combinations: Combinations | None
    global_sites: tuple[GlobalSite, ...]
    global_start: Tensor
    global_spread: Tensor
    masked: tuple[str, ...]
    determined: frozenset[str]
    observed: tuple[str, ...]
    dtype: torch.dtype
    device: torch.device

    @property
    def takes_all_data(self) -> bool:
        """Whether the program expects all data, from which its plate chooses a mini-batch."""
        return self.subsampling is not None and self.subsampling.subsample_size is not None

    def sizes(self, rows: int) -> tuple[int, int | None]:
        """Size and subsample size of the plate over data, in a guide called with `rows` rows."""
        if self.subsampling is None:
            return rows, None
        size, chosen = self.subsampling
        size = max(rows, size or rows)
        return size, rows if chosen is None else min(chosen, size)


def structure_of(model: ProgramLike, batch: Batch, plate: str | None) -> Structure:
    """Finds the structure of a program by running it on copies of the first row of a batch.

    Raises:
        ValueError: If the program has no density per datum.
    """
    row = take_rows(batch, slice(1))
    (two, requested, determined), (three, more, _) = _two_runs(model, row, plate)
    plate, dim = _data_plate(model, row, two, three, plate)
    _check_same_sites(two, three)
    with evaluating(model), torch.no_grad():  # a density may update a layer's running statistics
        _check_plates(two, three, plate, dim)
    inside = [site for site in two.values() if site.is_in(plate)]
    outside = [site for site in two.values() if not site.is_in(plate)]
    _check_outside(outside, three, plate)
    latent = [site for site in inside if not site.is_observed]
    latent_outside = [site for site in outside if not site.is_observed]
    for site in [*latent, *latent_outside]:
        _check_latent(site)
    enumerated = tuple(site.name for site in latent if site.is_discrete)
    continuous = [site for site in latent if not site.is_discrete]
    observed = tuple(site.name for site in inside if site.is_observed)
    _require_both([site.name for site in latent], observed, model, batch, plate)
    shared = tuple(global_site(site) for site in latent_outside)
    values = combinations((two[name] for name in enumerated), dim)
    first = continuous[0].value if continuous else inside[0].log_prob
    start, spread = _prior_median(model, row, plate, shared, first)
    dims = [f.dim for site in [*inside, *outside] for f in site.frames if f.dim is not None]
    return Structure(
        plate=plate,
        plate_dim=dim,
        nesting=-min(dims),
        subsampling=_subsampling(requested.get(plate), more.get(plate)),
        latent_sites=tuple(latent_site(site, plate, dim) for site in continuous),
        enumerated=enumerated,
        discrete_values=values,
        combinations=values,
        global_sites=shared,
        global_start=start,
        global_spread=spread,
        masked=tuple(site.name for site in [*latent, *latent_outside] if site.is_masked),
        determined=determined,
        observed=observed,
        dtype=first.dtype,
        device=first.device,
    )


_Run = tuple[Sites, dict[str, Subsampling], frozenset[str]]  # as `_run` returns it


def _two_runs(model: ProgramLike, row: Batch, plate: str | None) -> tuple[_Run, _Run]:
    """Runs the program on two copies of a row, and on three.

    If the size of exactly one plate follows the number of copies, plates are left unchanged.
    Otherwise plates are made to hold all copies.
    """
    if plate is None:
        # The program may subsample more rows than there are, and then fail anywhere.
        with suppress(Exception):
            two, three = (_run(model, row, rows, None, seed=rows, whole=False) for rows in _ROWS)
            if len(_following(two[0], three[0])) == 1:
                return two, three
    two, three = (_run(model, row, rows, plate, seed=rows) for rows in _ROWS)
    return two, three


class _CheckSites(Messenger):
    """Handler that raises an error at a site without a proper prior, or after too many sites.

    A program that samples too many sites may have a loop that never ends.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.has_refused = False

    def _pyro_sample(self, msg: Any) -> None:
        self.count += 1
        latent = not (msg["is_observed"] or site_is_subsample(msg))
        improper = latent and isinstance(base_of(msg["fn"]), ImproperUniform)
        self.has_refused = improper or self.count > _SITES
        if improper:
            raise ValueError(
                f"latent site '{msg['name']}' must have a proper prior; got ImproperUniform, "
                "which has no density and no draws: pass a proper prior such as dist.Normal(0.0, "
                "10.0), or remove the handler that created the site"
            )
        if self.has_refused:
            raise ValueError(
                f"the program has sampled {_SITES} sites, the last of them '{msg['name']}', and "
                "may never end: give every datum the same number of steps, and mask the "
                "observations of steps that a datum does not have"
            )


def _run(
    model: ProgramLike, row: Batch, rows: int, plate: str | None, *, seed: int, whole: bool = True
) -> _Run:
    """Runs a program on copies of a row, to find its sites.

    Returns the sites, the subsamples that plates request, and the names of `Delta` sites.
    """
    batch = tuple(part.expand(rows, *part.shape[1:]).contiguous() for part in row)
    determined, checks = Determined(), _CheckSites()
    with (
        evaluating(model),
        torch.no_grad(),
        forked(seed, "structure"),
        whole_plate(rows if whole else None, plate) as requested,
    ):
        versions = _versions(batch)
        try:
            sites = run(checks(determined(model)), batch).sites
            _refuse_changes(batch, versions)
        except Exception as error:
            _refuse_changes(batch, versions)
            _refuse_arguments(model, batch, error)
            if not checks.has_refused:
                error.add_note(
                    "This error was raised when pyro_vae ran the program on "
                    f"{count_of(rows, 'copy')} of the first row of data, to find the program's "
                    "structure. A program must accept any number of rows: open the plate over data "
                    "with pyro.plate('data', len(y)), and let no value of a row decide which sites "
                    "are sampled."
                )
            raise
    return sites, requested, frozenset(determined.names)


def _versions(batch: Batch) -> list[int]:
    """How often each tensor was changed in place; 0 for tensors that do not count changes."""
    return [0 if part.is_inference() else part._version for part in batch]


def _refuse_changes(batch: Batch, versions: list[int]) -> None:
    """Refuses a program that changes its data in place, even if it restores them."""
    for index, (before, after) in enumerate(zip(versions, _versions(batch), strict=True)):
        if before != after:
            raise ValueError(
                f"the program changes tensor {index} of the data in place, so that later calls "
                "would get other data: make a new tensor, as in y = y - 1 instead of y -= 1, or "
                "y = torch.where(y < 0, 0.0, y) instead of y[y < 0] = 0"
            )


def _refuse_arguments(model: ProgramLike, batch: Batch, error: Exception) -> None:
    """Refuses a program that cannot be called with the tensors of a batch."""
    try:
        inspect.signature(model).bind(*batch)
    except ValueError:  # it has no signature
        return
    except TypeError as reason:
        few = "missing" in str(reason)
        remedy = (
            "pass all of them as a tuple, as in (y, x)"
            if few
            else "if the program takes a tuple, pass a function, as in lambda x, y: model((x, y))"
        )
        raise TypeError(
            f"the program must take one argument for each of the {count_of(len(batch), 'tensor')} "
            f"of the data ({reason}): {remedy}"
        ) from error


def _left_out(model: ProgramLike, batch: Batch) -> str | None:
    """Finds an argument of the model that may hold data, but that the batch does not fill.

    Returns the name of the first such argument whose default is `None`; `None` if there is none.
    """
    try:
        rest = list(inspect.signature(model).parameters.values())[len(batch) :]
    except ValueError:  # it has no signature
        return None
    return next((parameter.name for parameter in rest if parameter.default is None), None)


def _subsampling(two: Subsampling | None, three: Subsampling | None) -> Subsampling | None:
    """Returns a plate's subsampling, given its requests in runs on two and on three rows.

    A size that differs between the runs follows the batch, and becomes `None`. The whole result is
    `None` if the plate requested no subsampling in one of the runs.
    """
    if two is None or three is None:
        return None
    return Subsampling(*(a if a == b else None for a, b in zip(two, three, strict=True)))


def _frames(sites: Sites) -> dict[str, CondIndepStackFrame]:
    """Pyro's frames, keyed by name, for the plates that enclose at least one of the sites."""
    return {frame.name: frame for site in sites.values() for frame in site.frames}


def _following(two: Sites, three: Sites) -> dict[str, CondIndepStackFrame]:
    """Pyro's frames, keyed by name, for the plates whose size follows the number of rows."""
    first, second = _frames(two), _frames(three)
    return {
        name: frame
        for name, frame in first.items()
        if frame.size == _ROWS[0] and name in second and second[name].size == _ROWS[1]
    }


def _data_plate(
    model: ProgramLike, row: Batch, two: Sites, three: Sites, plate: str | None
) -> tuple[str, int]:
    """Finds the plate over data, whose size follows the number of rows: its name and dimension."""
    found = _following(two, three)
    if not found:
        raise ValueError(
            "one plate, the plate over data, must have the size of the batch; got plates "
            f"{sorted(_frames(two))}, none of which has this size: "
            f"{_remedy_for_plates(model, row, two)}"
        )
    if plate is None and len(found) > 1:
        raise ValueError(
            f"only the plate over data may have the size of the batch; got {sorted(found)}: "
            f"{_OPEN_PLATE}, or, if one of these plates already holds all sites of a datum, pass "
            "its name as `plate`"
        )
    name = next(iter(found)) if plate is None else plate
    if name not in found:
        raise ValueError(
            f"`plate` must be the name of a plate with the size of the batch; got '{plate}': "
            f"choose from {sorted(found)}"
        )
    dim = found[name].dim
    if dim is None:
        raise ValueError(
            f"the plate over data, '{name}', must be a context manager, not a loop: write "
            f"`with pyro.plate('{name}', len(y)):`"
        )
    return name, dim


def _remedy_for_plates(model: ProgramLike, row: Batch, two: Sites) -> str:
    """Text for an error message: how to give the plate over data the size of the batch.

    If it is enough to pass the name of a plate, the text says so with this name.
    """
    for name in sorted(_frames(two)):
        try:
            sites = [_run(model, row, rows, name, seed=rows)[0] for rows in _ROWS]
        except Exception:  # if this is not the plate over data, the program may fail anywhere
            continue
        if name in _following(*sites):
            return f"{_OPEN_PLATE}, or pass the name of the plate over data, as in plate='{name}'"
    made_before = "; a plate that was made before, as in `__init__`, keeps its size"
    return f"{_OPEN_PLATE}{made_before if _frames(two) else ''}"


def _check_same_sites(two: Sites, three: Sites) -> None:
    """Refuses a program whose sites are not the same in every run."""
    differ = sorted(set(two) ^ set(three))
    if differ:
        raise ValueError(
            f"the program must sample the same sites in every run; got the sites {differ[:5]} in "
            "only one of two runs: give loops a fixed number of steps, and mask observations "
            "instead of branching on sampled values"
        )


def _check_plates(two: Sites, three: Sites, plate: str, plate_dim: int) -> None:
    """Refuses sites whose log density does not fit the plates, and inner plates that subsample."""
    for name, site in two.items():
        frames = {frame.dim: frame for frame in site.frames if frame.dim is not None}
        for frame in frames.values():
            if frame.name != plate and frame.full_size not in (None, frame.size):
                raise ValueError(
                    f"plate '{frame.name}' around site '{name}' must not subsample; got "
                    f"{frame.size} of {count_of(frame.full_size, 'entry')}: remove the "
                    f"subsample_size of this plate, because only the plate over data, '{plate}', "
                    "may subsample"
                )
        shape, more_rows = site.log_prob.shape, three[name].log_prob.shape
        free = _free_sizes(shape, more_rows, plate_dim if site.is_in(plate) else 0)
        sizes = dict(free)
        for dim, frame in frames.items():  # a plate without a size has size -1
            sizes[dim] = free.get(dim, 1) if frame.size < 0 else frame.size
        expected = tuple(sizes.get(dim, 1) for dim in range(min(sizes, default=0), 0))
        more = len(shape) - len(expected)  # extra dimensions of size one on the left are allowed
        if tuple(shape) != (1,) * more + expected:
            inside = ", ".join(f"'{f.name}' (dim {f.dim}, size {f.size})" for f in frames.values())
            raise ValueError(
                f"the log density of site '{name}' must have the shape of its plates, {expected} "
                f"(plates: {inside or 'none'}); got shape {tuple(shape)}: set each plate's "
                "`dim` to the position of its axis, counted from the right without the event "
                "dimensions (-1 is the last), and declare every axis that has no plate as an event "
                "dimension with .to_event"
            )


def _free_sizes(two: torch.Size, three: torch.Size, plate_dim: int) -> dict[int, int]:
    """Sizes of dimensions to the right of the plate over data, unless they follow the batch size.

    These dimensions belong to a datum. Pyro accepts programs that declare such dimensions neither
    as plates nor as event dimensions.
    """
    dims = range(max(plate_dim + 1, -len(two), -len(three)), 0)
    return {dim: two[dim] for dim in dims if two[dim] == three[dim]}


def _check_outside(outside: list[TracedSite], three: Sites, plate: str) -> None:
    """Refuses a site outside the plate over data if its shape follows the batch size."""
    for site in outside:
        name, shape = site.name, site.value.shape
        if shape != three[name].value.shape:
            kind = "observed" if site.is_observed else "latent"
            raise ValueError(
                f"{kind} site '{name}' is outside the plate over data, '{plate}', but its size "
                f"follows the batch size (shape {tuple(shape)} for {_ROWS[0]} rows): move this "
                "site into the plate"
            )


def _check_latent(site: TracedSite) -> None:
    """Refuses a latent site that cannot be used.

    Its log density must be the density of its value, and a discrete site must have a finite support
    that can be summed out.
    """
    name, function = site.name, site.distribution
    require_own_density(site)
    if site.is_discrete and not function.has_enumerate_support:
        raise ValueError(
            f"latent site '{name}' is discrete ({type(function).__name__}), and its support is "
            "infinite or too large to be summed out: use a continuous latent, or a distribution "
            "with a finite support"
        )


def require_own_density(site: TracedSite) -> None:
    """Refuses a site whose log density is not the density of the value that is drawn.

    Raises:
        ValueError: If the site's distribution rounds its draws (straight-through gradients), or is
            masked inside a transformation.
    """
    if is_masked(unmasked(site.distribution)):
        raise ValueError(
            f"latent site '{site.name}' is masked inside a transformation of its distribution: "
            "mask the whole distribution, as in TransformedDistribution(base, "
            "transforms).mask(mask)"
        )
    kind = type(base_of(site.distribution))
    if kind in _ROUNDED:
        name = kind.__name__
        raise ValueError(
            f"site '{site.name}' is latent, so its distribution must not be {name}, which "
            "rounds the draws but has the density of the numbers before rounding: either use "
            f"{name.removesuffix('StraightThrough')} in model and guide, or use a discrete "
            "distribution in the model and omit this site in the guide, so that the site is summed "
            "out"
        )


def _require_both(
    latent: list[str], observed: tuple[str, ...], model: ProgramLike, batch: Batch, plate: str
) -> None:
    """Refuses a program in which a datum has no latent site, or no observed site."""
    if latent and observed:
        return
    remedy = (
        "pass the data as `obs` to pyro.sample; if this program is a guide, pass the model first"
    )
    if left_out := _left_out(model, batch):
        remedy += (
            f" (the program's argument `{left_out}` was not given: if it holds data, pass all "
            "tensors of the data in one tuple, as in (x, y))"
        )
    if observed:
        remedy = (
            "declare a latent of each datum inside this plate. If all latents are shared by the "
            "data, there is nothing to amortize: use Pyro's SVI with an AutoGuide"
        )
    raise ValueError(
        f"a program must have a latent and an observed site in plate '{plate}'; got the "
        f"latent sites {latent} and the observed sites {list(observed)}: {remedy}"
    )


def _prior_median(
    model: ProgramLike, row: Batch, plate: str, sites: tuple[GlobalSite, ...], like: Tensor
) -> tuple[Tensor, Tensor]:
    """Median and spread of a few prior draws of the global sites, as flat unconstrained vectors.

    The draws are few on purpose. The median of many draws would be near the exact middle of the
    prior, which is a saddle point for the weights of many decoders.
    """
    if not sites:
        return like.new_zeros(0), like.new_zeros(0)
    draws = []
    for seed in range(_PRIOR_RUNS):
        drawn, *_ = _run(model, row, _ROWS[0], plate, seed=seed)
        draws.append(torch.cat([site.flatten(drawn[site.name].value) for site in sites]))
    found = torch.stack(draws)
    median = found.median(dim=0).values
    return median, (found - median).abs().quantile(0.8, dim=0)


def partly_observed(model: ProgramLike, batch: Batch) -> tuple[int, ...]:
    """Finds which tensors of a batch the program observes as data with missing entries.

    Returns the positions of these tensors in the batch; none if the batch has no nan. The program
    is run on two rows.
    """
    if not any(has_missing(part) for part in batch):
        return ()
    found = set(_features_of(model, batch))
    for n, part in enumerate(batch):
        if n not in found and has_missing(part) and _is_finite_at_nan(model, batch, part):
            found.add(n)
    return tuple(sorted(found))


def of_modelled_missingness(model: ProgramLike, batch: Batch) -> tuple[int, ...]:
    """Finds the tensors of a batch for which the program models which entries are missing.

    Returns the positions of these tensors in the batch. A row of such a tensor is informative even
    if all its entries are nan.
    """
    pairs = _features_of(model, batch).items()
    return tuple(n for n, features in pairs if features.log_observed(batch[n][:1]) is not None)


def _features_of(model: ProgramLike, batch: Batch) -> dict[int, PartlyObserved]:
    """Returns the distribution of each tensor that is observed as data with missing entries."""
    rows = tuple(part[:1].expand(2, *part.shape[1:]).clone() for part in batch)
    with evaluating(model), torch.no_grad(), forked(0, "missing"):
        sites = run(model, rows).sites.values()
    features = {
        site.value.untyped_storage().data_ptr(): part
        for site in sites
        if isinstance(part := unwrapped(site.distribution), PartlyObserved)
    }
    places = [part.untyped_storage().data_ptr() for part in rows]
    return {n: features[place] for n, place in enumerate(places) if place in features}


def _is_finite_at_nan(model: ProgramLike, batch: Batch, part: Tensor) -> bool:
    """Whether all log densities are finite in a run on two rows in which `part` has a nan."""
    chosen = part.isnan().reshape(len(part), -1).any(dim=1).nonzero()[:, 0].repeat(2)[:2]
    rows = take_rows(batch, chosen)
    try:
        with evaluating(model), torch.no_grad(), forked(0, "missing"):
            sites = run(model, rows).sites.values()
            return all(bool(site.kept.isfinite().all()) for site in sites)
    except Exception:  # the nan may be refused anywhere
        return False
