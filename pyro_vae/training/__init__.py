"""Stochastic variational inference: `fit` trains a model and a guide on mini-batches."""

from .fitting import fit as fit
from .optimizers import adam as adam
from .optimizers import adam_with as adam_with
from .optimizers import constant as constant
from .optimizers import hold_then_fall as hold_then_fall
from .products import BFloat16Products as BFloat16Products
from .products import TF32Products as TF32Products
from .results import Fit as Fit
from .results import History as History

__all__ = [
    "BFloat16Products",
    "Fit",
    "History",
    "TF32Products",
    "adam",
    "adam_with",
    "constant",
    "fit",
    "hold_then_fall",
]
