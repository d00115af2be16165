"""Guides, each built from a family of distributions and a map that supplies the parameters."""

from .._arguments import check_public
from .closed_form import CoordinateAscent as CoordinateAscent
from .closed_form import ExactPosterior as ExactPosterior
from .closed_form import Quadratic as Quadratic
from .draws import Draws as Draws
from .experts import ProductOfExperts as ProductOfExperts
from .families import ClosestNormal as ClosestNormal
from .families import DiagonalNormal as DiagonalNormal
from .families import Family as Family
from .families import FullRankNormal as FullRankNormal
from .families import LowRankNormal as LowRankNormal
from .families import MomentMatching as MomentMatching
from .families import TrainableFamily as TrainableFamily
from .flows import AffineAutoregressive as AffineAutoregressive
from .flows import AffineCoupling as AffineCoupling
from .flows import ElementwiseSpline as ElementwiseSpline
from .flows import FlowTransform as FlowTransform
from .flows import NormalizingFlow as NormalizingFlow
from .flows import SplineAutoregressive as SplineAutoregressive
from .guide import Guide as Guide
from .maps import Encoder as Encoder
from .maps import GlobalParameters as GlobalParameters
from .maps import InferenceMap as InferenceMap
from .maps import LocalParameters as LocalParameters
from .optimization import FitRows as FitRows
from .posteriors import Conditional as Conditional
from .posteriors import FamilyPosterior as FamilyPosterior
from .posteriors import Posterior as Posterior
from .posteriors import ProgramPosterior as ProgramPosterior
from .refined import Refined as Refined
from .row_fits import RowFit as RowFit
from .shared import GlobalDraw as GlobalDraw

check_public(globals())
