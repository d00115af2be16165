"""Stochastic variational inference: `fit` trains a model and a guide on mini-batches."""

from .fitting import fit as fit
from .optimizers import adam as adam
from .optimizers import adam_with as adam_with
from .optimizers import constant as constant
from .optimizers import hold_then_fall as hold_then_fall
from .results import Fit as Fit
from .results import History as History

__all__ = ["Fit", "History", "adam", "adam_with", "constant", "fit", "hold_then_fall"]
