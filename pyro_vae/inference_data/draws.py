r"""Draws of a guide for every datum, with their densities and weights, in ArviZ's groups.

The draws :math:`z_{kn} \sim q(z \mid y_n)` come from the guide. Each carries its log weight
:math:`\log w_{kn} = \log p(y_n, z_{kn}) - \log q(z_{kn} \mid y_n)`, so that averages under the
exact posterior can be computed from the same file,

.. math:: \mathbb{E}[f(z_n) \mid y_n] \approx \sum_k w_{kn} f(z_{kn}) \Big/ \sum_k w_{kn},

as far as Pareto k allows. Every datum has its own random streams, as in :mod:`pyro_vae.evidence`,
so the draws are those that :func:`pyro_vae.log_weights` weights.

ArviZ 0.23 keeps groups in an `InferenceData`, 1.x in an `xarray.DataTree`. Both have a `from_dict`
with one table of dimensions for all groups, so `y` could not be `(datum,)` as a log likelihood and
`(datum, feature)` as data. So the datasets of the groups are made here, alike for both versions,
and only their container differs.
"""

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from importlib.metadata import version
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from .. import stats
from .._types import Batch, Data, ProgramLike
from ..evidence import ImportanceSampling, Inference, Weights, log_marginal_of, prepared
from ..programs import Program, repeat_rows, simulate
from ..randomness import row_keys, seeded


class Labelled(NamedTuple):
    """An array, and the name of each of its axes."""

    values: NDArray[Any]
    dims: tuple[str, ...]


Attributes: TypeAlias = Mapping[str, str | int | float]
"""Metadata that a NetCDF file can hold beside the arrays."""


def build(
    groups: Mapping[str, Mapping[str, Labelled]],
    coords: Mapping[str, NDArray[Any]],
    attrs: Attributes,
) -> Any:
    """Puts arrays into the container of the ArviZ that is installed.

    An array whose first axis is `draw` gets an axis `chain` of length 1 before it, which ArviZ
    expects: independent draws count as one chain.

    Arguments:
        groups: Arrays by group and name. A group without arrays is left out.
        coords: Labels of axes, by the axis's name; any other axis is numbered from 0.
        attrs: Attributes of the container and of every group.

    Returns:
        `arviz.InferenceData` under ArviZ 0.23 and `xarray.DataTree` under 1.x. Both give a group by
        `result["posterior"]` and have `to_netcdf(path)`; `arviz.from_netcdf(path)` reads it.

    Raises:
        ValueError: If an array has the name of an axis, if its axes and their names differ in
            number, or if an axis has several lengths in one group.

    References:
        | ArviZ: a unified library for exploratory analysis of Bayesian models (Kumar et al., 2019)
        | https://doi.org/10.21105/joss.01143

    Example:
        >>> groups = {"posterior": {"z": Labelled(np.zeros((10, 2)), ("draw", "datum"))}}
        >>> build(groups, {"datum": np.array(["a", "b"])}, {"seed": 0})["posterior"]["z"].dims
        ('chain', 'draw', 'datum')
    """
    datasets = {
        group: _dataset(group, variables, coords, attrs)
        for group, variables in groups.items()
        if variables
    }
    return _container(datasets, attrs)


def _dataset(
    group: str,
    variables: Mapping[str, Labelled],
    coords: Mapping[str, NDArray[Any]],
    attrs: Attributes,
) -> Any:
    chained = {name: _with_chain(variable) for name, variable in variables.items()}
    _check(group, chained)
    return import_module("xarray").Dataset(
        {name: (dims, values) for name, (values, dims) in chained.items()},
        coords=_coordinates(chained.values(), coords),
        attrs=dict(attrs),
    )


def _with_chain(variable: Labelled) -> Labelled:
    values, dims = variable
    return Labelled(values[None], ("chain", *dims)) if dims[:1] == ("draw",) else variable


def _coordinates(
    variables: Iterable[Labelled], coords: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """Labels of every axis of a group."""
    lengths = {
        dim: length
        for values, dims in variables
        for dim, length in zip(dims, values.shape, strict=True)
    }
    return {dim: coords.get(dim, np.arange(length)) for dim, length in lengths.items()}


def _check(group: str, variables: Mapping[str, Labelled]) -> None:
    axes = {dim for variable in variables.values() for dim in variable.dims}
    for name, (values, dims) in variables.items():
        if values.ndim != len(dims):
            raise ValueError(
                f"'{name}' of the group '{group}' has the shape {values.shape}, which needs "
                f"{values.ndim} axis names, got {dims}"
            )
        if name in axes:
            raise ValueError(
                f"'{name}' of the group '{group}' has the name of an axis ({sorted(axes)}), which "
                "xarray would take for the labels of that axis; rename that site of the model"
            )


def _container(datasets: dict[str, Any], attrs: Attributes) -> Any:
    if int(version("arviz").split(".")[0]) >= 1:
        tree = import_module("xarray").DataTree.from_dict(datasets)
        tree.attrs.update(attrs)
        return tree
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 0.23 announces 1.x on import; this code works with both
        arviz = import_module("arviz")
    return arviz.InferenceData(attrs=attrs, **datasets)


_PREDICTIVE_BYTES = 2**28  # of simulated data, if no number of draws is given
_TRIED = 4  # rows that show whether a program can be simulated

_Groups: TypeAlias = dict[str, dict[str, Labelled]]


class _Block(NamedTuple):
    """Some data, their draws `(draws, rows, latents)` with weights, and two random keys per row."""

    batch: Batch
    z: Tensor
    weights: Weights
    predictive_keys: list[int]
    prior_keys: list[int]


class _Sizes(NamedTuple):
    """Numbers of draws per datum, and in words why predictive ones are left out."""

    predictive: int
    prior: int
    missing: str


def to_inference_data(
    model: ProgramLike,
    guide: ProgramLike,
    data: Data,
    *,
    num_samples: int = 500,
    seed: int = 0,
    names: Sequence[str] | None = None,
    num_predictive_samples: int | None = None,
    num_prior_samples: int | None = None,
    progress: bool | None = None,
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
    `posterior_predictive` every observed site      chain, draw, datum and those of the site
    `prior`                every latent site        chain, draw, datum and those of the site
    `prior_predictive`     every observed site      chain, draw, datum and those of the site
    ====================== ======================== ============================================

    Latents have the values that the program sees (constrained) under the names of their sites, with
    dots for slashes. The axis of a latent vector is called `latent` if it is the only latent site,
    and the axis of the data `feature` if there is one observed site; several axes are numbered
    (`feature_0`, ...). The axes of other sites are called `<site>_dim`, numbered likewise. With
    several observed sites the log likelihood is their sum, called `observed`.

    Each draw of the last three groups is a whole data set, as large as the data and with the same
    covariates, as ArviZ's plots expect; to simulate it, the program is run with nothing observed.
    If that is not possible row by row, these groups are left out, and `left_out` says why. The
    posterior predictive group is also left out if discrete latents were summed out, since there are
    no draws of those. Posterior predictive data look more like the data than draws of the model do,
    because their latents were inferred from the data. :func:`pyro_vae.diagnostics.predictive_check`
    keeps the two apart.

    Chain statistics (`r_hat`, ESS by autocorrelation) say nothing about the guide: look at
    `diagnostics`. Do not use leave-one-out on `log_likelihood` either: z belongs to the very datum
    that would be left out.

    Arguments:
        model: A Pyro program `model(*batch)` with one plate over data.
        guide: A :class:`pyro_vae.Guide`, or a guide program written by hand.
        data: The batch tensor, or a tuple of them.
        num_samples: Draws per datum, at least 2; Pareto k is nan for fewer than 30.
        seed: Seed of the draws; the caller's random stream is left alone.
        names: Labels of the data, one per datum and all different; by default numbers from 0.
        num_predictive_samples: Predictive draws per datum, made from its first draws of z; 0 for
            none. By default as many as fit into 256 MiB.
        num_prior_samples: Prior draws per datum, 0 for none; by default as many as
            `num_predictive_samples`.
        progress: Whether to show a progress bar; by default on terminals and in notebooks.

    Returns:
        `arviz.InferenceData` under ArviZ 0.23 and `xarray.DataTree` under 1.x, log densities and
        weights in nats and float64. The attributes of the whole and of every group hold the seed,
        `num_samples`, a note that the draws are the guide's, and the shares of the data whose
        Pareto k is above 0.7 or nan. A draw has no error of its own; the log weights carry that
        information.

    Raises:
        ValueError: If data, model and guide do not fit together, if there are too few draws, if the
            names are not one per datum, or if predictive draws are requested of a program that
            cannot be simulated.
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
    estimator = ImportanceSampling(num_samples)
    with prepared(model, guide, data, seed) as inference:
        program, _, batch = inference
        program.require_latents()
        coords = {"datum": datum_labels(names, len(batch[0]))}
        sizes = _sizes(program, batch, num_samples, num_predictive_samples, num_prior_samples)
        blocks = _blocks(estimator, inference, seed=seed, progress=progress)
        groups = _joined([_groups(program, block, sizes) for block in blocks])
    attributes = _attributes(groups, num_samples, seed, program, sizes.missing)
    return build(groups, coords, attributes)


def _blocks(
    estimator: ImportanceSampling, inference: Inference, *, seed: int, progress: bool | None
) -> Iterator[_Block]:
    """Draws and weights of some data at a time, within the estimator's memory budget."""
    batch = inference.batch
    predictive = row_keys(seed, "posterior predictive", *batch).tolist()
    prior = row_keys(seed, "prior predictive", *batch).tolist()
    for block in estimator.blocks(inference, seed=seed, progress=progress):
        part = tuple(tensor[block.rows] for tensor in batch)
        keys = predictive[block.rows], prior[block.rows]
        yield _Block(part, block.z, block.weights, *keys)


def _groups(program: Program, block: _Block, sizes: _Sizes) -> _Groups:
    """Arrays of every group for some of the data."""
    marginal = log_marginal_of(block.weights)
    only = program.observed_names[0] if len(program.observed_names) == 1 else "observed"
    return {
        "posterior": _latents(program, block.z),
        "log_likelihood": {
            label(only): labelled(block.weights.log_likelihood, "draw", "datum"),
        },
        "sample_stats": {"log_weight": labelled(block.weights.log_weights, "draw", "datum")},
        "diagnostics": {
            "pareto_k": labelled(marginal.pareto_k, "datum"),
            "ess": labelled(marginal.ess, "datum"),
        },
        "observed_data": observed_arrays(program, block.batch),
        "posterior_predictive": _predictive(program, block, sizes.predictive),
        **_prior(program, block, sizes.prior),
    }


def _latents(program: Program, z: Float[Tensor, "draws rows latents"]) -> dict[str, Labelled]:
    """Values of every latent site, constrained."""
    draws, rows, latents = z.shape
    values, _ = program.constrain(z.reshape(-1, latents))
    by_datum = {
        site.name: values[site.name].movedim(site.axis, 0).unflatten(0, (draws, rows))
        for site in program.latent_sites
    }
    return drawn_sites(by_datum, _latent_word(program))


def drawn_sites(values: dict[str, Tensor], word: str | None) -> dict[str, Labelled]:
    """Values of sites, `(draws, rows, *site)`, with the names of their axes."""
    return {
        label(name): labelled(value, "draw", "datum", *_site_axes(name, value.dim() - 2, word))
        for name, value in values.items()
    }


def observed_arrays(program: Program, batch: Batch) -> dict[str, Labelled]:
    """Values of every observed site, which the program may have computed from the batch."""
    run, sites = program.run(batch), {}
    for name in program.observed_names:
        value = run[name].value_by_datum(program.plate_dim)
        axes = _site_axes(name, value.dim() - 1, _observed_word(program))
        sites[label(name)] = labelled(value, "datum", *axes)
    return sites


def _predictive(program: Program, block: _Block, draws: int) -> dict[str, Labelled]:
    """Data simulated from the first draws of each datum's latents, with a key per datum."""
    if draws == 0:
        return {}
    rows = [
        _simulation(program, block.batch, row, key, block.z[:draws, row])
        for row, key in enumerate(block.predictive_keys)
    ]
    observed = {name: torch.stack([r[name] for r in rows], 1) for name in program.observed_names}
    return drawn_sites(observed, _observed_word(program))


def _prior(program: Program, block: _Block, draws: int) -> _Groups:
    """Latents and data drawn from the model, given the covariates alone."""
    if draws == 0:
        return {}
    rows = [
        _simulation(program, block.batch, row, key, draws)
        for row, key in enumerate(block.prior_keys)
    ]
    stacked = {name: torch.stack([r[name] for r in rows], dim=1) for name in rows[0]}
    latents = {site.name: stacked[site.name] for site in program.latent_sites}
    observed = {name: stacked[name] for name in program.observed_names}
    return {
        "prior": drawn_sites(latents, _latent_word(program)),
        "prior_predictive": drawn_sites(observed, _observed_word(program)),
    }


def _simulation(
    program: Program, batch: Batch, row: int, key: int, drawn: Tensor | int
) -> dict[str, Tensor]:
    """One datum simulated many times, from given latents `(draws, latents)` or from new ones.

    Returns latent and observed sites, `(draws, *site)`.
    """
    draws = drawn if isinstance(drawn, int) else len(drawn)
    values = {} if isinstance(drawn, int) else program.constrain(drawn)[0]
    seeded(key)
    run = program.run_forward(
        repeat_rows(tuple(part[row : row + 1] for part in batch), draws), values
    )
    names = [*(site.name for site in program.latent_sites), *program.observed_names]
    return {name: run[name].value_by_datum(program.plate_dim) for name in names}


def _sizes(
    program: Program, batch: Batch, num_samples: int, predictive: int | None, prior: int | None
) -> _Sizes:
    """Numbers of predictive draws: as asked for, or as many as fit into memory."""
    if predictive is not None and predictive > num_samples:
        raise ValueError(
            "num_predictive_samples predictive draws are made from as many draws of z, at most "
            f"num_samples={num_samples}, got {predictive}; raise num_samples"
        )
    affordable = max(1, min(num_samples, _PREDICTIVE_BYTES // batch[0].nbytes))
    no_prior = _why_not(program, batch)
    summed = list(program.structure.enumerated)
    no_draws = f"there are no draws of the site(s) {summed}, which are summed out" if summed else ""
    no_predictive = no_prior or no_draws
    return _Sizes(
        _num_draws(predictive, affordable, "predictive", no_predictive),
        _num_draws(prior, affordable if predictive is None else predictive, "prior", no_prior),
        no_predictive,
    )


def _num_draws(asked: int | None, default: int, name: str, why_not: str) -> int:
    if asked is None:
        return 0 if why_not else default
    if asked < 0:
        raise ValueError(f"num_{name}_samples is a number of draws, 0 for none, got {asked}")
    if asked and why_not:
        raise ValueError(
            f"num_{name}_samples={asked} is not possible: {why_not}; leave it out, or pass 0"
        )
    return asked


def _why_not(program: Program, batch: Batch) -> str:
    """Why the program cannot be simulated, as a message; empty if it can."""
    try:
        simulate(program, tuple(part[:_TRIED] for part in batch), seed=0)
    except ValueError as error:
        return str(error)
    return ""


def datum_labels(names: Sequence[str] | None, num_data: int) -> Any:
    """Labels of the axis `datum`: numbers from 0, or the names, one each and all different."""
    if names is None:
        return np.arange(num_data)
    if len(names) != num_data:
        raise ValueError(f"names= needs one per datum: expected {num_data}, got {len(names)}")
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise ValueError(
            f"names must be different, or a datum cannot be selected by its name; {name!r} occurs "
            f"{count} times: number them, as in [f'{{name}}-{{n}}' for n, name in enumerate(names)]"
        )
    return np.array(names)


def label(name: str) -> str:
    """A site's name with slashes replaced: xarray and NetCDF would read a path."""
    return name.replace("/", ".")


def _latent_word(program: Program) -> str | None:
    sites = program.latent_sites
    return "latent" if len(sites) == 1 and sites[0].is_plain_vector else None


def _observed_word(program: Program) -> str | None:
    return "feature" if len(program.observed_names) == 1 else None


def _site_axes(name: str, count: int, word: str | None) -> tuple[str, ...]:
    """Names of a site's own axes: from `word`, unless that is the name of the site."""
    stem = word if word not in (None, name) else f"{label(name)}_dim"
    return (f"{stem}",) if count == 1 else tuple(f"{stem}_{axis}" for axis in range(count))


def labelled(values: Tensor, *dims: str) -> Labelled:
    """A tensor as an array with the names of its axes."""
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


def _attributes(
    groups: _Groups, num_samples: int, seed: int, program: Program, left_out: str
) -> Attributes:
    from .. import __version__  # here, since the root imports this module first

    pareto_k = groups["diagnostics"]["pareto_k"].values
    return {
        "inference_library": "pyro_vae",
        "inference_library_version": __version__,
        "num_samples": num_samples,
        "seed": seed,
        "given": program.conditions,
        "left_out": left_out,
        "draws": (
            "independent draws from the guide q(z | y) of every datum, not from the exact "
            "posterior p(z | y); weighted by exp(log_weight) of sample_stats they represent the "
            "exact posterior, as far as pareto_k and ess in diagnostics allow"
        ),
        "pareto_k_limit": stats.MAX_PARETO_K,
        "share_above_pareto_k_limit": float((pareto_k > stats.MAX_PARETO_K).mean()),
        "share_without_pareto_k": float(np.isnan(pareto_k).mean()),
    }
