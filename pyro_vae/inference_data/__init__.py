"""A guide's draws, and diagnostics of their weights, for ArviZ to summarize, plot and store."""

from .._arguments import check_public
from .draws import to_inference_data as to_inference_data
from .marginal import marginal_log_likelihood as marginal_log_likelihood
from .trusted import MAX_RHAT as MAX_RHAT
from .trusted import Chains as Chains
from .trusted import PosteriorDraws as PosteriorDraws
from .trusted import posterior_draws as posterior_draws

check_public(globals())
