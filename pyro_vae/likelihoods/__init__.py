"""Likelihoods: from a decoder's output to p(y | z)."""

from .base import Likelihood as Likelihood
from .binary import Bernoulli as Bernoulli
from .gaussian import DecodedSigma as DecodedSigma
from .gaussian import FixedSigma as FixedSigma
from .gaussian import Gaussian as Gaussian
from .gaussian import LearnedSigma as LearnedSigma

__all__ = [
    "Bernoulli",
    "DecodedSigma",
    "FixedSigma",
    "Gaussian",
    "LearnedSigma",
    "Likelihood",
]
