"""Comparison of guides that start from the same model, with the same data and estimator."""

from .._arguments import check_public
from .columns import Row as Row
from .comparison import Comparison as Comparison
from .results import Difference as Difference
from .results import GuideResult as GuideResult
from .running import Candidate as Candidate
from .running import compare as compare

check_public(globals())
