"""What a guide may contain, checked by the names of its sites, and which of them make up log q.

A guide samples the latent sites of the model and no others unless they are auxiliary. What it
*observes*, and its `pyro.factor` terms, are terms of a training objective: they are no part of its
density. Masks and scales weigh an objective too; a site that is drawn has its whole density.
"""

from collections.abc import Collection

import pyro.distributions as dist
from pyro.distributions.torch_distribution import MaskedDistribution
from torch import Tensor

from .._types import Distribution
from ..programs import Program, Run, TracedSite, sum_but


def density_sites(run: Run, given: Collection[str] = ()) -> list[TracedSite]:
    """Sites that make up log q: those that the guide drew, and those that were set for it.

    Arguments:
        run: A run of the guide.
        given: Names of the sites that were set, which a run says are observed.
    """
    return [
        site
        for site in run.sites.values()
        if site.name in given or not (site.is_observed or is_factor(site))
    ]


def is_factor(site: TracedSite) -> bool:
    """Whether it is a `pyro.factor` term, which draws nothing."""
    return isinstance(site.distribution, dist.Unit)


def check_sites(
    program: Program, run: Run, needed: Collection[str], given: Collection[str] = ()
) -> None:
    """Refuses a guide that does not sample the latent sites of the model, or samples others.

    Arguments:
        program: The model.
        run: A run of the guide.
        needed: Names of the latent sites that it has to have.
        given: Names of the sites that were set.

    Raises:
        ValueError: With the name of the site, and what to do.
    """
    sampled = density_sites(run, given)
    missing = sorted(set(needed) - {site.name for site in sampled})
    if missing:
        shared = missing[0] in [site.name for site in program.global_sites]
        where = ", which all data share, outside the plate over data" if shared else ""
        raise ValueError(
            f"the guide misses the latent site(s) {missing} of the model; it samples "
            f"{[site.name for site in sampled]}: add pyro.sample({missing[0]!r}, ...) to the "
            f"guide{where}, without obs="
        )
    for site in sampled:
        if site.name not in given:
            _check_site(program, site)


def _check_site(program: Program, site: TracedSite) -> None:
    latent = {*sampled_sites(program), *(site.name for site in program.global_sites)}
    if site.name not in latent and not site.is_auxiliary:
        raise ValueError(
            f"the guide samples '{site.name}', which the model does not have (its latent sites "
            f"are {sorted(latent)}); rename it, or mark it infer={{'is_auxiliary': True}}"
        )


def sampled_sites(program: Program) -> list[str]:
    """Names of the latent sites of a datum that a guide may sample, continuous ones first."""
    return [site.name for site in program.latent_sites] + list(program.structure.enumerated)


def without_auxiliary(program: Program, sites: Collection[TracedSite]) -> list[TracedSite]:
    r"""Sites of a datum that make up log q, given those that were drawn for it.

    An auxiliary site a, of which the model knows nothing, is a mere source of noise where the
    model's sites have distributions given it: with :math:`z \sim q(z \mid a)` the weight
    :math:`p(y, z) / q(z \mid a)` has the mean p(y), and its logarithm is a lower bound. Where the
    model's sites follow from it (`Delta`, with the log Jacobian), their density is that of a.

    Raises:
        ValueError: If some of the model's sites follow from auxiliary ones and some do not, or one
            is a point; with the name of the site.
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
            f"site(s) {[site.name for site in deltas]} of the guide follow from its auxiliary ones "
            f"(Delta) and {others} do not, so which of those are part of the density cannot be "
            "known: sample all of them from distributions of their own, or none"
        )
    return list(sites)


def _refuse_point(site: TracedSite) -> None:
    if is_point(site.distribution):
        raise ValueError(
            f"the guide puts site '{site.name}' at a point (Delta), which has no density: an ELBO "
            "or log p would hang on the unit of the site; sample it from a distribution with a "
            "spread, as in dist.Normal(value, 0.1), or use pv.Guide"
        )


def is_point(distribution: Distribution) -> bool:
    """Whether it is a `Delta` that was given no density of its own."""
    base = base_of(distribution)
    return isinstance(base, dist.Delta) and not bool(base.log_density.any())


def is_delta(distribution: Distribution) -> bool:
    """Whether its value follows from what was drawn before."""
    return isinstance(base_of(distribution), dist.Delta)


def base_of(distribution: Distribution) -> Distribution:
    """The distribution without its event dimensions and masks."""
    while isinstance(distribution, dist.Independent | MaskedDistribution):
        distribution = distribution.base_dist
    return distribution


def log_density(program: Program, site: TracedSite, rows: int) -> Tensor:
    """Whole log density of a site of a guide, by datum, `(rows,)`: neither masked nor scaled.

    Raises:
        ValueError: If the site is not in the plate over data.
    """
    log_prob = site.whole_log_prob
    log_prob = sum_but(log_prob, log_prob.dim() + program.plate_dim)
    require_by_datum(program, site, log_prob, rows)
    return log_prob


def require_by_datum(program: Program, site: TracedSite, log_prob: Tensor, rows: int) -> None:
    """Refuses a log density of a site that has not one value for every row."""
    if log_prob.shape != (rows,):
        raise ValueError(
            f"site '{site.name}' of the guide has a log density of shape "
            f"{tuple(log_prob.shape)} for {rows} rows: sample it inside "
            f"pyro.plate('{program.plate}', len(y)), with the event dimensions of the model's "
            "site (.to_event)"
        )
