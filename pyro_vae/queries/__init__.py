"""Uses of a fitted model: embeddings, imputation, densities, outliers, dependence.

Every Monte Carlo result states how far it can be trusted. No function of this package trains a
model.
"""

from .._arguments import check_public
from .densities import ConditionalDensity as ConditionalDensity
from .densities import conditional as conditional
from .densities import conditional_density as conditional_density
from .densities import marginal as marginal
from .embedding import encode as encode
from .embedding import reconstruct as reconstruct
from .embedding import reconstruction_draws as reconstruction_draws
from .explaining import Explanation as Explanation
from .explaining import explain as explain
from .imputation import Imputation as Imputation
from .imputation import impute as impute
from .measures import Correlation as Correlation
from .measures import Dependence as Dependence
from .measures import MutualInformation as MutualInformation
from .measures import RankCorrelation as RankCorrelation
from .measures import correlation as correlation
from .measures import dependence as dependence
from .similar_rows import Similarity as Similarity
from .similar_rows import similarity as similarity
from .tails import Outliers as Outliers
from .tails import Tail as Tail
from .tails import outliers as outliers
from .traversal import Linear as Linear
from .traversal import Spherical as Spherical
from .traversal import Traversal as Traversal
from .traversal import interpolate as interpolate
from .traversal import traverse as traverse

check_public(globals())
