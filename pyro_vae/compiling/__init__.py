"""Compiled Pyro programs: recorded, compiled if that saves time, checked against the original."""

from .capturing import Captured as Captured
from .capturing import NotCaptured as NotCaptured
from .capturing import capture as capture
from .densities import CompiledDensity as CompiledDensity
from .densities import DrawDensities as DrawDensities
from .graphs import Graphs as Graphs
from .loops import STEPS as STEPS
from .loops import Taken as Taken
from .loops import Values as Values
from .steps import CompiledSteps as CompiledSteps
