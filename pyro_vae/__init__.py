"""Variational autoencoders as Pyro programs, with guides that can be swapped and compared."""

from . import data as data
from . import diagnostics as diagnostics
from . import likelihoods as likelihoods
from . import models as models
from . import nets as nets
from . import plots as plots
from .compare import compare as compare
from .evidence import ImportanceSampling as ImportanceSampling
from .evidence import elbo as elbo
from .evidence import evaluate as evaluate
from .evidence import log_marginal_likelihood as log_marginal_likelihood
from .evidence import log_weights as log_weights
from .guides import AffineAutoregressive as AffineAutoregressive
from .guides import AffineCoupling as AffineCoupling
from .guides import CoordinateAscent as CoordinateAscent
from .guides import DiagonalNormal as DiagonalNormal
from .guides import ElementwiseSpline as ElementwiseSpline
from .guides import Encoder as Encoder
from .guides import ExactPosterior as ExactPosterior
from .guides import FitRows as FitRows
from .guides import FullRankNormal as FullRankNormal
from .guides import GlobalParameters as GlobalParameters
from .guides import Guide as Guide
from .guides import InferenceMap as InferenceMap
from .guides import LocalParameters as LocalParameters
from .guides import LowRankNormal as LowRankNormal
from .guides import NormalizingFlow as NormalizingFlow
from .guides import Refined as Refined
from .guides import SplineAutoregressive as SplineAutoregressive
from .inference_data import to_inference_data as to_inference_data
from .programs import log_joint as log_joint
from .programs import minibatch as minibatch
from .storage import load as load
from .storage import save as save
from .training import fit as fit

__version__ = "0.1.0"
