"""Models and guides for a data set from a few choices, for the command line and for beginners.

Everything here can be written out by hand in a few lines with `pv.models`, `pv.nets` and
`pv.Guide`; these are the choices that are made when nobody makes them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from . import likelihoods, models, nets
from .data import Binary, Categories, Columns, Count, Dataset, Kind, Ordered
from .guides import Encoder, GlobalParameters, InferenceMap, LocalParameters
from .likelihoods import Likelihood, Mixed, start_from
from .nets.inputs import ColumnInputs
from .randomness import forked_seed

GUIDES = ("amortized", "per-datum", "global")
"""Names of the maps that :func:`inference_map` makes."""


@dataclass(frozen=True)
class Architecture:
    """Sizes of a fully connected VAE.

    Arguments:
        latents: Entries of z.
        hidden: Widths of the encoder's hidden layers; the decoder's are the same, reversed.
        seed: Seed of the weights.
    """

    latents: int = 2
    hidden: Sequence[int] = (128,)
    seed: int = 0
    likelihood: Likelihood | None = field(default=None)


def default_likelihood(dataset: Dataset) -> Likelihood:
    """Bernoulli for zeros and ones, or for pictures in [0, 1]; else a Gaussian.

    The Gaussian has one learned sigma a column, in units of the data as they are stored. Columns
    of several kinds get a likelihood each: see :func:`mixed`.
    """
    y = dataset.train
    if dataset.columns is not None:
        return mixed(dataset.columns)
    binary = bool(((y == 0) | (y == 1)).all())
    inside = bool(((y >= 0) & (y <= 1)).all())
    if binary or (inside and dataset.image_shape is not None):
        return likelihoods.Bernoulli()
    return likelihoods.Gaussian(likelihoods.LearnedSigma(y.shape[1:]))


def mixed(columns: Columns, chosen: Mapping[str, Likelihood] | None = None) -> Mixed:
    """A likelihood for every column of a table, by what the column is.

    Real columns are Gaussian with a learned sigma, of at least a hundredth of their spread; counts
    are negative binomial with a learned dispersion; columns of two values are Bernoulli, others
    categorical, and ordinal where the categories have an order.

    Arguments:
        columns: The columns of a table.
        chosen: Other likelihoods for some of them, by name.

    Raises:
        ValueError: If `chosen` names a column that is not there.

    Example:
        >>> columns = Columns.of({"height": [1.6, 1.8], "sex": ["f", "m"]})
        >>> [type(part).__name__ for part in mixed(columns)]
        ['Gaussian', 'Bernoulli']
    """
    chosen = chosen or {}
    unknown = [name for name in chosen if name not in columns.names]
    if unknown:
        raise ValueError(f"no column is called {unknown}; there are {list(columns.names)}")
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
    return likelihoods.Gaussian(likelihoods.LearnedSigma())


def vae(dataset: Dataset, architecture: Architecture) -> models.VAE:
    """A VAE for the rows of a data set.

    Example:
        >>> from pyro_vae import data
        >>> vae(data.squares(4, side=2, num_test=2), Architecture(latents=1)).sample(3).shape
        torch.Size([3, 4])
    """
    likelihood = architecture.likelihood or default_likelihood(dataset)
    with forked_seed(architecture.seed):
        decoder = nets.MLPDecoder(
            architecture.latents,
            likelihood.output_shape(tuple(dataset.train.shape[1:])),
            tuple(reversed(architecture.hidden)),
        )
    decoder, likelihood = decoder.to(dataset.train.dtype), likelihood.to(dataset.train.dtype)
    if dataset.columns is not None:
        start_from(decoder, likelihood.start(dataset.train))
    return models.VAE(decoder, likelihood, architecture.latents)


def inference_map(name: str, dataset: Dataset, architecture: Architecture) -> InferenceMap:
    """The map that a name on the command line stands for.

    Raises:
        ValueError: If the name is none of :data:`GUIDES`.
    """
    if name == "amortized":
        with forked_seed(architecture.seed):
            return Encoder(_encoder(dataset, tuple(architecture.hidden)).to(dataset.train.dtype))
    if name == "per-datum":
        return LocalParameters(len(dataset.train))
    if name == "global":
        return GlobalParameters()
    raise ValueError(f"'{name}' is no guide; there are {', '.join(GUIDES)}")


def _encoder(dataset: Dataset, hidden: tuple[int, ...]) -> nn.Module:
    if dataset.columns is None:
        return nets.MLPEncoder(dataset.train[0].numel(), hidden)
    return column_encoder(dataset.columns, hidden)


def column_encoder(columns: Columns, hidden: tuple[int, ...]) -> ColumnInputs:
    """A fully connected encoder for the rows of a table, which may have holes.

    Arguments:
        columns: The columns of the table.
        hidden: Widths of its hidden layers.
    """
    kinds = list(columns.kinds.values())
    categories = [len(kind.categories) if isinstance(kind, Categories) else 0 for kind in kinds]
    counts = [place for place, kind in enumerate(kinds) if isinstance(kind, Count)]
    return ColumnInputs(nets.MLPEncoder(ColumnInputs.width(categories), hidden), categories, counts)
