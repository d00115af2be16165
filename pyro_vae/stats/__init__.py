r"""Statistics of log weights: averages and errors of averages, and whether to rely on them.

With :math:`z_k \sim q(z \mid y)` and weights :math:`w_k = p(y, z_k) / q(z_k \mid y)`, the mean
weight :math:`\hat p = \frac{1}{K} \sum_k w_k` is an unbiased estimate of :math:`p(y)`. With
:math:`c^2 = \operatorname{Var} w / (\mathbb{E} w)^2`, expanding the logarithm gives

.. math:: \log \hat p - \log p(y) \approx \Big(\frac{\hat p}{p(y)} - 1\Big)
    - \frac{1}{2} \Big(\frac{\hat p}{p(y)} - 1\Big)^2 ,

so :math:`\log \hat p` has variance :math:`c^2 / K`, and on average it is too low by :math:`c^2 /
2K`. The effective sample size of the draws gives an estimate of :math:`c^2`, since :math:`K /
\text{ESS} \approx 1 + c^2`.

All of this needs a finite :math:`c^2`. The spread of a finite set of draws cannot show whether
:math:`c^2` is finite, but the tail of the weights can. If :math:`P(w > t)` falls as
:math:`t^{-1/k}`, the variance is finite only for :math:`k < 1/2`, and for :math:`k > 1` even the
mean is infinite. So look at :func:`pareto_k` first.

Every function takes the particles on the first axis, and leaves the caller's tensor unchanged.
Results are in nats and in float64 for any input, because float32 is too coarse: the sum over 60,000
data at -100 nats is -6e6, where float32 resolves only half a nat. A nan propagates, unless a
function states that it refuses nan.
"""

from .._arguments import check_public
from .averages import concentration as concentration
from .averages import difference as difference
from .averages import effective_sample_size as effective_sample_size
from .averages import jackknife as jackknife
from .averages import log_marginal as log_marginal
from .averages import log_mean_exp as log_mean_exp
from .averages import mean_estimate as mean_estimate
from .averages import mean_over_data as mean_over_data
from .averages import population_mean as population_mean
from .averages import total as total
from .chains import bulk_ess as bulk_ess
from .chains import rank_r_hat as rank_r_hat
from .checks import rounding as rounding
from .convergence import Gain as Gain
from .convergence import remaining_gain as remaining_gain
from .excess import MAX_ERROR as MAX_ERROR
from .excess import MAX_SKEWNESS as MAX_SKEWNESS
from .excess import TailError as TailError
from .excess import mean_covers as mean_covers
from .excess import tail_error as tail_error
from .p_values import Control as Control
from .p_values import FalseAlarms as FalseAlarms
from .p_values import FalseDiscoveries as FalseDiscoveries
from .p_values import energy_test as energy_test
from .p_values import holm as holm
from .p_values import tail_probability as tail_probability
from .ranks import Band as Band
from .ranks import rank_band as rank_band
from .ranks import rank_p_value as rank_p_value
from .tails import MAX_PARETO_K as MAX_PARETO_K
from .tails import MIN_ESS as MIN_ESS
from .tails import MIN_TAIL_PARTICLES as MIN_TAIL_PARTICLES
from .tails import pareto_k as pareto_k
from .tails import reliable_pareto_k as reliable_pareto_k
from .tails import smoothed as smoothed
from .tails import smoothed_log_mean as smoothed_log_mean
from .tails import too_few_effective as too_few_effective

check_public(globals())
