"""Variational autoencoders as Pyro programs, with guides that can be swapped and compared.

A guide is a family of distributions; a separate object, the map, supplies their parameters::

    import pyro_vae as pv

    model = pv.models.VAE(decoder, pv.likelihoods.Bernoulli(), latent_dim=8)
    guide = pv.Guide(model, pv.Encoder(net), pv.DiagonalNormal())
    pv.fit(model, guide, y)                      # model: any Pyro program

    pv.log_marginal_likelihood(model, guide, y_test, pv.Tightest())
    pv.inference_gap(model, guide, y_test)       # what the guide loses, and why
    pv.compare(model, {"amortized": pv.Encoder(net),
                       "global": pv.GlobalParameters()}, y, y_test)
    pv.TableVAE.of(table)                        # a data frame in, answers out

Print a result to see its numbers, with errors, and a verdict. `dir(pv)` lists all names.

    maps        Encoder, LocalParameters, GlobalParameters, Refined,
                ExactPosterior, CoordinateAscent
    families    DiagonalNormal, FullRankNormal, LowRankNormal, NormalizingFlow
    objectives  AnalyticELBO, IWAE, DReG, STL, Renyi, BetaELBO
    estimators  ClosedForm, Quadrature, ImportanceSampling, TemperedSMC,
                AnnealedImportanceSampling, ParticleFilter, Tightest
    modules     data, models, likelihoods, nets, evidence, gaps, diagnostics,
                criticism, queries, plots, training, stats, sklearn, ...
"""

from importlib import import_module
from typing import TYPE_CHECKING

from . import progress as progress  # before Pyro, whose import of tqdm may warn

# isort: split
from . import (
    comparisons,
    data,
    diagnostics,
    distributed,
    evidence,
    gaps,
    guides,
    inference_data,
    likelihoods,
    models,
    nets,
    objectives,
    programs,
    registry,
    results,
    stats,
    storage,
    training,
)
from ._types import Estimate
from .comparisons import compare
from .evidence import (
    AnnealedImportanceSampling,
    ClosedForm,
    Defensive,
    ErrorTarget,
    Fitted,
    ImportanceSampling,
    ParticleFilter,
    Quadrature,
    StartFromGuide,
    StartFromPrior,
    TemperedSMC,
    Tightest,
    Widened,
    audit,
    bidirectional,
    cross_check,
    elbo,
    evaluate,
    log_marginal_likelihood,
    log_weights,
)
from .exporting import ONNX, TorchExport, export
from .gaps import inference_gap
from .guides import (
    AffineAutoregressive,
    AffineCoupling,
    CoordinateAscent,
    DiagonalNormal,
    ElementwiseSpline,
    Encoder,
    ExactPosterior,
    FitRows,
    FullRankNormal,
    GlobalParameters,
    Guide,
    InferenceMap,
    LocalParameters,
    LowRankNormal,
    NormalizingFlow,
    Refined,
    SplineAutoregressive,
)
from .inference_data import marginal_log_likelihood, posterior_draws, to_inference_data
from .objectives import IWAE, STL, AnalyticELBO, BetaELBO, Cyclic, DReG, LinearWarmup, Renyi
from .programs import PartlyObserved, log_joint, minibatch
from .storage import load, save
from .training import BFloat16Products, TF32Products, fit

if TYPE_CHECKING:
    from . import criticism, defaults, plots, queries, tables
    from .queries import (
        conditional,
        conditional_density,
        dependence,
        encode,
        impute,
        interpolate,
        marginal,
        outliers,
        reconstruct,
        traverse,
    )
    from .tables import TableVAE

__version__ = "0.1.0"

__all__ = [
    "IWAE",
    "ONNX",
    "STL",
    "AffineAutoregressive",
    "AffineCoupling",
    "AnalyticELBO",
    "AnnealedImportanceSampling",
    "BFloat16Products",
    "BetaELBO",
    "ClosedForm",
    "CoordinateAscent",
    "Cyclic",
    "DReG",
    "Defensive",
    "DiagonalNormal",
    "ElementwiseSpline",
    "Encoder",
    "ErrorTarget",
    "Estimate",
    "ExactPosterior",
    "FitRows",
    "Fitted",
    "FullRankNormal",
    "GlobalParameters",
    "Guide",
    "ImportanceSampling",
    "InferenceMap",
    "LinearWarmup",
    "LocalParameters",
    "LowRankNormal",
    "NormalizingFlow",
    "ParticleFilter",
    "PartlyObserved",
    "Quadrature",
    "Refined",
    "Renyi",
    "SplineAutoregressive",
    "StartFromGuide",
    "StartFromPrior",
    "TF32Products",
    "TableVAE",
    "TemperedSMC",
    "Tightest",
    "TorchExport",
    "Widened",
    "audit",
    "bidirectional",
    "compare",
    "comparisons",
    "conditional",
    "conditional_density",
    "criticism",
    "cross_check",
    "data",
    "defaults",
    "dependence",
    "diagnostics",
    "distributed",
    "elbo",
    "encode",
    "evaluate",
    "evidence",
    "export",
    "fit",
    "gaps",
    "guides",
    "impute",
    "inference_data",
    "inference_gap",
    "interpolate",
    "likelihoods",
    "load",
    "log_joint",
    "log_marginal_likelihood",
    "log_weights",
    "marginal",
    "marginal_log_likelihood",
    "minibatch",
    "models",
    "nets",
    "objectives",
    "outliers",
    "plots",
    "posterior_draws",
    "programs",
    "queries",
    "reconstruct",
    "registry",
    "results",
    "save",
    "stats",
    "storage",
    "tables",
    "to_inference_data",
    "training",
    "traverse",
]

# Imported on first use: a training script needs no figures and no reports.
_MODULES = ("criticism", "defaults", "plots", "queries", "sklearn", "tables")


def __getattr__(name: str) -> object:
    """Imports a part of the library when it is first used; `sklearn` needs scikit-learn."""
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    if name in __all__:  # of the names that are not imported above, the others are queries
        home = "tables" if name == "TableVAE" else "queries"
        return getattr(import_module(f".{home}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Lists the public names; `sklearn` is not in `__all__`, since scikit-learn may be missing."""
    return sorted([*__all__, "sklearn", "__version__"])
