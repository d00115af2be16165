r"""A guide's draws for every datum, with their densities and weights, in ArviZ's groups.

The draws :math:`z_{kn} \sim q(z \mid y_n)` come from the guide. Each draw is stored with its log
weight :math:`\log w_{kn} = \log p(y_n, z_{kn}) - \log q(z_{kn} \mid y_n)`. If the datum is marked
as reliable, the weighted draws give averages under the exact posterior:

.. math:: \mathbb{E}[f(z_n) \mid y_n] \approx \sum_k w_{kn} f(z_{kn}) \Big/ \sum_k w_{kn} .

Every datum has its own random streams, as in :mod:`pyro_vae.evidence`, so the draws are the same as
those of :func:`pyro_vae.log_weights`.

ArviZ 0.23 holds groups in an `InferenceData`, ArviZ 1.x in an `xarray.DataTree`. Both have a
`from_dict`, which takes one table of axis names for all groups. But `y` has one number
per datum in the group of log likelihoods, and further axes in the group of observed data.
So the groups are built here, in the same way for both versions; only their container differs.
"""

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from .._types import Batch, Data, ProgramLike
from ..evidence import ImportanceSampling, Inference, LogMarginal, Weights
from ..evidence.weights import conditioned
from ..formatting import count_of
from ..programs import Program, simulate
from ..programs.pieces import take_rows
from ..programs.traces import repeat_rows
from ..randomness import row_keys, seeded
from ..results import combined
from ..stats.chains import arviz_generation
from .deterministic import data_axes, deterministic


class Labelled(NamedTuple):
    """An array, and the name of each of its axes."""

    values: NDArray[Any]
    dims: tuple[str, ...]


Attributes: TypeAlias = Mapping[str, str | int | float]
"""Metadata that a NetCDF file can hold in addition to the arrays."""


def build(
    groups: Mapping[str, Mapping[str, Labelled]],
    coords: Mapping[str, NDArray[Any]],
    attrs: Attributes,
) -> Any:
    """Puts arrays into the container of the installed version of ArviZ.

    If the first axis of an array is `draw`, an axis `chain` of length 1 is added before it, because
    ArviZ expects an axis `chain`. Independent draws count as one chain.

    Arguments:
        groups: Arrays by group and name. A group without arrays is left out.
        coords: Labels of the entries along an axis, by the name of the axis. Along all other axes,
            entries are numbered from 0.
        attrs: Attributes of the container and of every group, besides the name and the version of
            this library.

    Returns:
        `arviz.InferenceData` under ArviZ 0.23 and `xarray.DataTree` under 1.x. With both versions,
        `result["posterior"]` is a group, `result.to_netcdf(path)` writes a file, and
        `arviz.from_netcdf(path)` reads the file.

    Raises:
        ValueError: If an array has the name of an axis, if the number of its axes differs from the
            number of axis names, or if an axis has several lengths in one group.

    References:
        | ArviZ: a unified library for exploratory analysis of Bayesian models (Kumar et al., 2019)
        | https://doi.org/10.21105/joss.01143

    Example:
        >>> groups = {"posterior": {"z": Labelled(np.zeros((10, 2)), ("draw", "datum"))}}
        >>> build(groups, {"datum": np.array(["a", "b"])}, {"seed": 0})["posterior"]["z"].dims
        ('chain', 'draw', 'datum')
    """
    from .. import __version__  # here, since the root imports this module first

    attrs = {"inference_library": "pyro_vae", "inference_library_version": __version__, **attrs}
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
    """Returns the arrays of one group as an `xarray.Dataset`, with the axis `chain`."""
    chained = {name: _with_chain(variable) for name, variable in variables.items()}
    _check(group, chained)
    lengths = {
        dim: length
        for values, dims in chained.values()
        for dim, length in zip(dims, values.shape, strict=True)
    }
    return import_module("xarray").Dataset(
        {name: (dims, values) for name, (values, dims) in chained.items()},
        coords={dim: coords.get(dim, np.arange(length)) for dim, length in lengths.items()},
        attrs=dict(attrs),
    )


def _with_chain(variable: Labelled) -> Labelled:
    values, dims = variable
    return Labelled(values[None], ("chain", *dims)) if dims[:1] == ("draw",) else variable


def _check(group: str, variables: Mapping[str, Labelled]) -> None:
    """Refuses arrays that have too many or too few axis names, or whose name is that of an axis."""
    axes = {dim for variable in variables.values() for dim in variable.dims}
    for name, (values, dims) in variables.items():
        if values.ndim != len(dims):
            raise ValueError(
                f"'{name}' of the group '{group}' must have {values.ndim} axis names for its shape "
                f"{values.shape}; got {dims}"
            )
        if name in axes:
            raise ValueError(
                f"the site '{name}' in the group '{group}' has the name of an axis (the axes are "
                f"{sorted(axes)}), so xarray would use the site's values as labels of this axis: "
                "rename the site in the model"
            )


def _container(datasets: dict[str, Any], attrs: Attributes) -> Any:
    """Returns an `xarray.DataTree` under ArviZ 1.x, and an `arviz.InferenceData` under 0.23."""
    if arviz_generation() >= 1:
        tree = import_module("xarray").DataTree.from_dict(datasets)
        tree.attrs.update(attrs)
        return tree
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ArviZ 0.23 announces 1.x on import
        arviz = import_module("arviz")
    return arviz.InferenceData(attrs=attrs, **datasets)


_PREDICTIVE_BYTES = 2**28  # size of simulated data, if no number of draws is given
_TRIED = 4  # number of rows with which a program is simulated as a check

_Groups: TypeAlias = dict[str, dict[str, Labelled]]


class _Block(NamedTuple):
    """A block of rows, with their draws `(draws, rows, latents)`, weights, log p(y) and seeds.

    Each row has one seed for its predictive draws and one for its prior draws.
    """

    batch: Batch
    z: Tensor
    weights: Weights
    marginal: LogMarginal
    predictive_keys: list[int]
    prior_keys: list[int]


class _Sizes(NamedTuple):
    """Numbers of predictive and of prior draws per datum.

    `missing` is the reason if no predictive draws can be made, and is empty otherwise.
    """

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

    The result has these groups; `chain` has length 1, since the draws are independent:

    ====================== ======================== ============================================
    group                  arrays                   axes
    ====================== ======================== ============================================
    `posterior`            every latent and every   chain, draw, datum and those of the site
                           deterministic site
    `log_likelihood`       the observed site        chain, draw, datum
    `sample_stats`         `log_weight`             chain, draw, datum
    `diagnostics`          `pareto_k`, `ess`,       datum
                           `reliable`
    `observed_data`        every observed site      datum and those of the site
    `posterior_predictive` every observed site      chain, draw, datum and those of the site
    `prior`                as in `posterior`        chain, draw, datum and those of the site
    `prior_predictive`     every observed site      chain, draw, datum and those of the site
    ====================== ======================== ============================================

    Latents have the constrained values that the program sees. Arrays have the names of their sites,
    with dots in place of slashes. If the only latent site is a vector, its axis is called `latent`.
    If there is one observed site, its axis is called `feature`; several axes are numbered
    (`feature_0`, ...). The axes of other sites are called `<site>_dim`, numbered in the same way.
    With several observed sites, the log likelihood is summed over the sites and called `observed`.
    Sites of `pyro.deterministic` are included if they have a value per datum, but not if discrete
    latents were summed out, because the sites may depend on the unknown values of these latents.

    In `posterior_predictive` and `prior_predictive` each draw is a whole data set, with the size
    and the covariates of the data, as ArviZ's plots expect. `prior` has the latents from which the
    prior predictive data sets were simulated. To simulate a data set, the program is run with
    nothing observed. If data cannot be simulated row by row, these groups are left out, and the
    attribute `left_out` says why. The posterior predictive group is also left out if discrete
    latents were summed out, since there are no draws of these latents. Posterior predictive data
    resemble the data more than draws from the model do, because they are simulated from latents
    that were inferred from the data; :func:`pyro_vae.diagnostics.predictive_check` compares the
    data with both.

    Chain statistics (`r_hat`, ESS by autocorrelation) say nothing about the guide: look at
    `diagnostics`. Do not use leave-one-out on `log_likelihood` either, since z belongs to the same
    datum that would be left out.

    Arguments:
        model: A Pyro program `model(*batch)` with one plate over data.
        guide: A :class:`pyro_vae.Guide`, or a guide program written by hand.
        data: The batch tensor, or a tuple of them.
        num_samples: Draws per datum, at least 2; Pareto k is nan for fewer than 30.
        seed: Seed of the draws; the caller's random stream is left alone.
        names: Labels of the data, one per datum and all different; by default numbers from 0.
        num_predictive_samples: Predictive draws per datum, made from the datum's first draws of z;
            0 for none. The default is the number of draws that fit into 256 MiB.
        num_prior_samples: Prior draws per datum, 0 for none; by default as many as
            `num_predictive_samples`.
        progress: Whether to show a progress bar; by default on terminals and in notebooks.

    Returns:
        `arviz.InferenceData` under ArviZ 0.23 and `xarray.DataTree` under 1.x. Log densities and
        log weights are in nats, in float64. The result and every group have attributes. Among them
        are `seed`, `num_samples`, a note that the draws are the guide's (`draws`), and the share of
        the data that are reliable (`share_reliable`). There are no standard errors; those of
        averages can be computed from `log_weight`. The result's method `to_netcdf(path)` writes a
        file. This needs h5netcdf: `pip install 'pyro-vae[netcdf]'`.

    Raises:
        ValueError: If data, model and guide do not fit together, if there are too few draws, if the
            number of names is not that of the data, or if predictive draws are requested but data
            cannot be simulated from the program.
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
    with conditioned(model, guide, data, seed) as inference:
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
    """Yields draws and weights for some rows at a time, within the estimator's memory budget."""
    batch = inference.batch
    predictive = row_keys(seed, "posterior predictive", *batch).tolist()
    prior = row_keys(seed, "prior predictive", *batch).tolist()
    sampling = estimator.sampling(inference, seed=seed, progress=progress)
    for block, marginal in sampling.judged_blocks():
        part = take_rows(batch, block.rows)
        keys = predictive[block.rows], prior[block.rows]
        yield _Block(part, block.z, block.weights, marginal, *keys)


def _groups(program: Program, block: _Block, sizes: _Sizes) -> _Groups:
    """Returns the arrays of every group, for the rows of one block."""
    latents = drawn_sites(constrained(program, block.z), _latent_word(program))
    return {
        "posterior": latents | drawn_sites(deterministic(program, block.batch, block.z), None),
        "log_likelihood": {
            observed_label(program): labelled(block.weights.log_likelihood, "draw", "datum"),
        },
        "sample_stats": {"log_weight": labelled(block.weights.log_weights, "draw", "datum")},
        "diagnostics": {
            "pareto_k": labelled(block.marginal.pareto_k, "datum"),
            "ess": labelled(block.marginal.ess, "datum"),
            "reliable": labelled(block.marginal.reliable, "datum"),
        },
        "observed_data": observed_arrays(program, block.batch),
        "posterior_predictive": _predictive(program, block, sizes.predictive),
        **_prior(program, block, sizes.prior),
    }


def constrained(program: Program, z: Float[Tensor, "draws rows latents"]) -> dict[str, Tensor]:
    """Returns the constrained values of every latent site, `(draws, rows, *site)`, by name."""
    values, _ = program.constrain(z.flatten(0, 1))
    return {
        site.name: values[site.name].movedim(site.axis, 0).unflatten(0, z.shape[:2])
        for site in program.latent_sites
    }


def drawn_sites(
    values: dict[str, Tensor], word: str | None, lead: tuple[str, ...] = ("draw",)
) -> dict[str, Labelled]:
    """Returns the values of sites, `(*lead, rows, *site)`, with the names of their axes.

    `lead` has the names of the axes that precede the data axis, such as `draw`.
    """
    lead = (*lead, "datum")
    return {
        label(name): labelled(value, *lead, *_site_axes(name, value.dim() - len(lead), word))
        for name, value in values.items()
    }


def observed_arrays(program: Program, batch: Batch) -> dict[str, Labelled]:
    """Returns the observed values of every observed site, with the names of their axes."""
    run, sites = program.run(batch), {}
    for name in program.observed_names:
        value = run[name].value_by_datum(program.plate_dim)
        axes = _site_axes(name, value.dim() - 1, _observed_word(program))
        sites[label(name)] = labelled(value, "datum", *axes)
    return sites


def _predictive(program: Program, block: _Block, draws: int) -> dict[str, Labelled]:
    """Simulates data from each datum's first `draws` draws of z; every datum has its own seed."""
    if draws == 0:
        return {}
    values = _simulated(program, block.batch, block.predictive_keys, block.z[:draws], {})
    observed = {name: values[name] for name in program.observed_names}
    return drawn_sites(observed, _observed_word(program))


def _prior(program: Program, block: _Block, draws: int) -> _Groups:
    """Draws latents and data from the model, given only the covariates."""
    if draws == 0:
        return {}
    axes = data_axes(program, block.batch)
    values = _simulated(program, block.batch, block.prior_keys, draws, axes)
    latents = {site.name: values[site.name] for site in program.latent_sites}
    observed = {name: values[name] for name in program.observed_names}
    others = {name: values[name] for name in axes}
    return {
        "prior": drawn_sites(latents, _latent_word(program)) | drawn_sites(others, None),
        "prior_predictive": drawn_sites(observed, _observed_word(program)),
    }


def _simulated(
    program: Program, batch: Batch, keys: list[int], latents: Tensor | int, axes: Mapping[str, int]
) -> dict[str, Tensor]:
    """Simulates each datum many times, and returns the values of sites by name.

    Arguments:
        program: The program.
        batch: The data, which give shapes and covariates.
        keys: A seed for each datum.
        latents: Latents to simulate from, `(draws, rows, latents)`, or the number of prior draws.
        axes: Names of the deterministic sites to be returned, with the data axis of each.

    Returns:
        Values of all latent and observed sites, and of the sites in `axes`, `(draws, rows, *site)`.
    """
    names = [*(site.name for site in program.latent_sites), *program.observed_names]
    draws = latents if isinstance(latents, int) else len(latents)
    parts = []
    for row, key in enumerate(keys):
        values = {} if isinstance(latents, int) else program.constrain(latents[:, row])[0]
        seeded(key)
        run = program.run_forward(repeat_rows(take_rows(batch, slice(row, row + 1)), draws), values)
        others = {name: run.deterministic[name].movedim(axis, 0) for name, axis in axes.items()}
        parts.append(others | {n: run[n].value_by_datum(program.plate_dim) for n in names})
    stacked: dict[str, Tensor] = combined(parts, torch.stack, 1)
    return stacked


def _sizes(
    program: Program, batch: Batch, num_samples: int, predictive: int | None, prior: int | None
) -> _Sizes:
    """Decides how many data sets to draw: as many as requested, or as many as fit into memory."""
    if predictive is not None and predictive > num_samples:
        raise ValueError(
            f"`num_predictive_samples` must be at most num_samples={num_samples}, because every "
            f"predictive draw uses a draw of z; got {predictive}: pass a larger `num_samples`"
        )
    affordable = max(1, min(num_samples, _PREDICTIVE_BYTES // batch[0].nbytes))
    why_no_prior = why_no_predictive = _why_not_simulated(program, batch)
    summed = list(program.structure.enumerated)
    if summed and not why_no_prior:
        why_no_predictive = f"the discrete sites {summed} are summed out, so they are not drawn"
    return _Sizes(
        _num_draws(predictive, affordable, "predictive", why_no_predictive),
        _num_draws(prior, affordable if predictive is None else predictive, "prior", why_no_prior),
        why_no_predictive,
    )


def _num_draws(requested: int | None, default: int, kind: str, why_not: str) -> int:
    """Returns how many draws of a kind to make.

    `why_not` is the reason if draws of this kind are impossible, and is empty otherwise.
    """
    if requested is None:
        return 0 if why_not else default
    if requested < 0:
        raise ValueError(f"`num_{kind}_samples` must be at least 0; got {requested}")
    if requested and why_not:
        raise ValueError(
            f"num_{kind}_samples={requested} is not possible: {why_not}. Omit the argument, or "
            "pass 0"
        )
    return requested


def _why_not_simulated(program: Program, batch: Batch) -> str:
    """Says why data cannot be simulated from the program; returns an empty text if they can."""
    try:
        simulate(program, take_rows(batch, slice(_TRIED)), seed=0)
    except ValueError as error:
        return str(error)
    return ""


def datum_labels(names: Sequence[str] | None, num_data: int) -> NDArray[Any]:
    """Returns labels for the axis `datum`: the given names or, without names, numbers from 0.

    Raises:
        ValueError: If two names are equal, or their number is not that of the data.
    """
    if names is None:
        return np.arange(num_data)
    if len(names) != num_data:
        raise ValueError(
            f"`names` must be {count_of(num_data, 'name')}, one per datum; got {len(names)}"
        )
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise ValueError(
            f"`names` must all be different, so that data can be selected by name; got {name!r} "
            f"{count} times: number them, as in [f'{{name}}-{{n}}' for n, name in enumerate(names)]"
        )
    return np.array(names)


def label(name: str) -> str:
    """Replaces the slashes in a site's name by dots: xarray and NetCDF read slashes as a path."""
    return name.replace("/", ".")


def observed_label(program: Program) -> str:
    """Returns the label of the log likelihood: that of the only observed site, or `observed`."""
    names = program.observed_names
    return label(names[0]) if len(names) == 1 else "observed"


def _latent_word(program: Program) -> str | None:
    """Returns "latent", the name of a latent site's axis, if the only latent site is a vector."""
    sites = program.latent_sites
    return "latent" if len(sites) == 1 and sites[0].is_plain_vector else None


def _observed_word(program: Program) -> str | None:
    """Returns "feature", the name of an observed site's axis, if there is only one such site."""
    return "feature" if len(program.observed_names) == 1 else None


def _site_axes(name: str, count: int, word: str | None) -> tuple[str, ...]:
    """Returns names for `count` axes of a site, derived from `word` or from the site's name."""
    stem = word if word not in (None, name) else f"{label(name)}_dim"
    return (f"{stem}",) if count == 1 else tuple(f"{stem}_{axis}" for axis in range(count))


def labelled(values: Tensor, *dims: str) -> Labelled:
    """Converts a tensor to a NumPy array with axis names.

    NumPy has no bfloat16, so a tensor of this dtype becomes an array of float32.
    """
    plain = values.detach().cpu()
    return Labelled((plain.float() if plain.dtype is torch.bfloat16 else plain).numpy(), dims)


def _joined(blocks: list[_Groups]) -> _Groups:
    """Joins blocks of data along the axis `datum`, which every array has."""
    joined: _Groups = {}
    for group, variables in blocks[0].items():
        joined[group] = {}
        for name, (_, dims) in variables.items():
            parts = [block[group][name].values for block in blocks]
            joined[group][name] = Labelled(np.concatenate(parts, dims.index("datum")), dims)
    return joined


def _attributes(
    groups: _Groups, num_samples: int, seed: int, program: Program, left_out: str
) -> Attributes:
    return {
        "num_samples": num_samples,
        "seed": seed,
        "given": program.conditions,
        "left_out": left_out,
        "draws": (
            "independent draws from the guide q(z | y) of every datum, not from the exact "
            "posterior p(z | y). If diagnostics mark a datum as reliable, its draws represent its "
            "exact posterior when weighted by exp(log_weight) from sample_stats"
        ),
        "share_reliable": float(groups["diagnostics"]["reliable"].values.mean()),
    }
