"""Fully connected networks, plain and residual."""

import itertools
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..formatting import count_of
from ..registry import registered
from .scaling import InputScale, OutputScale

Activation = type[nn.Module]
"""A class of torch activations, such as `torch.nn.ELU`; the network makes its own instances."""


def activations() -> dict[str, Activation]:
    """Returns the classes of activations that a saved network can have, keyed by their names."""
    names = ("ELU", "GELU", "LeakyReLU", "ReLU", "SiLU", "Sigmoid", "Softplus", "Tanh")
    return {name: getattr(torch.nn, name) for name in names}


def dense_layers(sizes: Sequence[int], activation: Activation) -> nn.Sequential:
    """Returns linear layers of the given sizes, each followed by the activation."""
    layers = [
        layer
        for fan_in, fan_out in itertools.pairwise(sizes)
        for layer in (nn.Linear(fan_in, fan_out), activation())
    ]
    return nn.Sequential(*layers)


class _WithInput(nn.Sequential):
    """A sequence of layers that appends its input to its output."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns the output and the input, concatenated in this order."""
        return torch.cat([super().forward(x), x], dim=-1)


def flat_rows(name: str, y: Tensor, expected: int) -> Tensor:
    """Flattens each datum into a row; refuses rows that do not have `expected` numbers."""
    flat = y.flatten(start_dim=1) if y.dim() > 1 else y[:, None]
    check_width(name, flat, expected, tuple(y.shape))
    return flat


def check_width(name: str, flat: Tensor, expected: int, shape: tuple[int, ...]) -> None:
    """Refuses rows that do not have `expected` numbers."""
    if flat.shape[-1] != expected:
        wanted, found = (count_of(number, "number") for number in (expected, flat.shape[-1]))
        one_row = "for one row pass y[None]; otherwise " if shape == (expected,) else ""
        raise ValueError(
            f"the input of {name} must have {wanted} per row; got {found} (input shape {shape}): "
            f"{one_row}pass rows of {wanted}, or build the network for {found}"
        )


@registered()
class MLPEncoder(nn.Module):
    """Fully connected encoder, from the flattened datum to `num_features` features.

    Arguments:
        features: Number of features per datum (784 for 28 x 28 images).
        hidden: Width of each hidden layer.
        activation: Class of the activation.

    Raises:
        ValueError: If there is no hidden layer; when called, if a datum does not have `features`
            numbers.

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
            raise ValueError(
                "`hidden` of an MLPEncoder must have at least one layer; got none: pass the "
                "width of each layer, as in hidden=(200,)"
            )
        self.features, self.hidden, self.activation = features, tuple(hidden), activation
        self.num_features = self.hidden[-1]
        self.layers = dense_layers((features, *self.hidden), activation)
        self.units = InputScale(self, self.layers[0])

    def forward(self, y: Float[Tensor, "batch *datum"]) -> Float[Tensor, "batch features"]:
        """Returns the features of each datum."""
        flat = flat_rows("MLPEncoder", y, self.features)
        return self.layers(self.units(flat))


@registered()
class MLPDecoder(nn.Module):
    """Fully connected decoder, from the latents to `outputs` numbers per feature.

    Arguments:
        latent_dim: Number of entries of z.
        shape: Shape of a datum, or its number of features.
        hidden: Width of each hidden layer.
        outputs: Numbers per feature: 1 for most likelihoods, 2 if sigma depends on z. The numbers
            are stacked along the first axis of the datum.
        activation: Class of the activation.
        skip: Whether a linear map of z is added to the output. The decoders of probabilistic PCA
            and factor analysis are then special cases.

    Example:
        >>> import torch
        >>> MLPDecoder(2, shape=(28, 28), hidden=(200,))(torch.zeros(5, 2)).shape
        torch.Size([5, 28, 28])
    """

    def __init__(
        self,
        latent_dim: int,
        shape: int | Sequence[int],
        hidden: Sequence[int] = (200,),
        *,
        outputs: int = 1,
        activation: Activation = nn.ELU,
        skip: bool = False,
    ) -> None:
        super().__init__()
        self.latent_dim, self.hidden, self.outputs = latent_dim, tuple(hidden), outputs
        self.shape = (shape,) if isinstance(shape, int) else tuple(shape)
        self.activation, self.skip = activation, skip
        sizes = (latent_dim, *self.hidden)
        layers = dense_layers(sizes, activation)
        trunk = [_WithInput(*layers)] if skip else layers
        last = nn.Linear(sizes[-1] + latent_dim * skip, outputs * math.prod(self.shape))
        self.layers = nn.Sequential(*trunk, last)
        self.units = OutputScale(self, last)

    def forward(self, z: Float[Tensor, "batch latents"]) -> Float[Tensor, "batch *output"]:
        """Returns the likelihood's parameters for each z."""
        check_width("MLPDecoder", z, self.latent_dim, tuple(z.shape))
        output: Tensor = self.layers(z)
        return self.units(output.view(len(z), self.outputs * self.shape[0], *self.shape[1:]))


@registered()
class ResidualBlock(nn.Module):
    r"""Two dense layers whose output is added to their input, :math:`h + W_2 \, a(W_1 \, a(h))`.

    Biases are left out of this formula. The last layer starts at zero, so a new block is the
    identity.

    Arguments:
        width: Number of inputs and of outputs.
        activation: Class of the activation, :math:`a`.

    References:
        | Identity Mappings in Deep Residual Networks (He et al., 2016)
        | https://arxiv.org/abs/1603.05027
    """

    def __init__(self, width: int, activation: Activation = nn.ELU) -> None:
        super().__init__()
        last = nn.Linear(width, width)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.width, self.activation = width, activation
        self.layers = nn.Sequential(activation(), nn.Linear(width, width), activation(), last)

    def forward(self, h: Float[Tensor, "batch width"]) -> Float[Tensor, "batch width"]:
        """Returns the input plus the output of the layers."""
        added: Tensor = self.layers(h)
        return h + added


@registered()
class ResidualEncoder(nn.Module):
    """Encoder of residual blocks, from the flattened datum to `width` features.

    Arguments:
        features: Number of features per datum.
        width: Width of the blocks.
        blocks: Number of blocks.
        activation: Class of the activation.

    Raises:
        ValueError: If there is no block; when called, if a datum does not have `features` numbers.

    Example:
        >>> import torch
        >>> ResidualEncoder(784, width=50, blocks=3)(torch.zeros(5, 28, 28)).shape
        torch.Size([5, 50])
    """

    def __init__(
        self, features: int, width: int = 200, blocks: int = 2, activation: Activation = nn.ELU
    ) -> None:
        super().__init__()
        self.features, self.width, self.blocks = features, width, blocks
        self.activation, self.num_features = activation, width
        first = nn.Linear(features, width)
        self.layers = nn.Sequential(first, *_blocks(width, blocks, activation), activation())
        self.units = InputScale(self, first)

    def forward(self, y: Float[Tensor, "batch *datum"]) -> Float[Tensor, "batch features"]:
        """Returns the features of each datum."""
        flat = flat_rows("ResidualEncoder", y, self.features)
        return self.layers(self.units(flat))


@registered()
class ResidualDecoder(nn.Module):
    """Decoder of residual blocks, from the latents to `outputs` numbers per feature.

    Arguments:
        latent_dim: Number of entries of z.
        shape: Shape of a datum, or its number of features.
        width: Width of the blocks.
        blocks: Number of blocks.
        outputs: Numbers per feature, stacked along the first axis of the datum.
        activation: Class of the activation.

    Raises:
        ValueError: If there is no block; when called, if z does not have `latent_dim` entries.

    Example:
        >>> import torch
        >>> ResidualDecoder(2, shape=(28, 28), width=50)(torch.zeros(5, 2)).shape
        torch.Size([5, 28, 28])
    """

    def __init__(
        self,
        latent_dim: int,
        shape: int | Sequence[int],
        width: int = 200,
        blocks: int = 2,
        *,
        outputs: int = 1,
        activation: Activation = nn.ELU,
    ) -> None:
        super().__init__()
        self.latent_dim, self.width, self.blocks, self.outputs = latent_dim, width, blocks, outputs
        self.shape = (shape,) if isinstance(shape, int) else tuple(shape)
        self.activation = activation
        last = nn.Linear(width, outputs * math.prod(self.shape))
        inner = _blocks(width, blocks, activation)
        self.layers = nn.Sequential(nn.Linear(latent_dim, width), *inner, activation(), last)
        self.units = OutputScale(self, last)

    def forward(self, z: Float[Tensor, "batch latents"]) -> Float[Tensor, "batch *output"]:
        """Returns the likelihood's parameters for each z."""
        check_width("ResidualDecoder", z, self.latent_dim, tuple(z.shape))
        output: Tensor = self.layers(z)
        return self.units(output.view(len(z), self.outputs * self.shape[0], *self.shape[1:]))


def _blocks(width: int, blocks: int, activation: Activation) -> list[ResidualBlock]:
    return [ResidualBlock(width, activation) for _ in range(blocks)]
