"""Diagnoses of guides and of the latent space: what z says about the data, and how well."""

from .aggregate import PriorMatch as PriorMatch
from .aggregate import Surgery as Surgery
from .aggregate import marginal_divergences as marginal_divergences
from .aggregate import prior_match as prior_match
from .aggregate import surgery as surgery
from .calibration import Calibration as Calibration
from .calibration import holm as holm
from .calibration import log_joint as log_joint
from .calibration import log_likelihood as log_likelihood
from .calibration import rank_band as rank_band
from .calibration import rank_p_value as rank_p_value
from .calibration import simulation_based_calibration as simulation_based_calibration
from .collapse import Collapse as Collapse
from .collapse import Use as Use
from .collapse import active_units as active_units
from .collapse import collapse as collapse
from .gradients import GradientNoise as GradientNoise
from .gradients import ParameterNoise as ParameterNoise
from .gradients import gradient_noise as gradient_noise
from .gradients import score_function as score_function
from .information import MutualInformation as MutualInformation
from .information import log_aggregate as log_aggregate
from .information import mutual_information as mutual_information

__all__ = [
    "Calibration",
    "Collapse",
    "GradientNoise",
    "MutualInformation",
    "ParameterNoise",
    "PriorMatch",
    "Surgery",
    "Use",
    "active_units",
    "collapse",
    "gradient_noise",
    "holm",
    "log_aggregate",
    "log_joint",
    "log_likelihood",
    "marginal_divergences",
    "mutual_information",
    "prior_match",
    "rank_band",
    "rank_p_value",
    "score_function",
    "simulation_based_calibration",
    "surgery",
]
