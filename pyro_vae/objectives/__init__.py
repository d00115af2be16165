"""Objectives: bounds per datum that plug into `pv.fit` and into `pyro.infer.SVI`."""

from .analytic import AnalyticELBO as AnalyticELBO
from .base import Objective as Objective
from .base import Progress as Progress
from .bounds import IWAE as IWAE
from .bounds import STL as STL
from .bounds import BetaELBO as BetaELBO
from .bounds import DReG as DReG
from .bounds import Renyi as Renyi
from .compiled import CompiledELBO as CompiledELBO
from .schedules import Cyclic as Cyclic
from .schedules import LinearWarmup as LinearWarmup
from .schedules import Schedule as Schedule

__all__ = [
    "IWAE",
    "STL",
    "AnalyticELBO",
    "BetaELBO",
    "CompiledELBO",
    "Cyclic",
    "DReG",
    "LinearWarmup",
    "Objective",
    "Progress",
    "Renyi",
    "Schedule",
]
