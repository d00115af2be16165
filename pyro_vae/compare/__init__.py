"""Guides side by side: the same model and start, the same held-out data and estimator."""

from .comparison import Comparison as Comparison
from .comparison import GuideResult as GuideResult
from .comparison import Row as Row
from .running import Candidate as Candidate
from .running import compare as compare

__all__ = ["Candidate", "Comparison", "GuideResult", "Row", "compare"]
