"""Ready-made networks: encoders that end in features, decoders that end in data.

Encoders are trunks: their attribute `num_features` tells :class:`pyro_vae.Encoder` to put a
linear layer of the size the family needs on top, so one encoder serves every family. Decoders
give `outputs` numbers a feature, as many as the likelihood asks for.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

Activation = type[nn.Module]


def _mlp(sizes: Sequence[int], activation: Activation) -> nn.Sequential:
    """Linear layers of these sizes, each followed by the activation."""
    layers = [
        layer
        for fan_in, fan_out in itertools.pairwise(sizes)
        for layer in (nn.Linear(fan_in, fan_out), activation())
    ]
    return nn.Sequential(*layers)


class MLPEncoder(nn.Module):
    """Fully connected trunk, from the flattened datum to `num_features` features.

    Arguments:
        features: Numbers a datum (784 for 28 x 28 images).
        hidden: Width of each hidden layer.
        activation: Class of the activation.

    Raises:
        ValueError: If there is no hidden layer, or, when called, if a datum has another size.

    Example:
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
        self.layers = _mlp((features, *self.hidden), activation)

    def config(self) -> dict[str, Any]:
        """Arguments that make the same architecture."""
        return {"features": self.features, "hidden": self.hidden, "activation": self.activation}

    def forward(self, y: Float[Tensor, "batch *datum"]) -> Float[Tensor, "batch features"]:
        """Features of each datum."""
        flat = y.flatten(start_dim=1)
        _check_width("MLPEncoder", flat, self.features, tuple(y.shape))
        features: Tensor = self.layers(flat)
        return features


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
        self.layers = nn.Sequential(*_mlp(sizes, activation), last)

    def config(self) -> dict[str, Any]:
        """Arguments that make the same architecture."""
        names = ("latents", "shape", "hidden", "outputs", "activation")
        return {name: getattr(self, name) for name in names}

    def forward(self, z: Float[Tensor, "batch latents"]) -> Float[Tensor, "batch *output"]:
        """What the likelihood needs, for each z."""
        _check_width("MLPDecoder", z, self.latents, tuple(z.shape))
        output: Tensor = self.layers(z)
        return output.view(len(z), self.outputs * self.shape[0], *self.shape[1:])


class ConvEncoder(nn.Module):
    """Convolutional trunk: each layer halves height and width; ends in `num_features` features.

    Arguments:
        shape: Channels, height and width of an image; flat rows of that size are welcome too.
        channels: Channels of each layer.
        num_features: Features at the end.
        activation: Class of the activation.

    Example:
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
            for layer in (_halve(fan_in, fan_out), activation())
        ]
        height, width = _halved(self.shape, len(self.channels))[-1]
        last = nn.Linear(sizes[-1] * height * width, num_features)
        self.layers = nn.Sequential(*convolutions, nn.Flatten(), last, activation())

    def config(self) -> dict[str, Any]:
        """Arguments that make the same architecture."""
        names = ("shape", "channels", "num_features", "activation")
        return {name: getattr(self, name) for name in names}

    def forward(self, y: Float[Tensor, "batch *datum"]) -> Float[Tensor, "batch features"]:
        """Features of each image."""
        flat = y.flatten(start_dim=1)
        _check_width("ConvEncoder", flat, math.prod(self.shape), tuple(y.shape))
        features: Tensor = self.layers(flat.view(-1, *self.shape))
        return features


class ConvDecoder(nn.Module):
    """Convolutional decoder: each layer doubles height and width; mirrors :class:`ConvEncoder`.

    Arguments:
        latents: Entries of z.
        shape: Channels, height and width of an image.
        channels: Channels of each layer, first to last.
        outputs: Numbers a pixel, stacked along the channels.
        activation: Class of the activation.
        flat: Give flat rows, for data that are stored so.

    Example:
        >>> ConvDecoder(8, (1, 28, 28), flat=True)(torch.zeros(5, 8)).shape
        torch.Size([5, 784])
    """

    def __init__(
        self,
        latents: int,
        shape: Sequence[int],
        channels: Sequence[int] = (64, 32),
        *,
        outputs: int = 1,
        activation: Activation = nn.ELU,
        flat: bool = False,
    ) -> None:
        super().__init__()
        self.latents, self.shape, self.channels = latents, _image_shape(shape), tuple(channels)
        self.outputs, self.activation, self.flat = outputs, activation, flat
        sides = _halved(self.shape, len(self.channels))[::-1]
        self.first = nn.Linear(latents, self.channels[0] * math.prod(sides[0]))
        self.start = (self.channels[0], *sides[0])
        sizes = (*self.channels, outputs * self.shape[0])
        layers: list[nn.Module] = []
        for index, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
            layers += [activation(), _double(fan_in, fan_out, sides[index], sides[index + 1])]
        self.layers = nn.Sequential(*layers)

    def config(self) -> dict[str, Any]:
        """Arguments that make the same architecture."""
        names = ("latents", "shape", "channels", "outputs", "activation", "flat")
        return {name: getattr(self, name) for name in names}

    def forward(self, z: Float[Tensor, "batch latents"]) -> Float[Tensor, "batch *output"]:
        """What the likelihood needs, for each z."""
        _check_width("ConvDecoder", z, self.latents, tuple(z.shape))
        output: Tensor = self.layers(self.first(z).view(-1, *self.start))
        return output.flatten(start_dim=1) if self.flat else output


class MissingIndicator(nn.Module):
    """An encoder for data with holes: it sees zeros in them, and which entries were observed.

    Arguments:
        net: An encoder, made for twice as many numbers a row (or twice the channels): the data
            with zeros for nan, and then, along the first axis of the datum, ones where an entry
            was observed and zeros where it is missing.

    References:
        | VAEM: a Deep Generative Model for Heterogeneous Mixed Type Data (Ma et al., 2020)
        | https://arxiv.org/abs/2006.11941

    Example:
        >>> MissingIndicator(MLPEncoder(2 * 3, hidden=(5,)))(torch.full((4, 3), torch.nan)).shape
        torch.Size([4, 5])
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    @property
    def num_features(self) -> int | None:
        """That of the encoder; `None` if it has no such attribute."""
        features: int | None = getattr(self.net, "num_features", None)
        return features

    def config(self) -> dict[str, Any]:
        """Arguments that make the same architecture."""
        return {"net": self.net}

    def forward(self, y: Float[Tensor, "batch *datum"], *given: Tensor) -> Tensor:
        """The encoder's answer."""
        observed = ~y.isnan()
        filled = y.masked_fill(~observed, 0.0)
        answer: Tensor = self.net(torch.cat([filled, observed.to(y)], dim=1), *given)
        return answer


def _check_width(name: str, flat: Tensor, expected: int, shape: tuple[int, ...]) -> None:
    if flat.shape[-1] != expected:
        raise ValueError(
            f"{name} was made for {expected} numbers a row, got {flat.shape[-1]} "
            f"(input of shape {shape}, rows first)"
        )


def _image_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    if len(shape) != 3:  # channels, height, width
        raise ValueError(f"an image has (channels, height, width), got {tuple(shape)}")
    return (shape[0], shape[1], shape[2])


def _halved(shape: tuple[int, int, int], times: int) -> list[tuple[int, int]]:
    """Heights and widths after 0, 1, ..., `times` halvings, rounded up."""
    sides = [(shape[1], shape[2])]
    for _ in range(times):
        height, width = sides[-1]
        sides.append((math.ceil(height / 2), math.ceil(width / 2)))
    return sides


def _halve(fan_in: int, fan_out: int) -> nn.Conv2d:
    return nn.Conv2d(fan_in, fan_out, kernel_size=3, stride=2, padding=1)


def _double(
    fan_in: int, fan_out: int, side: tuple[int, int], target: tuple[int, int]
) -> nn.ConvTranspose2d:
    """The transpose of :func:`_halve`; the padding settles whether the target side is even."""
    extra = (target[0] - (2 * side[0] - 1), target[1] - (2 * side[1] - 1))
    return nn.ConvTranspose2d(
        fan_in, fan_out, kernel_size=3, stride=2, padding=1, output_padding=extra
    )


def activations() -> dict[str, Activation]:
    """Activations that a saved network may name."""
    names = ("ELU", "GELU", "LeakyReLU", "ReLU", "SiLU", "Sigmoid", "Softplus", "Tanh")
    return {name: getattr(torch.nn, name) for name in names}
