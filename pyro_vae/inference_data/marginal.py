r"""Marginal log likelihoods of every datum, for model comparison with ArviZ.

Leave-one-out needs the density of a datum given what is learned from the *other* data. The latents
:math:`z_n` belong to the datum that is left out, so :math:`\log p(y_n \mid z_n)` cannot be used.
The latents :math:`\beta` that all data share are learned from the other data too, and given
:math:`\beta` the data are independent. So the density per datum must be the marginal density,

.. math:: p(y_n \mid y_{-n}) = \Big(\mathbb{E}_{p(\beta \mid y)}\,
    \frac{1}{p(y_n \mid \beta)}\Big)^{-1}, \qquad
    p(y_n \mid \beta) = \int p(y_n \mid z) \, p(z \mid \beta) \, dz ,

and Pareto-smoothed leave-one-out estimates :math:`p(y_n \mid y_{-n})` from draws of :math:`\beta`.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import stats
from .._types import Batch, Data, ProgramLike
from ..evidence import ImportanceSampling, Inference, LogMarginal
from ..evidence.estimates import Estimator
from ..evidence.weights import conditioned
from ..guides import GlobalDraw
from ..guides.entry import draw_globals, posterior_of
from ..programs import Program
from ..programs.pieces import take_rows
from ..programs.traces import retry_unvalidated, total_log_prob
from ..progress import progress_bar
from ..randomness import stream
from ..results import combined
from .draws import (
    Attributes,
    Labelled,
    build,
    datum_labels,
    label,
    labelled,
    observed_arrays,
    observed_label,
)


class _Draw(NamedTuple):
    """A draw of the global sites, its log densities, and the log likelihoods given the draw."""

    shared: GlobalDraw
    log_prior: Tensor
    marginal: LogMarginal


def marginal_log_likelihood(
    model: ProgramLike,
    guide: ProgramLike,
    data: Data,
    num_samples: int = 100,
    estimator: Estimator | None = None,
    *,
    names: Sequence[str] | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Any:
    r"""Estimates log p(y_n | beta) for draws of the global latents beta, in ArviZ's groups.

    .. math:: \beta_s \sim q(\beta), \qquad \log p(y_n \mid \beta_s)

    ================ ============================================== ========================
    group            arrays                                         axes
    ================ ============================================== ========================
    `posterior`      every latent site that all data share          chain, draw, site's axes
    `log_likelihood` the observed site                              chain, draw, datum
    `sample_stats`   `log_prior`, `log_guide`, `log_joint` of beta  chain, draw
    `diagnostics`    `error`, `ess`, `pareto_k` of the estimates    chain, draw, datum
    `observed_data`  every observed site                            datum, site's axes
    ================ ============================================== ========================

    With **training** data, `arviz.loo` leaves each datum out by re-weighting the draws of beta.
    The method assumes that these draws are from the exact posterior, but the guide drew them. ArviZ
    1.x corrects for the difference: call `loo_approximate_posterior(idata, log_p=..., log_q=...)`
    with `log_joint` and `log_guide`. The attribute `pareto_k_of_shared`, which exists for at
    least 30 draws, says how far q(beta) is from the posterior of beta. The log leave-one-out
    density of a datum is too low by about the square of the Monte Carlo error of log p(y_n | beta).

    With **held-out** data, nothing needs to be left out: the log predictive density is the
    log-mean-exp of `log_likelihood` over `draw`.

    A program without global sites gets one draw, since all draws would be equal. Leave-one-out is
    then of no use, since no datum depends on another. Compare such models on held-out data with
    :func:`pyro_vae.criticism.compare_models` or :func:`pyro_vae.criticism.elpd_data`.

    Arguments:
        model: A Pyro program `model(*batch)` with one plate over data.
        guide: A :class:`pyro_vae.Guide`, or a guide program written by hand.
        data: The batch tensor, or a tuple of them: for leave-one-out, all the data that the guide
            was fitted to.
        num_samples: Number of draws of the latent sites that all data share.
        estimator: Estimator of the marginal likelihood; by default
            :class:`pyro_vae.ImportanceSampling` with 1,000 draws.
        names: Labels of the data; by default numbers from 0.
        seed: Seed of all draws; the caller's random stream is left alone.
        progress: Whether to show a progress bar, one step per draw of the global sites; by default
            on terminals and in notebooks.

    Returns:
        `arviz.InferenceData` under ArviZ 0.23 and `xarray.DataTree` under 1.x, in nats. The
        attribute `share_unreliable` is the share of estimates that cannot be trusted.

    Raises:
        ValueError: If data, model and guide do not fit together, or there is no draw.
        FloatingPointError: If a log density is nan or plus infinity.

    References:
        | Practical Bayesian Model Evaluation Using Leave-One-Out Cross-Validation and WAIC
          (Vehtari, Gelman & Gabry, 2017)
        | https://arxiv.org/abs/1507.04544
        | Bayesian Leave-One-Out Cross-Validation for Large Data (Magnusson et al., 2019)
        | https://arxiv.org/abs/1904.10679
        | Bayesian Comparison of Latent Variable Models: Conditional Versus Marginal Likelihoods
          (Merkle, Furr & Rabe-Hesketh, 2019)
        | https://arxiv.org/abs/1802.04452

    Example:
        >>> import pyro
        >>> from pyro_vae import GlobalParameters, Guide
        >>> def model(y):
        ...     mean = pyro.sample("mean", pyro.distributions.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(y)):
        ...         z = pyro.sample("z", pyro.distributions.Normal(mean, 1.0))
        ...         pyro.sample("y", pyro.distributions.Normal(z, 1.0), obs=y)
        >>> guide = Guide(model, GlobalParameters(), example=torch.zeros(2))
        >>> idata = marginal_log_likelihood(model, guide, torch.zeros(4), num_samples=5)
        >>> dict(idata["log_likelihood"]["y"].sizes)
        {'chain': 1, 'draw': 5, 'datum': 4}
    """
    estimator = ImportanceSampling(1000) if estimator is None else estimator
    with conditioned(model, guide, data, seed) as (program, _, batch):
        if program.global_sites:
            shared = draw_globals(program, guide, batch, num_samples, seed)
        else:
            shared = [GlobalDraw({}, torch.zeros((), device="cpu"))]
        estimate = partial(_estimate, program, guide, batch, estimator)
        bar = progress_bar(shared, show=progress, desc="draws of global sites")
        draws = [
            estimate(draw, stream(seed, f"marginal.{place}")) for place, draw in enumerate(bar)
        ]
        groups = _groups(program, draws) | {"observed_data": observed_arrays(program, batch)}
        coords = {"datum": datum_labels(names, len(batch[0]))}
    return build(groups, coords, _attributes(groups, draws, seed))


def _estimate(
    program: Program,
    guide: ProgramLike,
    batch: Batch,
    estimator: Estimator,
    shared: GlobalDraw,
    seed: int,
) -> _Draw:
    """Estimates log p(y_n | beta) of every datum for one draw of the global sites beta."""
    given = program.given(shared.values, "a draw of their posterior")
    inference = Inference(given, posterior_of(guide, given, batch), batch)
    marginal = estimator(inference, seed=seed, progress=False)
    run = retry_unvalidated(partial(given.run, take_rows(batch, slice(1))))
    sites = (run[site.name] for site in program.global_sites)
    log_prior = total_log_prob(sites, torch.zeros((), device="cpu"))  # of the constrained values
    return _Draw(shared, log_prior, marginal)


def _groups(program: Program, draws: list[_Draw]) -> dict[str, dict[str, Labelled]]:
    log_prior = torch.stack([draw.log_prior for draw in draws]).double()
    log_guide = torch.stack([draw.shared.log_guide for draw in draws]).double()
    marginals = [draw.marginal for draw in draws]
    columns = [(each.value, each.error, each.ess, each.pareto_k) for each in marginals]
    value, error, ess, pareto_k = combined(columns, torch.stack)  # (draws, data) each
    log_joint = log_prior + value.double().sum(dim=1).to(log_prior.device)
    by_draw = {"log_prior": log_prior, "log_guide": log_guide, "log_joint": log_joint}
    by_datum = {"error": error, "ess": ess, "pareto_k": pareto_k}
    return {
        "posterior": _sites(program, draws),
        "log_likelihood": {observed_label(program): labelled(value, "draw", "datum")},
        "sample_stats": {name: labelled(part, "draw") for name, part in by_draw.items()},
        "diagnostics": {name: labelled(p, "draw", "datum") for name, p in by_datum.items()},
    }


def _sites(program: Program, draws: list[_Draw]) -> dict[str, Labelled]:
    sites = {}
    for site in program.global_sites:
        value = torch.stack([draw.shared.values[site.name] for draw in draws])
        axes = [f"{label(site.name)}_dim_{axis}" for axis in range(value.dim() - 1)]
        sites[label(site.name)] = labelled(value, "draw", *axes)
    # ArviZ requires a posterior group; here the fitted point is its only draw.
    return sites or {"point": labelled(torch.zeros(len(draws), device="cpu"), "draw")}


def _attributes(
    groups: dict[str, dict[str, Labelled]], draws: list[_Draw], seed: int
) -> Attributes:
    sample_stats = groups["sample_stats"]
    ratios = torch.from_numpy(sample_stats["log_joint"].values - sample_stats["log_guide"].values)
    known = len(ratios) >= stats.MIN_TAIL_PARTICLES
    shape: dict[str, float] = {"pareto_k_of_shared": float(stats.pareto_k(ratios))} if known else {}
    reliable = torch.stack([draw.marginal.reliable for draw in draws])
    return {
        "num_samples": len(draws),
        "seed": seed,
        "method": draws[0].marginal.method,
        "draws": (
            "log_likelihood is the marginal log p(y_n | beta), with the latents of the datum "
            "integrated out, for draws from the guide's q(beta) of the global sites"
        ),
        "share_unreliable": float((~reliable).double().mean()),
        **shape,
    }
