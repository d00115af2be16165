"""Objectives: bounds per datum, for `pv.fit` and for `pyro.infer.SVI`."""

from .._arguments import check_public
from .base import Cyclic as Cyclic
from .base import LinearWarmup as LinearWarmup
from .base import Objective as Objective
from .base import Progress as Progress
from .base import Schedule as Schedule
from .bounds import IWAE as IWAE
from .bounds import STL as STL
from .bounds import AnalyticELBO as AnalyticELBO
from .bounds import BetaELBO as BetaELBO
from .bounds import DReG as DReG
from .bounds import Renyi as Renyi
from .compiled import CompiledELBO as CompiledELBO

check_public(globals())
