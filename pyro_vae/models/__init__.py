"""Generative models: Pyro programs that can also generate data."""

from .._arguments import check_public
from .base import Generative as Generative
from .conditional import ConditionalVAE as ConditionalVAE
from .conditional import NormalGiven as NormalGiven
from .expectation_maximization import EMFit as EMFit
from .linear_gaussian import Diagonal as Diagonal
from .linear_gaussian import Isotropic as Isotropic
from .linear_gaussian import LinearGaussian as LinearGaussian
from .priors import FlowPrior as FlowPrior
from .priors import MixtureOfNormals as MixtureOfNormals
from .priors import Prior as Prior
from .priors import StandardNormal as StandardNormal
from .priors import VampPrior as VampPrior
from .sequential import SequentialVAE as SequentialVAE
from .sequential import padded as padded
from .vae import VAE as VAE
from .vae import HierarchicalVAE as HierarchicalVAE
from .vae import MixtureVAE as MixtureVAE

check_public(globals())
