"""Convolutional networks for images."""

import itertools
import math
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from ..registry import registered
from .dense import Activation, check_width, flat_rows
from .scaling import InputScale, OutputScale


@registered()
class ConvEncoder(nn.Module):
    """Convolutional encoder with `num_features` features; each layer halves height and width.

    Arguments:
        shape: Channels, height and width of an image. Images can also be given as flat rows.
        channels: Number of channels of each layer.
        num_features: Number of features that the encoder returns.
        activation: Class of the activation.

    Example:
        >>> import torch
        >>> ConvEncoder((1, 28, 28))(torch.zeros(5, 784)).shape
        torch.Size([5, 128])
    """

    def __init__(
        self,
        shape: Sequence[int],
        channels: Sequence[int] = (32, 64),
        num_features: int = 128,
        activation: Activation = nn.ELU,
    ) -> None:
        super().__init__()
        self.shape, self.channels = _image_shape(shape), tuple(channels)
        self.num_features, self.activation = num_features, activation
        sizes = (self.shape[0], *self.channels)
        convolutions = [
            layer
            for fan_in, fan_out in itertools.pairwise(sizes)
            for layer in (
                nn.Conv2d(fan_in, fan_out, kernel_size=3, stride=2, padding=1),
                activation(),
            )
        ]
        height, width = _halved(self.shape, len(self.channels))[-1]
        last = nn.Linear(sizes[-1] * height * width, num_features)
        self.layers = nn.Sequential(*convolutions, nn.Flatten(), last, activation())
        self.units = InputScale(self, self.layers[0])

    def forward(self, y: Float[Tensor, "batch *datum"]) -> Float[Tensor, "batch features"]:
        """Returns the features of each image."""
        flat = flat_rows("ConvEncoder", y, math.prod(self.shape))
        return self.layers(self.units(flat.view(-1, *self.shape)))


@registered()
class ConvDecoder(nn.Module):
    """Convolutional decoder, the mirror of :class:`ConvEncoder`: layers double height and width.

    Arguments:
        latent_dim: Number of entries of z.
        shape: Channels, height and width of an image.
        channels: Number of channels of each layer, from first to last.
        outputs: Numbers per pixel, stacked along the channels.
        activation: Class of the activation.
        flat: Whether to return flat rows, for data that are stored as flat rows.

    Example:
        >>> import torch
        >>> ConvDecoder(8, (1, 28, 28), flat=True)(torch.zeros(5, 8)).shape
        torch.Size([5, 784])
    """

    def __init__(
        self,
        latent_dim: int,
        shape: Sequence[int],
        channels: Sequence[int] = (64, 32),
        *,
        outputs: int = 1,
        activation: Activation = nn.ELU,
        flat: bool = False,
    ) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.shape, self.channels = _image_shape(shape), tuple(channels)
        self.outputs, self.activation, self.flat = outputs, activation, flat
        sides = _halved(self.shape, len(self.channels))[::-1]
        self.first = nn.Linear(latent_dim, self.channels[0] * math.prod(sides[0]))
        self.start = (self.channels[0], *sides[0])
        sizes = (*self.channels, outputs * self.shape[0])
        layers: list[nn.Module] = []
        steps = zip(itertools.pairwise(sizes), itertools.pairwise(sides), strict=True)
        for (fan_in, fan_out), (side, target) in steps:
            # A layer turns s pixels into 2 s - 1; extra padding adds one if the target is even.
            extra = (target[0] - (2 * side[0] - 1), target[1] - (2 * side[1] - 1))
            double = nn.ConvTranspose2d(
                fan_in, fan_out, kernel_size=3, stride=2, padding=1, output_padding=extra
            )
            layers += [activation(), double]
        self.layers = nn.Sequential(*layers)
        self.units = OutputScale(self, layers[-1])

    def forward(self, z: Float[Tensor, "batch latents"]) -> Float[Tensor, "batch *output"]:
        """Returns the likelihood's parameters for each z."""
        check_width("ConvDecoder", z, self.latent_dim, tuple(z.shape))
        output: Tensor = self.layers(self.first(z).view(-1, *self.start))
        return self.units(output.flatten(start_dim=1) if self.flat else output)


def _image_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    if len(shape) != 3:  # channels, height, width
        raise ValueError(
            f"`shape` must be (channels, height, width); got {tuple(shape)}: pass (1, 28, 28) for "
            "grey images of 28 x 28 pixels"
        )
    return (shape[0], shape[1], shape[2])


def _halved(shape: tuple[int, int, int], times: int) -> list[tuple[int, int]]:
    """Returns the height and width of an image after 0, 1, ..., `times` halvings, rounded up."""
    sides = [(shape[1], shape[2])]
    for _ in range(times):
        height, width = sides[-1]
        sides.append((math.ceil(height / 2), math.ceil(width / 2)))
    return sides
