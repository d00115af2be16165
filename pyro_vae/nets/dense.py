"""Fully connected networks."""

import math
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from ..registry import registered
from .layers import Activation, check_width, dense_layers


@registered()
class MLPEncoder(nn.Module):
    """Fully connected trunk, from the flattened datum to `num_features` features.

    Arguments:
        features: Numbers a datum (784 for 28 x 28 images).
        hidden: Width of each hidden layer.
        activation: Class of the activation.

    Raises:
        ValueError: If there is no hidden layer, or, when called, if a datum has another size.

    Example:
        >>> import torch
        >>> MLPEncoder(784, hidden=(200, 100))(torch.zeros(5, 28, 28)).shape
        torch.Size([5, 100])
    """

    def __init__(
        self, features: int, hidden: Sequence[int] = (200,), activation: Activation = nn.ELU
    ) -> None:
        super().__init__()
        if not hidden:
            raise ValueError("an MLPEncoder needs at least one hidden layer, got none")
        self.features, self.hidden, self.activation = features, tuple(hidden), activation
        self.num_features = self.hidden[-1]
        self.layers = dense_layers((features, *self.hidden), activation)

    def forward(self, y: Float[Tensor, "batch *datum"]) -> Float[Tensor, "batch features"]:
        """Features of each datum."""
        flat = y.flatten(start_dim=1)
        check_width("MLPEncoder", flat, self.features, tuple(y.shape))
        features: Tensor = self.layers(flat)
        return features


@registered()
class MLPDecoder(nn.Module):
    """Fully connected decoder, from the latents to `outputs` numbers a feature.

    Arguments:
        latents: Entries of z.
        shape: Shape of a datum, or its number of features.
        hidden: Width of each hidden layer.
        outputs: Numbers a feature: 1 for most likelihoods, 2 where sigma depends on z. They are
            stacked along the first axis of the datum.
        activation: Class of the activation.

    Example:
        >>> import torch
        >>> MLPDecoder(2, shape=(28, 28), hidden=(200,))(torch.zeros(5, 2)).shape
        torch.Size([5, 28, 28])
    """

    def __init__(
        self,
        latents: int,
        shape: int | Sequence[int],
        hidden: Sequence[int] = (200,),
        *,
        outputs: int = 1,
        activation: Activation = nn.ELU,
    ) -> None:
        super().__init__()
        self.latents, self.hidden, self.outputs = latents, tuple(hidden), outputs
        self.shape = (shape,) if isinstance(shape, int) else tuple(shape)
        self.activation = activation
        sizes = (latents, *self.hidden)
        last = nn.Linear(sizes[-1], outputs * math.prod(self.shape))
        self.layers = nn.Sequential(*dense_layers(sizes, activation), last)

    def forward(self, z: Float[Tensor, "batch latents"]) -> Float[Tensor, "batch *output"]:
        """What the likelihood needs, for each z."""
        check_width("MLPDecoder", z, self.latents, tuple(z.shape))
        output: Tensor = self.layers(z)
        return output.view(len(z), self.outputs * self.shape[0], *self.shape[1:])
