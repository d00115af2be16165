"""Default choices for a data set: likelihood, sizes, networks and inference maps.

The command line, :class:`pyro_vae.sklearn.VAE` and the Python functions share these choices.
Everything here can be written out by hand in a few lines with `pv.models`, `pv.nets` and
`pv.Guide`.

| data set | choice |
| --- | --- |
| only zeros and ones, or images in [0, 1] | `Bernoulli` |
| other arrays; tables of real-valued columns only | `Gaussian`, one learned sigma per column |
| real-valued columns of mixed tables | `Gaussian`, a learned sigma, at least sd(column) / 100 |
| numbers above 0, very skewed | `LogNormal`, one learned sigma per column |
| counts; two values; categories | `NegativeBinomial`; `Bernoulli`; `Categorical` or `Ordinal` |
| D columns | D / 2 latents, from 1 to 10; one hidden layer of 4 D units, from 32 to 256 |
| a wide table of many rows | D / 2 latents, but at most one per ten rows, and at most 32 |
| several kinds of columns, or nan | an encoder that sees indicators, logarithms and missingness |
| a table of at most 512 columns | training starts at factor analysis; q is full-rank |
"""

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import likelihoods, models, nets
from ._arguments import check_public
from .data import Binary, Categories, Columns, Count, Dataset, Kind, Ordered, Positive, Real
from .evidence import ImportanceSampling, Widened
from .formatting import first_few
from .guides import (
    ClosestNormal,
    Encoder,
    Family,
    FullRankNormal,
    GlobalParameters,
    Guide,
    InferenceMap,
    LocalParameters,
    ProductOfExperts,
)
from .likelihoods import Likelihood, Mixed, start_from
from .linear_start import MOST_COLUMNS, start_experts, start_model, start_noise
from .randomness import forked

GUIDES = ("amortized", "per-datum", "global")
"""Names of the maps that :func:`inference_map` makes."""

_MOST_LATENTS = 10  # unless training starts at factor analysis, which makes use of more latents
_ROWS_PER_LATENT = 10  # training rows per latent, if there are more than ten latents
_WIDER, _UP_TO = 0.2, 10  # proposals are wider by this share, for up to so many latents
_FULL_RANK = 32  # latents at most: a full-rank Gaussian then has 560 parameters per row
_OF_NUMBERS = (
    likelihoods.Gaussian,
    likelihoods.NegativeBinomial,
    likelihoods.Poisson,
    likelihoods.StudentT,
    likelihoods.ZeroInflated,
)


@dataclass(frozen=True)
class Architecture:
    """Sizes of a fully connected VAE; arguments that are None are chosen from the data.

    Arguments:
        latent_dim: Number of entries of z.
        hidden: Widths of the encoder's hidden layers; the decoder has the same widths, reversed.
        seed: Seed of the weights.
        likelihood: The likelihood, p(y | z); every model gets a copy.
        linear_start: Whether a model of a table of at most 512 columns starts at factor analysis
            (`pyro_vae.linear_start`). With at most 32 latents, q is then full-rank, so that it can
            equal the posterior of factor analysis. Without a linear start, the model begins with
            random weights, and q is mean-field. On a table of a few hundred rows, training takes
            too few steps to find even the linear solution; there, the linear start raises the
            held-out log density by several tenths of a nat per datum.
    """

    latent_dim: int | None = None
    hidden: Sequence[int] | None = None
    seed: int = 0
    likelihood: Likelihood | None = None
    linear_start: bool = True

    def of(self, dataset: Dataset) -> tuple[int, tuple[int, ...]]:
        """Returns the number of entries of z, and the widths of hidden layers, for a data set.

        Example:
            >>> from pyro_vae import data
            >>> Architecture().of(data.squares(4, side=2, num_test=2))
            (2, (32,))
            >>> import torch
            >>> Architecture().of(data.from_frame(torch.randn(200, 40)))[0]
            16
        """
        width, most = dataset.train[0].numel(), _MOST_LATENTS
        if _starts_linear(dataset, self):
            most = max(most, min(_FULL_RANK, len(dataset.train) // _ROWS_PER_LATENT))
        latent_dim = self.latent_dim or max(1, min(most, width // 2))
        default = (max(32, min(256, 4 * width)),)
        return latent_dim, default if self.hidden is None else tuple(self.hidden)


def default_likelihood(dataset: Dataset) -> Likelihood:
    """Chooses the likelihood of a data set's rows by the table at the top of this module."""
    y, columns = dataset.train, dataset.columns
    if columns is not None and not (_are(columns, Real) or _are(columns, Binary)):
        return mixed(columns)
    known = y[~y.isnan()]
    binary = bool(((known == 0) | (known == 1)).all())
    inside = bool(((known >= 0) & (known <= 1)).all())
    if columns is not None and _are(columns, Real):  # standardized numbers are not binary
        binary &= bool((columns.scale == 1).all() and (columns.center == 0).all())
    if binary or (inside and dataset.image_shape is not None):
        return likelihoods.Bernoulli()
    return likelihoods.Gaussian(likelihoods.LearnedSigma(y.shape[1:]))


def _are(columns: Columns, kind: type[Kind]) -> bool:
    return all(type(found) is kind for found in columns.kinds.values())


def mixed(columns: Columns, chosen: Mapping[str, Likelihood] | None = None) -> Mixed:
    """Chooses a likelihood for every column of a table by the column's kind.

    Arguments:
        columns: The columns of a table.
        chosen: Likelihoods of your own for some columns; the keys are the columns' names.

    Raises:
        ValueError: If `chosen` names a column that the table does not have.

    Example:
        >>> columns = Columns.of({"height": [1.6, 1.8], "sex": ["f", "m"]})
        >>> [type(part).__name__ for part in mixed(columns)]
        ['Gaussian', 'Bernoulli']
    """
    chosen = chosen or {}
    unknown = [name for name in chosen if name not in columns.names]
    if unknown:
        raise ValueError(
            f"`chosen` must name columns of the table; got {unknown}, but the columns are "
            f"{list(columns.names)}: correct these names"
        )
    return Mixed(
        {name: chosen.get(name) or _likelihood_of(kind) for name, kind in columns.kinds.items()}
    )


def _likelihood_of(kind: Kind) -> Likelihood:
    if isinstance(kind, Binary):
        return likelihoods.Bernoulli()
    if isinstance(kind, Ordered) and len(kind.categories) > 2:
        return likelihoods.Ordinal(len(kind.categories))
    if isinstance(kind, Categories):
        return likelihoods.Categorical(len(kind.categories))
    if isinstance(kind, Count):
        return likelihoods.NegativeBinomial(likelihoods.LearnedDispersion())
    if isinstance(kind, Positive):
        return likelihoods.LogNormal(likelihoods.LearnedSigma())
    return likelihoods.Gaussian(likelihoods.LearnedSigma())


def vae(dataset: Dataset, architecture: Architecture = Architecture()) -> models.VAE:
    """Makes a VAE for a data set; for a table, its decoder starts at the means of the columns.

    Example:
        >>> from pyro_vae import data
        >>> vae(data.squares(4, side=2, num_test=2)).sample(3).shape
        torch.Size([3, 4])
    """
    own = architecture.likelihood  # copied, because training changes it
    likelihood = default_likelihood(dataset) if own is None else copy.deepcopy(own)
    latent_dim, hidden = architecture.of(dataset)
    columns = dataset.columns
    if own is not None and columns is not None:
        _check(likelihood, columns, dataset.train)
    linear = _starts_linear(dataset, architecture)
    with forked(architecture.seed, "weights.decoder"):
        decoder = nets.MLPDecoder(
            latent_dim,
            likelihood.output_shape(tuple(dataset.train.shape[1:])),
            hidden[::-1],
            skip=linear,
        )
    decoder, likelihood = decoder.to(dataset.train.dtype), likelihood.to(dataset.train.dtype)
    if columns is not None:
        start_from(decoder, likelihood.start(dataset.train))
        if own is None:
            start_noise(likelihood, columns, dataset.train)
    model = models.VAE(decoder, likelihood, latent_dim)
    if columns is not None and linear:
        with forked(architecture.seed, "weights.linear start"):
            start_model(model, columns, dataset.train)
    return model


def _check(likelihood: Likelihood, columns: Columns, y: Tensor) -> None:
    """Refuses a likelihood that does not fit the training rows of a table.

    Raises:
        ValueError: If an entry is outside the support, if codes of categories are taken for
            numbers, or if the likelihoods of columns are in another order than the columns.
    """
    coded = [name for name, kind in columns.kinds.items() if type(kind) is Categories]
    if coded and isinstance(likelihood, _OF_NUMBERS):
        raise ValueError(
            f"{type(likelihood).__name__} is a likelihood for numbers, but the table has "
            f"categories without an order ({first_few(map(repr, coded))}): leave out "
            "`likelihood`, so that each column gets its own, or pass pv.likelihoods.Mixed with one "
            "likelihood per column"
        )
    places = tuple(map(str, range(len(columns.names))))
    by_place = isinstance(likelihood, Mixed) and likelihood.names == places
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # training gives the warnings
        likelihood.check(y, None if by_place else columns.names)


def _starts_linear(dataset: Dataset, architecture: Architecture) -> bool:
    """Whether the data set is a table whose model starts at factor analysis."""
    columns = dataset.columns
    is_narrow = columns is not None and len(columns.kinds) <= MOST_COLUMNS
    return architecture.linear_start and is_narrow


def inference_map(
    name: str,
    dataset: Dataset,
    architecture: Architecture = Architecture(),
    model: models.VAE | None = None,
) -> InferenceMap:
    """Makes the map that a name, such as "amortized", stands for.

    Arguments:
        name: One of :data:`GUIDES`.
        dataset: The data.
        architecture: Sizes of the encoder, and the seed of its weights.
        model: The model from :func:`vae`, or None. If the model has a linear start (see
            :class:`Architecture`), all maps but "global" start at the posteriors of the model
            linearized at z = 0 (`pyro_vae.linear_start`).

    Raises:
        ValueError: If the name is none of :data:`GUIDES`.
    """
    with forked(architecture.seed, "weights.encoder"):
        return _map(name, dataset, architecture, model)


def _map(
    name: str, dataset: Dataset, architecture: Architecture, model: models.VAE | None
) -> InferenceMap:
    if name == "global":
        return GlobalParameters()
    if name not in GUIDES:
        raise ValueError(f"the name of a guide must be one of {', '.join(GUIDES)}; got '{name}'")
    amortized, columns = name == "amortized", dataset.columns
    if model is None or columns is None or not _starts_linear(dataset, architecture):
        hidden = architecture.of(dataset)[1]
        net = encoder(dataset, hidden).to(dataset.train.dtype) if amortized else None
        return LocalParameters(len(dataset.train)) if net is None else Encoder(net)
    experts = ProductOfExperts(
        column_encoder(columns, architecture.of(dataset)[1]), model.latent_dim
    ).to(dataset.train.dtype)
    start_experts(experts, model, dataset.train)
    if amortized:
        return experts
    table = LocalParameters(len(dataset.train))
    with torch.no_grad():
        table.start_at(*experts.natural(dataset.train))
    return table


def guide(
    model: models.VAE,
    dataset: Dataset,
    architecture: Architecture = Architecture(),
    *,
    name: str = GUIDES[0],
    family: Family | None = None,
) -> Guide:
    """Makes a guide for a model of a data set; one seed determines all its initial values.

    Arguments:
        model: The model.
        dataset: The data set that `model` is a model of.
        architecture: Sizes of the encoder, and the seed of its weights.
        name: One of :data:`GUIDES`, as for :func:`inference_map`.
        family: Family of q(z | y); by default a full-rank Gaussian after a linear start with at
            most 32 latents, and a mean-field Gaussian otherwise.

    Example:
        >>> from pyro_vae import data
        >>> table = data.from_frame({"age": [31.5, 47.0, None, 22.0], "sex": ["f", "m", "m", "f"]})
        >>> model = vae(table)
        >>> guide(model, table).mean(table.train).shape
        torch.Size([3, 1])
    """
    linear = _starts_linear(dataset, architecture)
    if family is None and linear and model.latent_dim <= _FULL_RANK:
        family = FullRankNormal()
    start = model if family is None or isinstance(family, ClosestNormal) else None
    with forked(architecture.seed, "weights.encoder"):  # the guide may draw weights, too
        return Guide(model, _map(name, dataset, architecture, start), family)


def batch_size(num_data: int) -> int:
    """Number of rows per training step: a tenth of all rows, but at least 32 and at most 256.

    Example:
        >>> batch_size(150), batch_size(1_000), batch_size(60_000)
        (32, 100, 256)
    """
    return max(32, min(256, num_data // 10))


def encoder(dataset: Dataset, hidden: tuple[int, ...]) -> nn.Module:
    """Makes a fully connected encoder for the rows of a data set."""
    y, columns = dataset.train, dataset.columns
    if columns is not None:
        plain = _are(columns, Real) or _are(columns, Binary)
        if not plain or bool(y.isnan().any()) or bool(dataset.test.isnan().any()):
            return column_encoder(columns, hidden)
    return nets.MLPEncoder(y[0].numel(), hidden)


def column_encoder(columns: Columns, hidden: tuple[int, ...]) -> nets.ColumnInputs:
    """Makes a fully connected encoder for rows of a table, which may have missing entries.

    Arguments:
        columns: The columns of the table.
        hidden: Widths of the encoder's hidden layers.
    """
    kinds = list(columns.kinds.values())
    categories = [len(kind.categories) if isinstance(kind, Categories) else 0 for kind in kinds]
    counts, positive = (
        [place for place, kind in enumerate(kinds) if isinstance(kind, logarithmic)]
        for logarithmic in (Count, Positive)
    )
    net = nets.MLPEncoder(nets.ColumnInputs.width(categories), hidden)
    return nets.ColumnInputs(net, categories, counts, positive)


def wide_sampling(num_latents: int, num_samples: int = 1000) -> ImportanceSampling:
    r"""Returns importance sampling from a q(z | y) that is wider than the trained q(z | y).

    A q trained by its ELBO is usually too narrow. On a table of 400 rows, 68 log densities could
    not be trusted at 1000 draws, but only 4 when q was a fifth wider. Widening an exact q reduces
    the effective sample size, and more so with more latents. So with more than 10 latents, q is
    widened less, and about half of the draws remain effective (:class:`pyro_vae.Widened`).

    Arguments:
        num_latents: Number of entries of z.
        num_samples: Draws per row.

    Example:
        >>> wide_sampling(5).proposal
        Widened(scale=1.2)
    """
    wider = _WIDER * min(1.0, (_UP_TO / num_latents) ** 0.5)
    return ImportanceSampling(num_samples, proposal=Widened(1 + wider))


check_public(globals())
