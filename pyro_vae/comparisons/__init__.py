"""Guides side by side: the same model and start, the same held-out data and estimator."""

from .comparison import Comparison as Comparison
from .differences import Difference as Difference
from .results import GuideResult as GuideResult
from .results import Row as Row
from .running import Candidate as Candidate
from .running import compare as compare

__all__ = ["Candidate", "Comparison", "Difference", "GuideResult", "Row", "compare"]
