"""A Pyro program seen as a density: per datum, unscaled, over one flat vector of latents."""

from .capture import Captured as Captured
from .capture import NotCaptured as NotCaptured
from .capture import capture as capture
from .capture import capturing as capturing
from .graphs import Graphs as Graphs
from .minibatches import Minibatch as Minibatch
from .minibatches import current_minibatch as current_minibatch
from .minibatches import minibatch as minibatch
from .missing import PartlyObserved as PartlyObserved
from .missing import has_missing as has_missing
from .missing import partly_observed as partly_observed
from .modes import NamedModule as NamedModule
from .modes import as_batch as as_batch
from .modes import device_of as device_of
from .modes import evaluating as evaluating
from .modes import forked_seed as forked_seed
from .modes import local_parameters as local_parameters
from .modes import modules_of as modules_of
from .plates import whole_plate as whole_plate
from .products import BFloat16Products as BFloat16Products
from .products import Products as Products
from .products import TF32Products as TF32Products
from .program import LogDensities as LogDensities
from .program import Program as Program
from .program import log_joint as log_joint
from .program import repeat_rows as repeat_rows
from .running import bytes_per_row as bytes_per_row
from .running import despite_nan as despite_nan
from .simulation import Free as Free
from .simulation import simulate as simulate
from .simulation import written as written
from .sites import GlobalSite as GlobalSite
from .sites import LatentSite as LatentSite
from .sites import per_datum_log_probs as per_datum_log_probs
from .sloped import sloped as sloped

__all__ = [
    "BFloat16Products",
    "Captured",
    "Free",
    "GlobalSite",
    "Graphs",
    "LatentSite",
    "LogDensities",
    "Minibatch",
    "NamedModule",
    "NotCaptured",
    "PartlyObserved",
    "Products",
    "Program",
    "TF32Products",
    "as_batch",
    "bytes_per_row",
    "capture",
    "capturing",
    "current_minibatch",
    "despite_nan",
    "device_of",
    "evaluating",
    "forked_seed",
    "has_missing",
    "local_parameters",
    "log_joint",
    "minibatch",
    "modules_of",
    "partly_observed",
    "per_datum_log_probs",
    "repeat_rows",
    "simulate",
    "sloped",
    "whole_plate",
    "written",
]
