r"""Marginal likelihoods and bounds, per datum and with errors.

With draws :math:`z_k \sim q(z \mid y_n)` the importance weights are
:math:`w_{kn} = p(y_n, z_k) / q(z_k \mid y_n)`. The mean of :math:`\log w_{kn}` over particles
estimates the ELBO, and the logarithm of the mean of :math:`w_{kn}` estimates
:math:`\log p(y_n)`, which is what :mod:`pyro_vae.stats` does. Here the weights are made.

Every datum draws from a stream of its own, seeded by the seed and the content of its row. So an
estimate depends on the datum, the programs and the seed alone: not on the order of the rows, the
other data, the batch, or how the work was cut to fit into memory.
"""

from .estimates import Estimator as Estimator
from .estimates import elbo as elbo
from .estimates import evaluate as evaluate
from .estimates import log_marginal_likelihood as log_marginal_likelihood
from .estimates import log_weights as log_weights
from .estimates import posterior_means as posterior_means
from .importance import ImportanceSampling as ImportanceSampling
from .importance import log_marginal_of as log_marginal_of
from .results import Block as Block
from .results import Bound as Bound
from .results import Evaluation as Evaluation
from .results import EvidenceLowerBound as EvidenceLowerBound
from .results import LogMarginal as LogMarginal
from .results import Weights as Weights
from .weights import check_data as check_data
from .weights import prepared as prepared
