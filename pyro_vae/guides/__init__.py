"""A guide is a family; where the family's parameters come from is a separate object, the map."""

from .families import DiagonalNormal as DiagonalNormal
from .families import Family as Family
from .guide import Guide as Guide
from .local import FitRows as FitRows
from .local import RowFit as RowFit
from .local import fit_parameters as fit_parameters
from .maps import Encoder as Encoder
from .maps import GlobalParameters as GlobalParameters
from .maps import InferenceMap as InferenceMap
from .maps import LocalParameters as LocalParameters
from .posteriors import FamilyPosterior as FamilyPosterior
from .posteriors import Posterior as Posterior
from .posteriors import ProgramPosterior as ProgramPosterior
from .posteriors import given_globals as given_globals
from .posteriors import posterior_of as posterior_of
from .posteriors import program_of as program_of

__all__ = [
    "DiagonalNormal",
    "Encoder",
    "Family",
    "FamilyPosterior",
    "FitRows",
    "GlobalParameters",
    "Guide",
    "InferenceMap",
    "LocalParameters",
    "Posterior",
    "ProgramPosterior",
    "RowFit",
    "fit_parameters",
    "given_globals",
    "posterior_of",
    "program_of",
]
