r"""Marginal likelihoods and bounds, per datum and with errors.

With draws :math:`z_k \sim q(z \mid y_n)` the importance weights are
:math:`w_{kn} = p(y_n, z_k) / q(z_k \mid y_n)`. The mean of :math:`\log w_{kn}` over particles
estimates the ELBO, and the logarithm of the mean of :math:`w_{kn}` estimates
:math:`\log p(y_n)`. This package computes the weights; :mod:`pyro_vae.stats` averages them.

Every datum has a separate random stream, which is derived from the seed and the content of the
datum's row. So an estimate depends only on the datum, the model, the guide and the seed. It does
not depend on the order of the rows, the other data, the batch size or the memory budget.
"""

from .._arguments import check_public
from .annealing import Adaptive as Adaptive
from .annealing import AnnealedImportanceSampling as AnnealedImportanceSampling
from .annealing import Linear as Linear
from .annealing import Sigmoid as Sigmoid
from .annealing import StartFromGuide as StartFromGuide
from .annealing import StartFromPrior as StartFromPrior
from .auditing import Audit as Audit
from .auditing import audit as audit
from .estimates import Estimator as Estimator
from .estimates import elbo as elbo
from .estimates import evaluate as evaluate
from .estimates import log_marginal_likelihood as log_marginal_likelihood
from .estimates import log_weights as log_weights
from .exact import ClosedForm as ClosedForm
from .filtering import ParticleFilter as ParticleFilter
from .fitted import Fitted as Fitted
from .importance import JACKKNIFED as JACKKNIFED
from .importance import PARETO_SMOOTHED as PARETO_SMOOTHED
from .importance import PLAIN as PLAIN
from .importance import Average as Average
from .importance import ErrorTarget as ErrorTarget
from .importance import ImportanceSampling as ImportanceSampling
from .proposals import Defensive as Defensive
from .proposals import FromGuide as FromGuide
from .proposals import Proposal as Proposal
from .proposals import Widened as Widened
from .quadrature import Quadrature as Quadrature
from .results import Block as Block
from .results import Bound as Bound
from .results import Evaluation as Evaluation
from .results import EvidenceLowerBound as EvidenceLowerBound
from .results import LogMarginal as LogMarginal
from .results import Weights as Weights
from .tempering import Population as Population
from .tempering import TemperedSMC as TemperedSMC
from .tightest import RUNGS as RUNGS
from .tightest import LadderMarginal as LadderMarginal
from .tightest import Rung as Rung
from .tightest import Source as Source
from .tightest import Tightest as Tightest
from .validation import Comparison as Comparison
from .validation import CrossCheck as CrossCheck
from .validation import Sandwich as Sandwich
from .validation import bidirectional as bidirectional
from .validation import cross_check as cross_check
from .weights import Inference as Inference

check_public(globals())
