"""What tests of units share: programs of every kind of network and sigma, and raw data."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.likelihoods import (
    DecodedSigma,
    Gaussian,
    LearnedSigma,
    Mixed,
    StudentT,
)
from pyro_vae.models import NormalGiven
from pyro_vae.nets import (
    Concatenated,
    ConvDecoder,
    ConvEncoder,
    GRUEncoder,
    MissingIndicator,
    MLPDecoder,
    MLPEncoder,
    ResidualDecoder,
    ResidualEncoder,
)

UNITS = [(100.0, 10.0), (1e4, 1e3), (1e-3, 1e-4), (1e6, 1.0)]
FAR, SIZE = 1e4, 1e3


def rows(*shape: int, holes: bool = False) -> Tensor:
    """Correlated numbers, each of mean and median 0 and sd 1, float64."""
    x = torch.randn(30, *shape).double() + torch.randn(30, *(1 for _ in shape)).double()
    if holes:
        x[::3, 1] = torch.nan
    x = torch.cat([x, -x, torch.zeros_like(x[:1])])
    return x / x.square().nanmean(0).sqrt()


def vae(likelihood: Any, decoder: nn.Module, encoder: nn.Module) -> tuple[Any, pv.Guide]:
    """A VAE of two latents and its guide."""
    model = pv.models.VAE(decoder.double(), likelihood.double(), latent_dim=2)
    return model, pv.Guide(model, pv.Encoder(encoder.double()))


def mlp(likelihood: Any, columns: int = 4) -> tuple[Any, pv.Guide]:
    """With fully connected networks."""
    decoder = MLPDecoder(2, likelihood.output_shape((columns,)), hidden=(8,))
    return vae(likelihood, decoder, MLPEncoder(columns, hidden=(8,)))


def own(sigma: float) -> LearnedSigma:
    """A sigma for each of four columns."""
    return LearnedSigma(4, floor=1e-6 * sigma)


def conditional(s: float) -> tuple[Any, pv.Guide]:
    """With a covariate."""
    decoder = Concatenated(MLPDecoder(2 + 1, 4, hidden=(8,))).double()
    model = pv.models.ConditionalVAE(decoder, Gaussian(own(s)).double(), 2, 1)
    return model, pv.Guide(model, pv.Encoder(Concatenated(MLPEncoder(4 + 1, (8,)).double())))


def series(s: float) -> tuple[Any, pv.Guide]:
    """Of three times and two features."""
    walk = NormalGiven(nn.Linear(2, 2), sigma=0.5).double()
    decoder, likelihood = (
        MLPDecoder(2, 2, hidden=(8,)).double(),
        Gaussian(LearnedSigma(2, floor=1e-6 * s)),
    )
    model = pv.models.SequentialVAE(walk, decoder, likelihood.double(), 2, length=3)
    return model, pv.Guide(model, pv.Encoder(GRUEncoder(2, 4, 3).double()))


PROGRAMS: dict[str, tuple[Callable[[float], tuple[Any, pv.Guide]], tuple[int, ...]]] = {
    "learned": (lambda s: mlp(Gaussian(own(s))), (4,)),
    "shared": (lambda s: mlp(Gaussian(LearnedSigma(floor=1e-6 * s))), (4,)),
    "fixed": (lambda s: mlp(Gaussian(0.5 * s)), (4,)),
    "decoded": (lambda s: mlp(Gaussian(DecodedSigma(floor=1e-6 * s))), (4,)),
    "t": (lambda s: mlp(StudentT(5.0, own(s))), (4,)),
    "mixed": (
        lambda s: mlp(Mixed([Gaussian(LearnedSigma(floor=1e-6 * s)) for _ in range(4)])),
        (4,),
    ),
    "residual": (
        lambda s: vae(Gaussian(own(s)), ResidualDecoder(2, 4, 8), ResidualEncoder(4, 8)),
        (4,),
    ),
    "missing": (
        lambda s: vae(
            Gaussian(own(s)),
            MLPDecoder(2, 4, hidden=(8,), skip=True),
            MissingIndicator(MLPEncoder(8, hidden=(8,))),
        ),
        (4,),
    ),
    "conditional": (lambda s: conditional(s), (4,)),
    "series": (lambda s: series(s), (3, 2)),
    "images": (
        lambda s: vae(
            Gaussian(LearnedSigma(floor=1e-6 * s)),
            ConvDecoder(2, (1, 4, 4), (4, 4)),
            ConvEncoder((1, 4, 4), (4, 4), 8),
        ),
        (1, 4, 4),
    ),
}


def made(name: str, sigma: float) -> tuple[Any, pv.Guide]:
    """The programs with the weights of seed 1."""
    torch.manual_seed(1)
    return PROGRAMS[name][0](sigma)


def raw(*shape: int) -> Tensor:
    """Rows of mean 1e4 and sd 1e3."""
    return FAR + SIZE * rows(*shape)


def state(*modules: nn.Module) -> dict[str, Tensor]:
    """A copy of all that modules hold."""
    return {
        f"{i}.{n}": v.clone()
        for i, part in enumerate(modules)
        for n, v in part.state_dict().items()
    }


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    """To the last bit."""
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], value) for name, value in expected.items()
    )


def start(model: Any, guide: pv.Guide, y: Tensor) -> None:
    """What `fit` does before training."""
    guide.map.start_from(y)
    model.start_from(y)
