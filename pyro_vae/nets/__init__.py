"""Ready-made networks: encoders that return features, and decoders that return parameters.

Encoders are trunks: an attribute `num_features` tells :class:`pyro_vae.Encoder` to add a linear
layer of the size that the guide's family needs. So an encoder can be used with every family.
Decoders return `outputs` numbers per feature, as many as the likelihood needs.
"""

from .._arguments import check_public
from .convolutional import ConvDecoder as ConvDecoder
from .convolutional import ConvEncoder as ConvEncoder
from .dense import Activation as Activation
from .dense import MLPDecoder as MLPDecoder
from .dense import MLPEncoder as MLPEncoder
from .dense import ResidualBlock as ResidualBlock
from .dense import ResidualDecoder as ResidualDecoder
from .dense import ResidualEncoder as ResidualEncoder
from .dense import activations as activations
from .inputs import ColumnInputs as ColumnInputs
from .inputs import Concatenated as Concatenated
from .inputs import MissingIndicator as MissingIndicator
from .recurrent import GRUEncoder as GRUEncoder

check_public(globals())
