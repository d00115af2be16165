"""Ready-made networks: shapes for every size of image, and what they refuse."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.nets import (
    Concatenated,
    ConvDecoder,
    ConvEncoder,
    GRUEncoder,
    MLPDecoder,
    MLPEncoder,
    ResidualBlock,
    ResidualDecoder,
    ResidualEncoder,
    activations,
)
from pyro_vae.registry import arguments_of

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
    """Two numbers per pixel are twice the channels; flat rows are the same numbers in a row."""
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
        r"MLPEncoder must have 6 numbers per row; got 5 numbers \(input shape \(2, 5\)\)",
    ),
    "conv encoder": (
        lambda: ConvEncoder((1, 4, 4))(torch.zeros(2, 3, 4)),
        r"ConvEncoder must have 16 numbers per row; got 12 numbers \(input shape \(2, 3, 4\)",
    ),
    "mlp decoder": (
        lambda: MLPDecoder(2, 3)(torch.zeros(5, 4)),
        "must have 2 numbers per row; got 4",
    ),
    "conv decoder": (
        lambda: ConvDecoder(2, (1, 4, 4))(torch.zeros(5, 3)),
        "must have 2 numbers per row; got 3",
    ),
    "a row alone": (
        lambda: MLPEncoder(6)(torch.zeros(6)),
        r"got 1 number \(input shape \(6,\)\): for one row pass y\[None\]; otherwise",
    ),
    "no hidden layer": (lambda: MLPEncoder(6, hidden=()), "at least one layer; got none"),
    "not an image": (
        lambda: ConvEncoder((28, 28)),
        r"`shape` must be \(channels, height, width\); got \(28, 28\)",
    ),
    "not an image to decode": (lambda: ConvDecoder(2, (28,)), r"got \(28,\)"),
    "residual encoder": (lambda: ResidualEncoder(6)(torch.zeros(2, 5)), "must have 6 .* got 5"),
    "residual decoder": (lambda: ResidualDecoder(2, 3)(torch.zeros(5, 4)), "must have 2 .* got 4"),
    "no block": (
        lambda: ResidualEncoder(6, blocks=0),
        "`blocks` must be .* at least 1; got 0",
    ),
    "series of another shape": (
        lambda: GRUEncoder(3, 4, length=5)(torch.zeros(2, 4, 3)),
        r"must have shape \(5, 3\) \(times, features\); got shape \(4, 3\)",
    ),
    "different rows": (
        lambda: Concatenated(nn.Linear(5, 2))(torch.zeros(2, 3), torch.zeros(4, 2)),
        r"the same number of rows; got tensors of \[2, 4\] rows",
    ),
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
        ResidualEncoder(6, 5, 3, nn.Tanh),
        ResidualDecoder(2, (3, 2), 4, 1, outputs=2, activation=nn.ReLU),
        Concatenated(MLPEncoder(20, (5,))),
    ],
    ids=lambda net: type(net).__name__,
)
def test_arguments_make_the_same(net: Any) -> None:
    """The same architecture: it takes the weights and gives the same numbers."""
    config = arguments_of(net)
    again = type(net)(**config)
    again.load_state_dict(net.state_dict())
    size = config.get("latent_dim", config.get("features", 20))
    assert torch.equal(again(torch.ones(2, size)), net(torch.ones(2, size)))


def test_arguments_of_a_block_and_a_gru() -> None:
    """Likewise, for networks whose input is no row of features."""
    y, gru = torch.randn(2, 5, 3), GRUEncoder(3, 4, 5)
    again = GRUEncoder(**arguments_of(gru))
    again.load_state_dict(gru.state_dict())
    assert torch.equal(again(y), gru(y))
    assert repr(ResidualBlock(**arguments_of(ResidualBlock(3, nn.SiLU)))) == repr(
        ResidualBlock(3, nn.SiLU)
    )


def test_activations_can_be_named() -> None:
    """Each is torch's class of that name."""
    for name, activation in activations().items():
        assert isinstance(activation(), nn.Module)
        assert activation.__name__ == name


# ---------------------------------------------------------------------- residual blocks


@pytest.mark.parametrize(("shape", "outputs"), [((6,), 2), ((2, 3), 1)])
def test_residual_networks(shape: tuple[int, ...], outputs: int) -> None:
    """A datum in, features out, and back; every weight has a say, once blocks have moved."""
    encoder = ResidualEncoder(6, width=5, blocks=2)
    decoder = ResidualDecoder(5, shape, width=7, blocks=3, outputs=outputs)
    assert encoder.num_features == 5
    with torch.no_grad():
        for net in (encoder, decoder):
            for parameter in net.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    output = decoder(encoder(torch.randn(NUM_DATA, *shape)))
    assert output.shape == (NUM_DATA, outputs * shape[0], *shape[1:])
    assert gradients_reach_everything(nn.ModuleList([encoder, decoder]), output)


def test_a_fresh_block_adds_nothing() -> None:
    """However many there are, the network starts as its first and last layers."""
    h = torch.randn(NUM_DATA, 4)
    block = ResidualBlock(4)
    assert torch.equal(block(h), h)
    block(h).square().sum().backward()
    grad = block.layers[-1].weight.grad
    assert isinstance(grad, Tensor)
    assert grad.abs().sum() > 0  # it can leave that place


# ---------------------------------------------------------------------- series


def times_that_matter(encoder: GRUEncoder, y: Tensor, time: int) -> list[bool]:
    """Which times of the data change the features of a time."""
    before = encoder(y).unflatten(1, (encoder.length, -1))[:, time]
    answers = []
    for other in range(encoder.length):
        moved = y.clone()
        moved[:, other] += 1
        after = encoder(moved).unflatten(1, (encoder.length, -1))[:, time]
        answers.append(not torch.equal(after, before))
    return answers


def test_gru_reads_the_future() -> None:
    """The features of a time depend on what comes then and later, and not on the past."""
    encoder, y = GRUEncoder(3, 8, length=4), torch.randn(NUM_DATA, 4, 3)
    assert encoder(y).shape == (NUM_DATA, encoder.num_features) == (NUM_DATA, 32)
    for time in range(4):
        assert times_that_matter(encoder, y, time) == [other >= time for other in range(4)]
    assert gradients_reach_everything(encoder, encoder(y))


def test_gru_is_told_of_holes() -> None:
    """No nan comes out, and a missing entry is not a zero."""
    encoder, y = GRUEncoder(3, 8, length=4), torch.zeros(NUM_DATA, 4, 3)
    holes = y.clone()
    holes[:, 1, 2] = torch.nan
    assert encoder(holes).isfinite().all()
    assert not torch.equal(encoder(holes), encoder(y))


# ---------------------------------------------------------------------- several tensors


def test_concatenated() -> None:
    """Each is flattened, in the order given; a trunk stays a trunk."""
    net = Concatenated(MLPEncoder(8, (5,)))
    image, x = torch.randn(NUM_DATA, 2, 3), torch.randn(NUM_DATA, 2)
    side_by_side = torch.cat([image.flatten(1), x], dim=1)
    assert torch.equal(net(image, x), net.net(side_by_side))
    assert net.num_features == 5
    assert Concatenated(nn.Linear(8, 2)).num_features is None


class Returns(nn.Module):
    """A network that gives something else than one tensor."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: torch.Tensor) -> Any:
        """That."""
        return self.answer


@pytest.mark.parametrize(
    "answer", [None, (torch.ones(2, 3),), np.ones((2, 3)), torch.ones(2, 3) > 0]
)
def test_networks_return_one_tensor(answer: Any) -> None:
    """A decoder is refused when the model is made, an encoder when it is called."""
    with pytest.raises(TypeError, match="the decoder, Returns, must return one tensor"):
        pv.models.VAE(Returns(answer), pv.likelihoods.Gaussian(), latent_dim=2)
    model = pv.models.VAE(nn.Linear(2, 3), pv.likelihoods.Gaussian(), latent_dim=2)
    guide = pv.Guide(model, pv.Encoder(Returns(answer)))
    with pytest.raises(TypeError, match="the encoder's net, Returns, must return one tensor"):
        guide.mean(torch.ones(2, 3))


def test_an_encoder_of_other_data() -> None:
    """By shape, or by dtype."""
    model = pv.models.VAE(nn.Linear(2, 3), pv.likelihoods.Gaussian(), latent_dim=2)
    for net, told in (
        (nn.Linear(4, 4), r"data of shape and dtype \(5, 3\) torch.float32"),
        (nn.Linear(3, 4).double(), "the dtype of the data, torch.float32; got torch.float64"),
    ):
        with pytest.raises(ValueError, match=told):
            pv.Guide(model, pv.Encoder(net)).mean(torch.ones(5, 3))
