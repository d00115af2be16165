"""Variational autoencoders as Pyro programs, with guides that can be swapped and compared."""

from importlib import import_module
from typing import TYPE_CHECKING

from . import data as data
from . import diagnostics as diagnostics
from . import distributed as distributed
from . import gaps as gaps
from . import likelihoods as likelihoods
from . import models as models
from . import nets as nets
from . import objectives as objectives
from ._types import Estimate as Estimate
from .compare import compare as compare
from .evidence import AnnealedImportanceSampling as AnnealedImportanceSampling
from .evidence import ClosedForm as ClosedForm
from .evidence import Defensive as Defensive
from .evidence import Fitted as Fitted
from .evidence import ImportanceSampling as ImportanceSampling
from .evidence import Quadrature as Quadrature
from .evidence import StartFromGuide as StartFromGuide
from .evidence import StartFromPrior as StartFromPrior
from .evidence import Tightest as Tightest
from .evidence import Until as Until
from .evidence import Widened as Widened
from .evidence import bidirectional as bidirectional
from .evidence import cross_check as cross_check
from .evidence import elbo as elbo
from .evidence import evaluate as evaluate
from .evidence import log_marginal_likelihood as log_marginal_likelihood
from .evidence import log_weights as log_weights
from .gaps import inference_gap as inference_gap
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
from .inference_data import marginal_log_likelihood as marginal_log_likelihood
from .inference_data import to_inference_data as to_inference_data
from .objectives import IWAE as IWAE
from .objectives import STL as STL
from .objectives import AnalyticELBO as AnalyticELBO
from .objectives import BetaELBO as BetaELBO
from .objectives import Cyclic as Cyclic
from .objectives import DReG as DReG
from .objectives import LinearWarmup as LinearWarmup
from .objectives import Renyi as Renyi
from .programs import BFloat16Products as BFloat16Products
from .programs import PartlyObserved as PartlyObserved
from .programs import TF32Products as TF32Products
from .programs import log_joint as log_joint
from .programs import minibatch as minibatch
from .storage import load as load
from .storage import save as save
from .training import fit as fit

if TYPE_CHECKING:
    from . import criticism as criticism
    from . import defaults as defaults
    from . import plots as plots
    from . import queries as queries
    from .queries import conditional as conditional
    from .queries import conditional_density as conditional_density
    from .queries import dependence as dependence  # type: ignore[no-redef]  # also a module there
    from .queries import encode as encode
    from .queries import impute as impute
    from .queries import interpolate as interpolate
    from .queries import marginal as marginal
    from .queries import outliers as outliers  # type: ignore[no-redef]  # also a module there
    from .queries import reconstruct as reconstruct
    from .queries import traverse as traverse

__version__ = "0.1.0"

# Imported when they are first asked for: what draws or reports is no part of a training script.
_MODULES = ("criticism", "defaults", "plots", "queries", "sklearn")
_QUERIES = (
    *("conditional", "conditional_density", "dependence", "encode", "impute"),
    *("interpolate", "marginal", "outliers", "reconstruct", "traverse"),
)


def __getattr__(name: str) -> object:
    """Imports a part of the library where it is asked for; `sklearn` needs scikit-learn."""
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    if name in _QUERIES:
        return getattr(import_module(".queries", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES, *_QUERIES})
