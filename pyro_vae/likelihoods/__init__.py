"""Likelihoods, which turn a decoder's output into p(y | z)."""

from .._arguments import check_public
from .base import Likelihood as Likelihood
from .base import start_from as start_from
from .codes import Categorical as Categorical
from .codes import Ordinal as Ordinal
from .counts import DecodedDispersion as DecodedDispersion
from .counts import LearnedDispersion as LearnedDispersion
from .counts import NegativeBinomial as NegativeBinomial
from .counts import Poisson as Poisson
from .counts import ZeroInflated as ZeroInflated
from .missingness import SelfMasked as SelfMasked
from .missingness import SelfMasking as SelfMasking
from .mixed import Mixed as Mixed
from .real import DecodedSigma as DecodedSigma
from .real import FixedSigma as FixedSigma
from .real import Gaussian as Gaussian
from .real import LearnedDegrees as LearnedDegrees
from .real import LearnedSigma as LearnedSigma
from .real import LogNormal as LogNormal
from .real import StudentT as StudentT
from .unit import Bernoulli as Bernoulli
from .unit import Beta as Beta
from .unit import ContinuousBernoulli as ContinuousBernoulli

check_public(globals())
