r"""Draws of a guide for every datum, with their densities and weights, in ArviZ's groups.

The draws :math:`z_{kn} \sim q(z \mid y_n)` are of the guide. Each carries its log weight
:math:`\log w_{kn} = \log p(y_n, z_{kn}) - \log q(z_{kn} \mid y_n)`, so that averages under the
exact posterior can be had from the same file,

.. math:: \mathbb{E}[f(z_n) \mid y_n] \approx \sum_k w_{kn} f(z_{kn}) \Big/ \sum_k w_{kn},

as far as Pareto k allows. Every datum draws from streams of its own, as in
:mod:`pyro_vae.evidence`: these are the draws that :func:`pyro_vae.log_weights` weighs.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeGuard, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from pyro import poutine
from torch import Tensor

from .. import stats
from .._types import Batch, Data, ProgramLike
from ..data import row_seeds
from ..evidence import ImportanceSampling, Weights, log_marginal_of, prepared
from ..guides import Posterior
from ..programs import Program, forked_seed, whole_plate
from .arrays import Attributes, Labelled, build

_PREDICTIVE_STREAM = 2**63  # added to the seed: no caller's seed is as large
_PREDICTIVE_BYTES = 2**28  # of simulated data, unless a number of draws is asked for

_Groups: TypeAlias = dict[str, dict[str, Labelled]]


@runtime_checkable
class _Simulator(Protocol):
    """A model that can simulate data from its one vector of latents."""

    def sample_data(self, z: Tensor) -> Tensor:
        """Draws from p(y | z), one for each z: `(draws, latents)` to `(draws, *datum)`."""


@runtime_checkable
class _Generator(_Simulator, Protocol):
    """A model that can simulate those latents, too."""

    def prior(self) -> Any:
        """The distribution p(z) of one datum's vector, `(latents,)`."""


class _Block(NamedTuple):
    """Some of the data, draws for them `(draws, rows, latents)`, and a seed a row."""

    batch: Batch
    z: Tensor
    weights: Weights
    predictive_seeds: list[int]


def to_inference_data(
    model: ProgramLike,
    guide: ProgramLike,
    data: Data,
    *,
    num_samples: int = 500,
    seed: int = 0,
    names: Sequence[str] | None = None,
    predictive_draws: int | None = None,
    prior_draws: int | None = None,
    progress: bool = False,
) -> Any:
    r"""Draws latents of every datum from a guide, for ArviZ to summarize, plot and store.

    .. math:: z_{kn} \sim q(z \mid y_n), \qquad
        \log w_{kn} = \log p(y_n, z_{kn}) - \log q(z_{kn} \mid y_n)

    The groups, with a `chain` of length 1, since the draws are independent:

    ====================== ======================== ============================================
    group                  arrays                   axes
    ====================== ======================== ============================================
    `posterior`            every latent site        chain, draw, datum and those of the site
    `log_likelihood`       the observed site        chain, draw, datum
    `sample_stats`         `log_weight`             chain, draw, datum
    `diagnostics`          `pareto_k`, `ess`        datum
    `observed_data`        every observed site      datum and those of the site
    `posterior_predictive` the observed site        chain, draw, datum and those of the site
    `prior`                the latent site          chain, draw and those of the site
    `prior_predictive`     the observed site        chain, draw and those of the site
    ====================== ======================== ============================================

    Latents have the values that the program sees (constrained) under the names of their sites, a
    slash of which becomes a dot. The axes of a vector are called `latent` where it is the only
    latent site, and those of data `feature` where there is one observed site, numbered if there
    are several (`feature_0`, ...); others are called `<site>_dim`, numbered likewise. With several
    observed sites the log likelihood is their sum, called `observed`. The last three groups need a
    model with one vector of latents and the methods `sample_data` and `prior`, such as
    :class:`pyro_vae.models.VAE`; elsewhere they are left out.

    Chain statistics (`r_hat`, ESS by autocorrelation) say nothing about the guide: look at
    `diagnostics`. Nor does leave-one-out from `log_likelihood`, since z belongs to the very datum
    that would be left out.

    Arguments:
        model: A Pyro program `model(*batch)` with one plate over data.
        guide: A :class:`pyro_vae.Guide`, or a guide program written by hand.
        data: The batch tensor, or a tuple of them.
        num_samples: Draws a datum, at least 2; Pareto k is nan for fewer than 30.
        seed: Seed of the draws; the caller's random stream is left alone.
        names: Labels of the data, one each and all different; numbered from 0 when left out.
        predictive_draws: Draws of data a datum, from the first so many of its latents; 0 for
            none. By default all that fit into 256 mebibytes.
        prior_draws: Draws from the model itself, 0 for none; `num_samples` by default. Those of
            data are the ones that `model.sample(prior_draws, seed=seed)` gives.
        progress: Whether to show a progress bar.

    Returns:
        `arviz.InferenceData` under ArviZ 0.23 and `xarray.DataTree` under 1.x, log densities and
        weights in nats and float64. Its attributes, and those of every group, say that the draws
        are the guide's, the seed, `num_samples`, and the share of the data whose Pareto k is
        above 0.7 or has no value (nan). A draw has no error of its own: the log weights hold it.

    Raises:
        ValueError: If data, model and guide do not fit together, if there are too few draws, if
            the names are not one a datum, or if data are asked of a model that cannot make any.
        FloatingPointError: If a log density is nan or plus infinity.

    References:
        | ArviZ: a unified library for exploratory analysis of Bayesian models (Kumar et al., 2019)
        | https://doi.org/10.21105/joss.01143
        | Pareto Smoothed Importance Sampling (Vehtari et al., 2024)
        | https://arxiv.org/abs/1507.02646

    Example:
        >>> from pyro_vae import Encoder, Guide, likelihoods, models, nets
        >>> model = models.VAE(torch.nn.Linear(2, 3), likelihoods.Gaussian(), latent_dim=2)
        >>> guide = Guide(model, Encoder(nets.MLPEncoder(3)))
        >>> idata = to_inference_data(model, guide, torch.zeros(4, 3), num_samples=100)
        >>> dict(idata["posterior"]["z"].sizes)
        {'chain': 1, 'draw': 100, 'datum': 4, 'latent': 2}
    """
    method = ImportanceSampling(num_samples)
    with prepared(model, guide, data, seed) as (program, posterior, batch):
        coords = {"datum": _datum_labels(names, len(batch[0]))}
        num_predictive = _num_predictive(model, program, batch, predictive_draws, num_samples)
        num_prior = _num_draws(
            prior_draws, num_samples, "prior", able=_is_generator(model, program)
        )
        blocks = _blocks(method, program, posterior, batch, seed=seed, progress=progress)
        groups = _joined([_groups(model, program, block, num_predictive) for block in blocks])
        groups |= _prior(model, program, num_prior, seed)
    return build(groups, coords, _attributes(groups, num_samples, seed, program))


def _blocks(
    method: ImportanceSampling,
    program: Program,
    posterior: Posterior,
    batch: Batch,
    *,
    seed: int,
    progress: bool,
) -> Iterator[_Block]:
    """Draws and weights of some data at a time, within the estimator's memory budget."""
    predictive_seeds = row_seeds(seed + _PREDICTIVE_STREAM, *batch).tolist()
    for block in method.blocks(program, posterior, batch, seed=seed, progress=progress):
        part = tuple(tensor[block.rows] for tensor in batch)
        yield _Block(part, block.z, block.weights, predictive_seeds[block.rows])


def _groups(model: ProgramLike, program: Program, block: _Block, num_predictive: int) -> _Groups:
    """What there is to say about some of the data."""
    marginal = log_marginal_of(block.weights)
    only = program.observed_names[0] if len(program.observed_names) == 1 else "observed"
    return {
        "posterior": _latents(program, block.z),
        "log_likelihood": {
            _label(only): _labelled(block.weights.log_likelihood, "draw", "datum"),
        },
        "sample_stats": {"log_weight": _labelled(block.weights.log_weights, "draw", "datum")},
        "diagnostics": {
            "pareto_k": _labelled(marginal.pareto_k, "datum"),
            "ess": _labelled(marginal.ess, "datum"),
        },
        "observed_data": _observed(program, block.batch),
        "posterior_predictive": _predictive(model, program, block, num_predictive),
    }


def _latents(program: Program, z: Float[Tensor, "draws rows latents"]) -> dict[str, Labelled]:
    """Every latent site, constrained."""
    draws, rows, latents = z.shape
    values, _ = program.constrain(z.reshape(-1, latents))
    sites = {}
    for site in program.latent_sites:
        value = values[site.name].movedim(site.axis, 0)  # (draws * rows, ...)
        value = value.reshape(draws, rows, *value.shape[1:])
        axes = _site_axes(site.name, value.dim() - 2, _latent_word(program))
        sites[_label(site.name)] = _labelled(value, "draw", "datum", *axes)
    return sites


def _observed(program: Program, batch: Batch) -> dict[str, Labelled]:
    """Every observed site, as the program shows it: it may have made it from the batch."""
    with poutine.block(), whole_plate(len(batch[0]), program.plate):
        nodes: dict[str, Any] = dict(poutine.trace(program.model).get_trace(*batch).nodes)
    sites = {}
    for name in program.observed_names:
        value, function = nodes[name]["value"], nodes[name]["fn"]
        value = value.expand(torch.broadcast_shapes(value.shape, function.shape()))
        value = value.movedim(value.dim() - function.event_dim + program.plate_dim, 0)
        axes = _site_axes(name, value.dim() - 1, _observed_word(program))
        sites[_label(name)] = _labelled(value, "datum", *axes)
    return sites


def _predictive(
    model: ProgramLike, program: Program, block: _Block, draws: int
) -> dict[str, Labelled]:
    """Data simulated from the first draws of each datum's latents, from a stream of its own."""
    if draws == 0 or not _is_simulator(model, program):
        return {}
    simulated = []
    for row, seed in enumerate(block.predictive_seeds):
        _seed_stream(seed)
        simulated.append(model.sample_data(block.z[:draws, row]))
    return _simulated(program, torch.stack(simulated, dim=1), "draw", "datum")


def _seed_stream(seed: int) -> None:
    # torch.manual_seed formats a stack trace for every call, which takes longer than the draws.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        torch.manual_seed(seed)


def _prior(model: ProgramLike, program: Program, draws: int, seed: int) -> _Groups:
    """Latents and data from the model alone."""
    if draws == 0 or not _is_generator(model, program):
        return {}
    with forked_seed(seed):
        z = model.prior().expand([draws]).sample()
        y = model.sample_data(z)
    name = program.latent_sites[0].name
    axes = _site_axes(name, z.dim() - 1, _latent_word(program))
    return {
        "prior": {_label(name): _labelled(z, "draw", *axes)},
        "prior_predictive": _simulated(program, y, "draw"),
    }


def _simulated(program: Program, y: Tensor, *leading: str) -> dict[str, Labelled]:
    (name,) = program.observed_names
    axes = _site_axes(name, y.dim() - len(leading), _observed_word(program))
    return {_label(name): _labelled(y, *leading, *axes)}


def _is_simulator(model: ProgramLike, program: Program) -> TypeGuard[_Simulator]:
    """Whether the flat latents are what the model's `sample_data` takes."""
    one_of_each = len(program.latent_sites) == len(program.observed_names) == 1
    vector = program.latent_sites[0].is_plain_vector
    return one_of_each and vector and isinstance(model, _Simulator)


def _is_generator(model: ProgramLike, program: Program) -> TypeGuard[_Generator]:
    return _is_simulator(model, program) and isinstance(model, _Generator)


def _num_predictive(
    model: ProgramLike, program: Program, batch: Batch, asked: int | None, num_samples: int
) -> int:
    """Draws of the posterior predictive: as many as asked for, or as fit into the budget."""
    if asked is not None and asked > num_samples:
        raise ValueError(
            f"predictive_draws are made from the draws of z, at most num_samples={num_samples}, "
            f"got {asked}; raise num_samples"
        )
    affordable = max(1, min(num_samples, _PREDICTIVE_BYTES // batch[0].nbytes))
    return _num_draws(asked, affordable, "predictive", able=_is_simulator(model, program))


def _num_draws(asked: int | None, default: int, name: str, *, able: bool) -> int:
    if asked is None:
        return default if able else 0
    if asked < 0:
        raise ValueError(f"{name}_draws is a number of draws, 0 for none, got {asked}")
    if asked and not able:
        methods = "sample_data(z)" if name == "predictive" else "sample_data(z) and prior()"
        raise ValueError(
            f"{name}_draws={asked} needs a model with one vector of latents, one observed site, "
            f"and {methods}, as pv.models.VAE is; leave it out, or say {name}_draws=0"
        )
    return asked


def _datum_labels(names: Sequence[str] | None, num_data: int) -> Any:
    if names is None:
        return np.arange(num_data)
    if len(names) != num_data:
        raise ValueError(f"names label the data, one each: expected {num_data}, got {len(names)}")
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise ValueError(
            f"names must be different, or a datum cannot be chosen by its name; {name!r} stands "
            f"{count} times: number them, as in [f'{{name}}-{{n}}' for n, name in enumerate(names)]"
        )
    return np.array(names)


def _label(name: str) -> str:
    """A site's name, where it would be a path to xarray and NetCDF."""
    return name.replace("/", ".")


def _latent_word(program: Program) -> str | None:
    sites = program.latent_sites
    return "latent" if len(sites) == 1 and sites[0].is_plain_vector else None


def _observed_word(program: Program) -> str | None:
    return "feature" if len(program.observed_names) == 1 else None


def _site_axes(name: str, count: int, word: str | None) -> tuple[str, ...]:
    """Names of a site's own axes: from `word`, unless the site itself is called so."""
    stem = word if word not in (None, name) else f"{_label(name)}_dim"
    return (f"{stem}",) if count == 1 else tuple(f"{stem}_{axis}" for axis in range(count))


def _labelled(values: Tensor, *dims: str) -> Labelled:
    return Labelled(values.detach().cpu().numpy(), dims)


def _joined(blocks: list[_Groups]) -> _Groups:
    """Blocks of data joined along `datum`, which every array has."""
    return {
        group: {name: _join([block[group][name] for block in blocks]) for name in variables}
        for group, variables in blocks[0].items()
    }


def _join(parts: list[Labelled]) -> Labelled:
    dims = parts[0].dims
    return Labelled(np.concatenate([part.values for part in parts], axis=dims.index("datum")), dims)


def _attributes(groups: _Groups, num_samples: int, seed: int, program: Program) -> Attributes:
    from .. import __version__  # here, since the root imports this module first

    pareto_k = groups["diagnostics"]["pareto_k"].values
    return {
        "inference_library": "pyro_vae",
        "inference_library_version": __version__,
        "num_samples": num_samples,
        "seed": seed,
        "given": program.conditions,
        "draws": (
            "independent draws from the guide q(z | y) of every datum, not from the exact "
            "posterior p(z | y); weighted by exp(log_weight) of sample_stats they stand for the "
            "exact posterior, as far as pareto_k and ess of diagnostics allow"
        ),
        "pareto_k_limit": stats.MAX_PARETO_K,
        "share_above_pareto_k_limit": float((pareto_k > stats.MAX_PARETO_K).mean()),
        "share_without_pareto_k": float(np.isnan(pareto_k).mean()),
    }
