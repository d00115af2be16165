"""A guide is a family; where the family's parameters come from is a separate object, the map."""

from .._arguments import check_public
from .closed_form import CoordinateAscent as CoordinateAscent
from .closed_form import ExactPosterior as ExactPosterior
from .closed_form import Quadratic as Quadratic
from .closed_form import quadratic_of as quadratic_of
from .draws import Draws as Draws
from .draws import draw as draw
from .entry import draw_globals as draw_globals
from .entry import for_new_rows as for_new_rows
from .entry import given_globals as given_globals
from .entry import has_only_rows as has_only_rows
from .entry import has_parameters as has_parameters
from .entry import is_tied_to_rows as is_tied_to_rows
from .entry import maps_of as maps_of
from .entry import model_for as model_for
from .entry import model_of as model_of
from .entry import posterior_of as posterior_of
from .entry import prepare_training as prepare_training
from .entry import program_of as program_of
from .entry import refined_guide as refined_guide
from .entry import require_new_rows as require_new_rows
from .entry import row_buffers as row_buffers
from .entry import samples_discrete as samples_discrete
from .entry import shared_only as shared_only
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
from .guide import is_made_of_map as is_made_of_map
from .maps import Encoder as Encoder
from .maps import GlobalParameters as GlobalParameters
from .maps import InferenceMap as InferenceMap
from .maps import LocalParameters as LocalParameters
from .optimization import FitRows as FitRows
from .posteriors import FamilyPosterior as FamilyPosterior
from .posteriors import Posterior as Posterior
from .posteriors import ProgramPosterior as ProgramPosterior
from .refined import Refined as Refined
from .row_fits import RowFit as RowFit
from .row_fits import finite_rows as finite_rows
from .row_fits import fit_parameters as fit_parameters
from .row_fits import refine_parameters as refine_parameters
from .shared import GlobalDraw as GlobalDraw

check_public(globals())
