"""A Pyro program seen as a density: per datum, unscaled, over one flat vector of latents."""

from .capture import Captured as Captured
from .capture import NotCaptured as NotCaptured
from .capture import capture as capture
from .capture import capturing as capturing
from .graphs import Graphs as Graphs
from .hooks import ModelHooks as ModelHooks
from .hooks import hooks_of as hooks_of
from .missing import PartlyObserved as PartlyObserved
from .missing import has_missing as has_missing
from .modes import NamedModule as NamedModule
from .modes import as_batch as as_batch
from .modes import device_of as device_of
from .modes import evaluating as evaluating
from .modes import local_parameters as local_parameters
from .modes import modules_of as modules_of
from .plates import Minibatch as Minibatch
from .plates import current_minibatch as current_minibatch
from .plates import minibatch as minibatch
from .plates import whole_plate as whole_plate
from .products import BFloat16Products as BFloat16Products
from .products import Products as Products
from .products import TF32Products as TF32Products
from .program import LogDensities as LogDensities
from .program import Program as Program
from .program import log_joint as log_joint
from .running import bytes_per_row as bytes_per_row
from .simulation import Prior as Prior
from .simulation import simulate as simulate
from .simulation import with_observed as with_observed
from .sites import GlobalSite as GlobalSite
from .sites import LatentSite as LatentSite
from .sloped import sloped as sloped
from .structure import partly_observed as partly_observed
from .traces import Run as Run
from .traces import TracedSite as TracedSite
from .traces import repeat_rows as repeat_rows
from .traces import retry_unvalidated as retry_unvalidated
from .traces import run as run
from .traces import total_log_prob as total_log_prob

__all__ = [
    "BFloat16Products",
    "Captured",
    "GlobalSite",
    "Graphs",
    "LatentSite",
    "LogDensities",
    "Minibatch",
    "ModelHooks",
    "NamedModule",
    "NotCaptured",
    "PartlyObserved",
    "Prior",
    "Products",
    "Program",
    "Run",
    "TF32Products",
    "TracedSite",
    "as_batch",
    "bytes_per_row",
    "capture",
    "capturing",
    "current_minibatch",
    "device_of",
    "evaluating",
    "has_missing",
    "hooks_of",
    "local_parameters",
    "log_joint",
    "minibatch",
    "modules_of",
    "partly_observed",
    "repeat_rows",
    "retry_unvalidated",
    "run",
    "simulate",
    "sloped",
    "total_log_prob",
    "whole_plate",
    "with_observed",
]
