"""Ready-made networks: encoders that end in features, decoders that end in data.

Encoders are trunks: their attribute `num_features` tells :class:`pyro_vae.Encoder` to put a
linear layer of the size the family needs on top, so one encoder serves every family. Decoders
give `outputs` numbers a feature, as many as the likelihood asks for.
"""

from .columns import ColumnInputs as ColumnInputs
from .convolutional import ConvDecoder as ConvDecoder
from .convolutional import ConvEncoder as ConvEncoder
from .dense import MLPDecoder as MLPDecoder
from .dense import MLPEncoder as MLPEncoder
from .inputs import Concatenated as Concatenated
from .inputs import MissingIndicator as MissingIndicator
from .layers import Activation as Activation
from .layers import activations as activations
from .recurrent import GRUEncoder as GRUEncoder
from .residual import ResidualBlock as ResidualBlock
from .residual import ResidualDecoder as ResidualDecoder
from .residual import ResidualEncoder as ResidualEncoder

__all__ = [
    "Activation",
    "ColumnInputs",
    "Concatenated",
    "ConvDecoder",
    "ConvEncoder",
    "GRUEncoder",
    "MLPDecoder",
    "MLPEncoder",
    "MissingIndicator",
    "ResidualBlock",
    "ResidualDecoder",
    "ResidualEncoder",
    "activations",
]
