"""Diagnostics of guides and of the latent space."""

from .._arguments import check_public
from .aggregate import PriorMatch as PriorMatch
from .aggregate import Surgery as Surgery
from .aggregate import prior_match as prior_match
from .aggregate import surgery as surgery
from .calibration import Calibration as Calibration
from .calibration import log_joint as log_joint
from .calibration import log_likelihood as log_likelihood
from .calibration import simulation_based_calibration as simulation_based_calibration
from .columns import LeaveOneOut as LeaveOneOut
from .columns import leave_one_out as leave_one_out
from .distribution_shift import OutOfDistribution as OutOfDistribution
from .distribution_shift import out_of_distribution as out_of_distribution
from .gradients import GradientNoise as GradientNoise
from .gradients import ParameterNoise as ParameterNoise
from .gradients import gradient_noise as gradient_noise
from .gradients import score_function as score_function
from .information import MutualInformation as MutualInformation
from .information import log_aggregate as log_aggregate
from .information import mutual_information as mutual_information
from .local import PValues as PValues
from .local import TrustedDraws as TrustedDraws
from .local import two_sample_test as two_sample_test
from .posterior_collapse import Collapse as Collapse
from .posterior_collapse import Use as Use
from .posterior_collapse import active_units as active_units
from .posterior_collapse import collapse as collapse
from .posterior_collapse import prior_variance as prior_variance
from .posterior_sbc import PosteriorCalibration as PosteriorCalibration
from .posterior_sbc import posterior_calibration as posterior_calibration
from .predictive import Latents as Latents
from .predictive import PredictiveCheck as PredictiveCheck
from .predictive import default_statistics as default_statistics
from .predictive import predictive_check as predictive_check
from .rates import Beaten as Beaten
from .rates import Curve as Curve
from .rates import RateDistortion as RateDistortion
from .rates import TradeOff as TradeOff
from .rates import Violation as Violation
from .rates import rate_distortion as rate_distortion

check_public(globals())
