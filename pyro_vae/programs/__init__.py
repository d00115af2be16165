"""Evaluates Pyro programs as unscaled log densities per datum, given a flat vector of latents."""

from .._arguments import check_public
from .hooks import ModelHooks as ModelHooks
from .missing import PartlyObserved as PartlyObserved
from .modes import as_batch as as_batch
from .modes import evaluating as evaluating
from .plates import minibatch as minibatch
from .program import Density as Density
from .program import LogDensities as LogDensities
from .program import Program as Program
from .program import log_joint as log_joint
from .simulation import Prior as Prior
from .simulation import simulate as simulate
from .sites import GlobalSite as GlobalSite
from .sites import LatentSite as LatentSite
from .traces import Run as Run
from .traces import TracedSite as TracedSite

check_public(globals())
