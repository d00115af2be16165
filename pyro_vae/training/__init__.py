"""Stochastic variational inference: `fit` trains a model and a guide on mini-batches."""

from .._arguments import check_public
from .callbacks import Callback as Callback
from .callbacks import EarlyStopping as EarlyStopping
from .callbacks import LivePlot as LivePlot
from .callbacks import MLflow as MLflow
from .callbacks import Printing as Printing
from .callbacks import StopWhenConverged as StopWhenConverged
from .callbacks import TensorBoard as TensorBoard
from .callbacks import WandB as WandB
from .checkpoints import Checkpoint as Checkpoint
from .fitting import fit as fit
from .optimizers import adam as adam
from .optimizers import adam_with as adam_with
from .optimizers import clipped as clipped
from .optimizers import constant as constant
from .optimizers import hold_then_fall as hold_then_fall
from .products import BFloat16Products as BFloat16Products
from .products import TF32Products as TF32Products
from .results import Fit as Fit
from .results import History as History

check_public(globals())
