"""Models and guides for a data set from a few choices, for the command line and for beginners.

Everything here can be written out by hand in a few lines with `pv.models`, `pv.nets` and
`pv.Guide`; these are the choices that are made when nobody makes them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from . import likelihoods, models, nets
from .data import Dataset
from .guides import Encoder, GlobalParameters, InferenceMap, LocalParameters
from .likelihoods import Likelihood
from .programs import forked_seed

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

    The Gaussian has one learned sigma a column, in units of the data as they are stored.
    """
    y = dataset.train
    binary = bool(((y == 0) | (y == 1)).all())
    inside = bool(((y >= 0) & (y <= 1)).all())
    if binary or (inside and dataset.image_shape is not None):
        return likelihoods.Bernoulli()
    return likelihoods.Gaussian(likelihoods.LearnedSigma(y.shape[1:]))


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
            tuple(dataset.train.shape[1:]),
            tuple(reversed(architecture.hidden)),
            outputs=likelihood.outputs,
        )
    return models.VAE(decoder.to(dataset.train.dtype), likelihood, architecture.latents)


def inference_map(name: str, dataset: Dataset, architecture: Architecture) -> InferenceMap:
    """The map that a name on the command line stands for.

    Raises:
        ValueError: If the name is none of :data:`GUIDES`.
    """
    if name == "amortized":
        with forked_seed(architecture.seed):
            net = nets.MLPEncoder(dataset.train[0].numel(), tuple(architecture.hidden))
        return Encoder(net.to(dataset.train.dtype))
    if name == "per-datum":
        return LocalParameters(len(dataset.train))
    if name == "global":
        return GlobalParameters()
    raise ValueError(f"'{name}' is no guide; there are {', '.join(GUIDES)}")
