r"""What inference costs, per datum: the gap between log p(y) and a guide's ELBO, and its parts.

.. math:: \underbrace{\log p(y_n) - \mathrm{ELBO}_n(q)}_{\text{inference gap}}
    = \underbrace{\log p(y_n) - \mathrm{ELBO}_n(q_n^\star)}_{\text{approximation gap}}
    + \underbrace{\mathrm{ELBO}_n(q_n^\star) - \mathrm{ELBO}_n(q)}_{\text{amortization gap}}

with :math:`q_n^\star` the member of the guide's family that is best for the datum. The first part
is what the family cannot do, whatever its parameters; the second is what the map from data to
parameters loses.
"""

from .decomposition import inference_gap as inference_gap
from .results import WORST_SHARE as WORST_SHARE
from .results import FamilyGap as FamilyGap
from .results import Generalization as Generalization
from .results import InferenceGap as InferenceGap
from .results import Parts as Parts
from .results import generalization as generalization

__all__ = [
    "WORST_SHARE", "FamilyGap", "Generalization", "InferenceGap", "Parts", "generalization",
    "inference_gap",
]  # fmt: skip
