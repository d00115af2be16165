r"""Checks the names of a guide's sites, and decides which of the sites enter log q.

A guide samples the latent sites of the model; any other site that it samples must be auxiliary. The
guide's observed sites and `pyro.factor` terms belong to the training objective, not to the guide's
density. Masks and scales belong to the objective, too: in log q a drawn site counts with its full
density.

A program has a density :math:`p(y, z)` of its continuous latents, with discrete sites summed out.
If a guide also samples a discrete site c, the importance weights of its draws are

.. math:: \frac{p(y, z, c)}{q(z, c)} = \frac{p(y, z)}{q(z, c) \, / \, p(c \mid y, z)} ,

so the denominator on the right takes the place of the guide's density.

If guide and model mask the same latent of a datum, neither program contains a density of this
latent. So a density is supplied: the latent's unmasked density in the model is added to log p (see
:mod:`pyro_vae.programs.masks`) and to log q, and cancels in the importance weight. If only the
guide or only the model masks the latent, the mask is ignored: log p contains the model's full
density of the latent, and log q the guide's.
"""

from collections.abc import Collection

import pyro.distributions as dist
import torch
from jaxtyping import Bool
from torch import Tensor

from .._types import Batch, Distribution
from ..formatting import count_of, listed
from ..programs import LatentSite, Program, Run, TracedSite
from ..programs.masks import base_of
from ..programs.pieces import in_pieces
from ..programs.structure import require_own_density
from ..programs.traces import sum_but
from ..randomness import forked

_ROWS_AT_ONCE = 1000  # rows per check of the masks
_TOLERANCE = 1e-4  # relative: above the rounding error of a float32 log density


def density_sites(run: Run, given: Collection[str] = ()) -> list[TracedSite]:
    """Sites that may enter log q: those that the guide drew, and those with given values.

    Arguments:
        run: A run of the guide.
        given: Names of the sites with given values; the run marks these sites as observed.
    """
    return [
        site
        for site in run.sites.values()
        if site.name in given or not (site.is_observed or isinstance(site.distribution, dist.Unit))
    ]  # `Unit` is the distribution of a factor


def check_sites(
    program: Program, run: Run, needed: Collection[str], given: Collection[str] = ()
) -> None:
    """Refuses a guide that lacks a latent site of the model, or has a site that does not fit.

    Arguments:
        program: The model.
        run: A run of the guide.
        needed: Names of the latent sites that the guide must have.
        given: Names of the sites with given values.

    Raises:
        ValueError: If the guide is refused; the message names the site and says what to do.
    """
    sampled = density_sites(run, given)
    missing = sorted(set(needed) - {site.name for site in sampled})
    if missing:
        shared = missing[0] in [site.name for site in program.global_sites]
        where = ". This site is global, so sample it outside the plate over data" if shared else ""
        raise ValueError(
            f"the guide must sample every latent site of the model, but lacks {missing}; got the "
            f"sites {[site.name for site in sampled]}: add pyro.sample({missing[0]!r}, ...) "
            f"without `obs` to the guide{where}"
        )
    for site in sampled:
        if site.name not in given:
            _check_site(program, site)


def _check_site(program: Program, site: TracedSite) -> None:
    require_own_density(site)
    latent = {*sampled_sites(program), *(site.name for site in program.global_sites)}
    if is_determined(program, site):
        return
    if site.name not in latent and not site.is_auxiliary:
        raise ValueError(
            f"the guide samples site '{site.name}', but the latent sites of the model are "
            f"{sorted(latent)}: remove this site, or give it the name of a latent site of the "
            "model, or pass infer={'is_auxiliary': True} to its pyro.sample"
        )
    for layout in program.latent_sites:
        if layout.name == site.name:
            _check_values(layout, site)


def _check_values(layout: LatentSite, site: TracedSite) -> None:
    """Refuses a guide that draws a continuous latent site with a wrong shape or discrete values."""
    expected = tuple(layout.transform.forward_shape(layout.inner_shape))
    shape = tuple(site.value.shape)
    if shape[: layout.axis] + shape[layout.axis + 1 :] != expected:
        raise ValueError(
            f"latent site '{site.name}' must have the same plates and event dimensions in the "
            f"guide as in the model; got shape {shape} for the batch in the guide, and shape "
            f"{expected} per datum in the model: use the same `dim` of pyro.plate and the same "
            ".to_event in both"
        )
    if site.is_discrete or site.distribution.has_enumerate_support:
        raise ValueError(
            f"latent site '{site.name}' is continuous in the model, but the guide samples it from "
            "a discrete distribution, which has no density: sample the site from a continuous "
            "distribution, such as dist.Normal, or use pv.Guide"
        )


def is_determined(program: Program, site: TracedSite) -> bool:
    """Whether a site is a `Delta` in both model and guide, so that other sites fix its value."""
    return site.name in program.structure.determined and is_delta(site.distribution)


def sampled_sites(program: Program) -> list[str]:
    """Names of the local latent sites, which a guide may sample; continuous sites come first."""
    return [site.name for site in program.latent_sites] + list(program.structure.enumerated)


def without_auxiliary(program: Program, sites: Collection[TracedSite]) -> list[TracedSite]:
    r"""Selects the sites that enter log q, from the sites that were drawn for a datum.

    An auxiliary site :math:`a` is a site that the model lacks. If the model's sites have
    distributions of their own given :math:`a`, the auxiliary site only adds noise: with
    :math:`z \sim q(z \mid a)` the weight :math:`p(y, z) / q(z \mid a)` has the mean p(y), and the
    mean of its logarithm is a lower bound on log p(y). The model's sites can also be functions of
    :math:`a`: each site is then a `Delta` with the log Jacobian as its log density. In this case
    the density of the model's sites follows from the density of :math:`a`.

    Raises:
        ValueError: If some of the model's sites are functions of auxiliary sites and some are not,
            or if a site is a point mass; the message names the site.
    """
    known = sampled_sites(program)
    model = [site for site in sites if site.name in known or not site.is_auxiliary]
    deltas = [site for site in model if is_delta(site.distribution)]
    if not deltas:
        return model
    if len(model) == len(sites):
        for site in deltas:
            _refuse_point(site)
        return model
    if len(deltas) < len(model):
        others = [site.name for site in model if site not in deltas]
        raise ValueError(
            f"the guide computes the {listed('site', (site.name for site in deltas))} from "
            "auxiliary sites (by dist.Delta), but draws the "
            f"{listed('site', others)} from other distributions, so log q is ambiguous: draw none "
            "of these sites from dist.Delta, or compute all of them from auxiliary sites"
        )
    return list(sites)


def shared_densities(program: Program, run: Run) -> list[TracedSite]:
    """Selects, from the sites outside the plate over data, those that enter log q.

    Auxiliary sites enter if any site of the guide is a `Delta`, that is, a function of auxiliary
    sites. Otherwise they only add noise (see :func:`without_auxiliary`), and do not enter.
    """
    sites = density_sites(run)
    has_deltas = any(is_delta(site.distribution) for site in sites)
    outside = (site for site in sites if not site.is_in(program.plate))
    return [site for site in outside if has_deltas or not site.is_auxiliary]


def _refuse_point(site: TracedSite) -> None:
    """Refuses a site that is a point mass: a `Delta` without a log density."""
    base = base_of(site.distribution)
    if isinstance(base, dist.Delta) and not bool(base.log_density.any()):
        raise ValueError(
            f"the guide samples site '{site.name}' from a point mass (Delta), which has no "
            "density: use a distribution with a scale, as in dist.Normal(value, 0.1), or use "
            "pv.Guide"
        )


def is_delta(distribution: Distribution) -> bool:
    """Whether a distribution is a `Delta`, that is, a function of earlier draws."""
    return isinstance(base_of(distribution), dist.Delta)


def log_density(program: Program, site: TracedSite, rows: int) -> Tensor:
    """Log density of a guide's site per datum, `(rows,)`, without masks and scales.

    Raises:
        ValueError: If the site is not in the plate over data.
    """
    log_prob = site.whole_log_prob
    log_prob = sum_but(log_prob, log_prob.dim() + program.plate_dim)
    require_by_datum(program, site, log_prob, rows)
    return log_prob


def require_by_datum(program: Program, site: TracedSite, log_prob: Tensor, rows: int) -> None:
    """Refuses a site's log density that does not have one value per row."""
    if log_prob.shape != (rows,):
        raise ValueError(
            f"site '{site.name}' of the guide must have one log density per row; got shape "
            f"{tuple(log_prob.shape)} for {count_of(rows, 'row')}: sample this site inside "
            f"pyro.plate('{program.plate}', len(y)), and declare the same event dimensions as in "
            "the model with .to_event"
        )


def drawn_discrete(program: Program, run: Run) -> list[str]:
    """Names of the model's discrete sites that a guide sampled."""
    return [name for name in program.structure.enumerated if name in run]


def completed(program: Program, run: Run, batch: Batch, log_q: Tensor) -> Tensor:
    """Log of the denominator in a guide's importance weights, one value per row, `(rows,)`.

    Arguments:
        program: The model.
        run: The guide's run on the batch.
        batch: The tensors that the guide was called with.
        log_q: Log density of all sites that the guide drew, without masks.
    """
    log_q = mask_completed(program, run, batch, log_q)
    drawn = drawn_discrete(program, run)
    if not drawn:
        return log_q
    values = run.values([*(site.name for site in program.latent_sites), *drawn])
    joint = program.log_joint_at(values, batch)
    marginal = {name: value for name, value in values.items() if name not in drawn}
    return log_q - (joint - program.log_joint_at(marginal, batch))


def mask_completed(program: Program, run: Run, batch: Batch, log_q: Tensor) -> Tensor:
    """Returns log q with the model's density of masked latents in place of the guide's.

    Only rows in which guide and model mask the same entries are changed.
    """
    masked = [
        site
        for site in program.latent_sites
        if site.name in program.structure.masked and run[site.name].entry_mask is not None
    ]
    at = program.drawing(drawn_discrete(program, run))
    if not masked or at.structure.enumerated:  # masks may depend on summed-out sites
        return log_q
    names = [name for name in sampled_sites(program) if name in run]
    model = at.run(batch, run.values(names))
    pairs = (_same_rows(site, run[site.name], model[site.name]) for site in masked)
    alike = torch.stack(list(pairs)).all(dim=0)
    own, theirs = (_left_out(program, part, masked) for part in (run, model))
    return torch.where(alike, log_q - own + theirs, log_q)


def _left_out(program: Program, run: Run, masked: list[LatentSite]) -> Tensor:
    """Returns the part of a run's log density that the masks of these sites remove, per datum."""
    parts = [run[site.name].left_out for site in masked]
    return torch.stack([sum_but(part, part.dim() + program.plate_dim) for part in parts]).sum(0)


def _same_rows(layout: LatentSite, one: TracedSite, other: TracedSite) -> Bool[Tensor, " rows"]:
    """Whether guide and model mask the same entries of a site, answered for every row."""
    masks = one.entry_mask, other.entry_mask
    if masks[0] is None or masks[1] is None:
        value = other.value.movedim(layout.axis, 0)
        return torch.zeros(len(value), dtype=torch.bool, device=value.device)
    same = (masks[0] == masks[1]).movedim(layout.axis, 0)
    return same.reshape(len(same), -1).all(dim=1)


@torch.no_grad()
def check_masks(program: Program, batch: Batch) -> None:
    """Refuses a program in which the values of masked latents affect another site's density.

    The masked values of one run are replaced by those of a second run. This replacement must not
    change the density of any site.

    Raises:
        ValueError: If a density depends on masked latents; the message names the sites.
    """
    if not program.structure.masked:
        return
    for part in in_pieces(_ROWS_AT_ONCE, *batch):
        with forked(0, "masks"):
            one, other = (program.run(part) for _ in range(2))
        names = sampled_sites(program)
        masks = {name: one[name].entry_mask for name in names if name in program.structure.masked}
        moved = {
            name: torch.where(mask, one[name].value, other[name].value)
            for name, mask in masks.items()
            if mask is not None
        }
        there = program.run(part, {**one.values(names), **moved})
        for name, site in one.inside.items():
            if not torch.allclose(
                site.kept, there[name].kept, _TOLERANCE, _TOLERANCE, equal_nan=True
            ):
                raise ValueError(
                    "log p(y) is not defined, because masks remove the "
                    f"{listed('latent site', sorted(moved))} for some data, but the density of "
                    f"site '{name}' depends on the removed values: mask only observed sites, "
                    "and leave latent sites unmasked"
                )
