"""Ready-made networks: shapes for every size of image, and what they refuse."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyro_vae.nets import ConvDecoder, ConvEncoder, MLPDecoder, MLPEncoder, activations

# Odd, even, square or not, down to one pixel.
IMAGES = [(1, 28, 28), (3, 7, 5), (1, 6, 9), (2, 1, 1), (1, 2, 3), (1, 33, 8)]
NUM_DATA = 4


def gradients_reach_everything(net: nn.Module, output: Tensor) -> bool:
    """Whether every weight of the net has a say in its output."""
    (output**2).sum().backward()
    grads = [value.grad for value in net.parameters()]
    return all(grad is not None and grad.abs().sum() > 0 for grad in grads)


@pytest.mark.parametrize("shape", IMAGES)
@pytest.mark.parametrize("channels", [(4,), (4, 3), (4, 3, 2)])
def test_convolutions(shape: tuple[int, int, int], channels: tuple[int, ...]) -> None:
    """An image in, features out; latents in, an image of the same size out."""
    encoder = ConvEncoder(shape, channels, num_features=6)
    features = encoder(torch.rand(NUM_DATA, *shape))
    assert features.shape == (NUM_DATA, 6)
    decoder = ConvDecoder(6, shape, channels[::-1])
    image = decoder(features)
    assert image.shape == (NUM_DATA, *shape)
    assert gradients_reach_everything(nn.ModuleList([encoder, decoder]), image)


@pytest.mark.parametrize("outputs", [1, 2])
def test_outputs_are_channels(outputs: int) -> None:
    """Two numbers a pixel are twice the channels; flat rows are the same numbers in a row."""
    shape, z = (3, 7, 5), torch.randn(NUM_DATA, 2)
    images = ConvDecoder(2, shape, (4,), outputs=outputs)
    rows = ConvDecoder(2, shape, (4,), outputs=outputs, flat=True)
    rows.load_state_dict(images.state_dict())
    assert images(z).shape == (NUM_DATA, 3 * outputs, 7, 5)
    assert torch.equal(rows(z), images(z).flatten(start_dim=1))


def test_encoders_take_flat_rows() -> None:
    """An image and its row of pixels are the same to an encoder."""
    y = torch.rand(NUM_DATA, 3, 7, 5)
    encoders: list[nn.Module] = [ConvEncoder((3, 7, 5)), MLPEncoder(105)]
    for encoder in encoders:
        assert torch.equal(encoder(y), encoder(y.flatten(start_dim=1)))


@pytest.mark.parametrize("hidden", [(8,), (8, 5)])
def test_mlp_encoder(hidden: tuple[int, ...]) -> None:
    """It ends in the last hidden layer, and says so."""
    encoder = MLPEncoder(6, hidden)
    features = encoder(torch.randn(NUM_DATA, 2, 3))
    assert features.shape == (NUM_DATA, hidden[-1])
    assert encoder.num_features == hidden[-1]
    assert gradients_reach_everything(encoder, features)


@pytest.mark.parametrize("hidden", [(), (8,), (8, 5)])
@pytest.mark.parametrize(
    ("shape", "outputs", "expected"),
    [(6, 1, (6,)), ((6,), 2, (12,)), ((1, 3, 2), 1, (1, 3, 2)), ((2, 3), 2, (4, 3))],
)
def test_mlp_decoder(
    hidden: tuple[int, ...], shape: int | tuple[int, ...], outputs: int, expected: tuple[int, ...]
) -> None:
    """A datum of any shape; no hidden layer is a linear decoder."""
    decoder = MLPDecoder(2, shape, hidden, outputs=outputs)
    output = decoder(torch.randn(NUM_DATA, 2))
    assert output.shape == (NUM_DATA, *expected)
    assert gradients_reach_everything(decoder, output)


@pytest.mark.usefixtures("float64")
def test_float64() -> None:
    """Networks are of the default dtype when they are made."""
    assert ConvDecoder(2, (1, 5, 5), (3,))(torch.zeros(1, 2)).dtype == torch.float64
    assert MLPEncoder(3)(torch.zeros(1, 3)).dtype == torch.float64


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "mlp encoder": (
        lambda: MLPEncoder(6)(torch.zeros(2, 5)),
        r"MLPEncoder was made for 6 numbers a row, got 5 \(input of shape \(2, 5\), rows first\)",
    ),
    "conv encoder": (
        lambda: ConvEncoder((1, 4, 4))(torch.zeros(2, 3, 4)),
        r"ConvEncoder was made for 16 numbers a row, got 12 \(input of shape \(2, 3, 4\)",
    ),
    "mlp decoder": (lambda: MLPDecoder(2, 3)(torch.zeros(5, 4)), "made for 2 numbers a row, got 4"),
    "conv decoder": (
        lambda: ConvDecoder(2, (1, 4, 4))(torch.zeros(5, 3)),
        "made for 2 numbers a row, got 3",
    ),
    "no hidden layer": (lambda: MLPEncoder(6, hidden=()), "at least one hidden layer, got none"),
    "not an image": (
        lambda: ConvEncoder((28, 28)),
        r"an image has \(channels, height, width\), got \(28, 28\)",
    ),
    "not an image to decode": (lambda: ConvDecoder(2, (28,)), r"got \(28,\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_sizes(case: str) -> None:
    """What the network was made for, and what came."""
    make, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "net",
    [
        MLPEncoder(6, (5, 4), nn.Tanh),
        MLPDecoder(2, (3, 2), (4,), outputs=2, activation=nn.ReLU),
        ConvEncoder((1, 5, 4), (3,), 7, nn.SiLU),
        ConvDecoder(2, (1, 5, 4), (3,), outputs=2, activation=nn.GELU, flat=True),
    ],
    ids=lambda net: type(net).__name__,
)
def test_config_makes_the_same(net: Any) -> None:
    """The same architecture: it takes the weights and gives the same numbers."""
    config = net.config()
    again = type(net)(**config)
    again.load_state_dict(net.state_dict())
    size = config.get("latents", config.get("features", 20))
    assert torch.equal(again(torch.ones(2, size)), net(torch.ones(2, size)))


def test_activations_can_be_named() -> None:
    """Each is torch's class of that name."""
    for name, activation in activations().items():
        assert isinstance(activation(), nn.Module)
        assert activation.__name__ == name
