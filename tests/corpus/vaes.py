"""Variational autoencoders: plain, convolutional, annealed, laddered, with automatic guides."""

# Programs as their authors write them, of which Pyro declares no types.
# mypy: disable-error-code="call-overload,arg-type,untyped-decorator"

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal
from torch import Tensor, nn

import pyro_vae as pv
from tests.corpus.case import (
    Case,
    bernoulli,
    double,
    integral,
    line,
    normal,
    over_normals,
    plane,
    program,
)

PIXELS, ROWS = 5, 4


def pictures() -> Tensor:
    """Binary pixels."""
    return torch.randint(0, 2, (ROWS, PIXELS)).float()


def decoded(decoder: nn.Module, y: Tensor) -> Any:
    """Log p(y | z) of pixels under a net that gives logits, as a function of z."""
    net, pixels = double(decoder), y.double()
    return lambda z: bernoulli(pixels, net(z)).sum(-1)


@program
def vae() -> Case:
    """A VAE whose decoder and encoder are registered by pyro.module inside the functions."""
    decoder, encoder, y = nn.Linear(2, PIXELS), nn.Linear(PIXELS, 4), pictures()

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", x.shape[0]):
            zeros = x.new_zeros(x.shape[0], 2)
            z = pyro.sample("latent", dist.Normal(zeros, zeros + 1).to_event(1))
            pyro.sample("obs", dist.Bernoulli(decoder(z).sigmoid()).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", x.shape[0]):
            loc, log_scale = encoder(x).chunk(2, -1)
            pyro.sample("latent", dist.Normal(loc, log_scale.exp()).to_event(1))

    return Case(model, guide, (y,), over_normals(decoded(decoder, y), 2))


class Tutorial(nn.Module):
    """Model and guide as methods of one module."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.Sequential(nn.Linear(2, 4), nn.Softplus(), nn.Linear(4, PIXELS))
        self.encoder = nn.Linear(PIXELS, 4)

    def model(self, x: Tensor) -> None:
        """Pixels from two latents."""
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z_loc = torch.zeros(x.shape[0], 2, dtype=x.dtype, device=x.device)
            z = pyro.sample("latent", dist.Normal(z_loc, torch.ones_like(z_loc)).to_event(1))
            pyro.sample("obs", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """An encoder."""
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("latent", dist.Normal(loc, log_scale.exp()).to_event(1))


@program
def vae_methods() -> Case:
    """A VAE whose model and guide are methods of one nn.Module."""
    both, y = Tutorial(), pictures()
    return Case(both.model, both.guide, (y,), over_normals(decoded(both.decoder, y), 2))


class Convolutions(nn.Module):
    """A decoder of pictures that takes one leading dimension only."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.ConvTranspose2d(2, 1, 2)

    def forward(self, z: Tensor) -> Tensor:
        """Pictures of 2 x 2."""
        return self.layer(z.view(-1, 2, 1, 1))


@program
def vae_convolutional() -> Case:
    """A convolutional decoder that calls view; an image has three dimensions."""
    decoder, encoder = Convolutions(), nn.Linear(4, 4)
    y = torch.rand(ROWS, 1, 2, 2)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 0.5).to_event(3), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = encoder(x.view(-1, 4)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    net = double(decoder)

    def likelihood(z: Tensor) -> Tensor:
        means = net(z.reshape(-1, 2)).reshape(-1, 1, 4)
        return normal(y.double().reshape(ROWS, 4), means, 0.5).sum(-1)

    return Case(model, guide, (y,), over_normals(likelihood, 2))


@program
def vae_annealed() -> Case:
    """A VAE with its noise scale as a pyro.param and its KL annealed by poutine.scale."""
    decoder, encoder, y = nn.Linear(1, 3), nn.Linear(3, 2), torch.randn(ROWS, 3)

    def model(x: Tensor, annealing_factor: float = 0.3) -> None:
        pyro.module("decoder", decoder)
        sigma = pyro.param("sigma", torch.tensor(0.8), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            with poutine.scale(None, annealing_factor):
                z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), sigma).to_event(1), obs=x)

    def guide(x: Tensor, annealing_factor: float = 0.3) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)), poutine.scale(None, annealing_factor):
            loc, log_scale = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    net = double(decoder)
    truth = over_normals(lambda z: normal(y.double(), net(z), 0.8).sum(-1), 1, 801)
    return Case(model, guide, (y,), truth)


@program
def vae_scaled() -> Case:
    """A VAE under poutine.scale: log densities are divided by the number of data."""
    decoder, encoder, y = nn.Linear(1, PIXELS), nn.Linear(PIXELS, 2), pictures()

    @poutine.scale(scale=1.0 / ROWS)
    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    @poutine.scale(scale=1.0 / ROWS)
    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return Case(model, guide, (y,), over_normals(decoded(decoder, y), 1, 801))


@program
def autonormal() -> Case:
    """Pyro's AutoNormal as the guide of local latents."""
    return automatic(AutoNormal)


@program
def autodiagonal() -> Case:
    """Pyro's AutoDiagonalNormal as the guide of local latents."""
    return automatic(AutoDiagonalNormal)


def automatic(kind: Any) -> Case:
    """One of Pyro's automatic guides, before its training; or trained, as refusals say."""
    case = vae()

    def trained() -> Case:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pv.fit(
                case.model, guide, case.data,
                num_epochs=2, batch_size=ROWS, train_model=False, progress=False,
            )  # fmt: skip
        return replace(whole, guide=guide, remedies=others)

    guide, others = kind(case.model), {"pv.LocalParameters": tied(case)}
    whole = replace(case, guide=guide, batch_size=ROWS)
    return replace(whole, remedies={"train this guide first": trained, **others})


def tied(case: Case) -> Callable[[], Case]:
    """Free parameters per datum, as refusals of Pyro's own guides say."""

    def local() -> Case:
        guide = pv.Guide(case.model, pv.LocalParameters(ROWS), example=case.data)
        return Case(case.model, guide, case.data, case.log_prob)

    return local


@program
def ladder() -> Case:
    """Ladder VAE: two layers of latents; both guide sites share one bottom-up network."""
    top, bottom = nn.Linear(1, 2), nn.Linear(1, PIXELS)
    climb, second, first = nn.Linear(PIXELS, 3), nn.Linear(3, 2), nn.Linear(4, 2)
    y = pictures()

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z2 = pyro.sample("z2", dist.Normal(y.new_zeros(len(y), 1), 1.0).to_event(1))
            loc, log_scale = top(z2).chunk(2, -1)
            z1 = pyro.sample("z1", dist.Normal(loc, log_scale.exp()).to_event(1))
            pyro.sample("y", dist.Bernoulli(logits=bottom(z1)).to_event(1), obs=y)

    def guide(y: Tensor) -> None:
        for name, net in {"climb": climb, "second": second, "first": first}.items():
            pyro.module(name, net)
        with pyro.plate("data", len(y)):
            hidden = climb(y).tanh()
            loc, log_scale = second(hidden).chunk(2, -1)
            z2 = pyro.sample("z2", dist.Normal(loc, log_scale.exp()).to_event(1))
            loc, log_scale = first(torch.cat([hidden, z2], -1)).chunk(2, -1)
            pyro.sample("z1", dist.Normal(loc, log_scale.exp()).to_event(1))

    upper, lower, pixels = double(top), double(bottom), y.double()

    def likelihood(z: Tensor) -> Tensor:
        loc, log_scale = upper(z[..., :1]).chunk(2, -1)
        return bernoulli(pixels, lower(loc + log_scale.exp() * z[..., 1:])).sum(-1)

    return Case(model, guide, (y,), over_normals(likelihood, 2))


@program
def observed_in_part() -> Case:
    """Missing pixels by obs_mask: Pyro adds a latent site for the unmeasured pixels."""
    decoder, encoder = nn.Linear(1, 3), nn.Linear(3, 2)
    y, mask = torch.randn(ROWS, 3), torch.rand(ROWS, 3) < 0.6

    def model(y: Tensor, mask: Tensor) -> None:
        with pyro.plate("data", len(y), dim=-2):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("features", 3, dim=-1):
                pyro.sample("y", dist.Normal(decoder(z), 0.5), obs=y, obs_mask=mask)

    def guide(y: Tensor, mask: Tensor) -> None:
        with pyro.plate("data", len(y), dim=-2):
            loc, log_scale = encoder(y * mask).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()))
            with pyro.plate("features", 3, dim=-1):
                pyro.sample("y_unobserved", dist.Normal(0.0, 1.0).mask(~mask))

    net = double(decoder)
    truth = over_normals(lambda z: (mask * normal(y.double(), net(z), 0.5)).sum(-1), 1, 801)

    def masked() -> Case:
        def model(y: Tensor, mask: Tensor) -> None:
            with pyro.plate("data", len(y)):
                z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
                given = dist.Normal(decoder(z), 0.5).mask(mask.bool()).to_event(1)
                pyro.sample("y", given, obs=y)

        def guide(y: Tensor, mask: Tensor) -> None:
            with pyro.plate("data", len(y)):
                loc, log_scale = encoder(y * mask).chunk(2, -1)
                pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

        return Case(model, guide, (y, mask), truth)

    return Case(model, guide, (y, mask), truth, remedies={"y": masked})


@program
def mixture_vae() -> Case:
    """Mixture VAE: an enumerated cluster and a normal latent within the cluster."""
    locs, decoder, encoder = torch.tensor([-2.0, 0.5, 2.0]), nn.Linear(1, 3), nn.Linear(3, 2)
    y = torch.randn(ROWS, 3)

    @config_enumerate
    def model(y: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(y)):
            cluster = pyro.sample("cluster", dist.Categorical(torch.tensor([0.2, 0.5, 0.3])))
            z = pyro.sample("z", dist.Normal(locs[cluster], 0.5))
            pyro.sample("y", dist.Normal(decoder(z.unsqueeze(-1)), 0.7).to_event(1), obs=y)

    def guide(y: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(y)):
            loc, log_scale = encoder(y).unbind(-1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()))

    net, z = double(decoder), line()
    parts = torch.tensor([0.2, 0.5, 0.3]).double().log() + normal(z, locs.double(), 0.5)
    likelihood = normal(y.double(), net(z).unsqueeze(1), 0.7).sum(-1)
    truth = integral(parts.logsumexp(-1, keepdim=True) + likelihood, z)
    return Case(model, guide, (y,), truth, discrete=True)


def air_likelihood(z: Tensor, y: Tensor, basis: Tensor, present: float) -> Tensor:
    """Log p of data given where objects are, the number of them summed out."""
    parts = z.unsqueeze(-1) * basis.double()  # (points, 1, 2, 3)
    weights = {0: 1 - present, 1: present * (1 - present), 2: present**2}
    terms = [
        torch.tensor(weights[count]).log()
        + normal(y.double(), parts[:, :, :count].sum(2), 0.5).sum(-1)
        for count in range(3)
    ]
    return torch.stack(terms).logsumexp(0)


@program
def air() -> Case:
    """Attend, infer, repeat on vectors: the position of an object is masked if it is absent."""
    net, y = nn.Linear(3, 4), torch.randn(ROWS, 3) + 1
    basis, present = torch.randn(2, 3), 0.6

    @config_enumerate
    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            alive, total = torch.ones(()), torch.zeros(())
            for step in range(2):
                alive = pyro.sample(f"present_{step}", dist.Bernoulli(present * alive))
                where = dist.Normal(0.0, 1.0).mask(alive.bool())
                z = pyro.sample(f"where_{step}", where)
                total = total + (alive * z).unsqueeze(-1) * basis[step]
            pyro.sample("y", dist.Normal(total, 0.5).to_event(1), obs=y)

    def guide(y: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(y)):
            out, alive = net(y), y.new_ones(len(y))
            for step in range(2):
                probs = out[:, step].sigmoid() * alive
                alive = pyro.sample(f"present_{step}", dist.Bernoulli(probs))
                where = dist.Normal(out[:, 2 + step], 0.7).mask(alive.bool())
                pyro.sample(f"where_{step}", where)

    def unmasked() -> Case:
        @config_enumerate
        def model(y: Tensor) -> None:
            with pyro.plate("data", len(y)):
                alive, total = torch.ones(()), torch.zeros(())
                for step in range(2):
                    z = pyro.sample(f"where_{step}", dist.Normal(0.0, 1.0))
                    alive = pyro.sample(f"present_{step}", dist.Bernoulli(present * alive))
                    total = total + (alive * z).unsqueeze(-1) * basis[step]
                pyro.sample("y", dist.Normal(total, 0.5).to_event(1), obs=y)

        def guide(y: Tensor) -> None:
            with pyro.plate("data", len(y)):
                out = net(y)
                for step in range(2):
                    pyro.sample(f"where_{step}", dist.Normal(out[:, 2 + step], 0.7))

        return Case(model, guide, (y,), truth, discrete=True)

    truth = over_normals(lambda z: air_likelihood(z, y, basis, present), 2)
    return Case(model, guide, (y,), truth, remedies={"where_0": unmasked}, discrete=True)


@program
def vae_two_sites() -> Case:
    """Two latent sites, one given the other, and a pyro.deterministic mean of the data."""
    weight, y = torch.randn(2, 3), torch.randn(ROWS, 3)

    def model(y: Tensor) -> None:
        with pyro.plate("cells", y.size(0)):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            b = pyro.sample("b", dist.LogNormal(a / 2, 0.5))
            mean = pyro.deterministic("mean", torch.stack([a, b], -1) @ weight, event_dim=1)
            pyro.sample("y", dist.Normal(mean, 0.6).to_event(1), obs=y)

    net = nn.Linear(3, 4)

    def guide(y: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("cells", y.size(0)):
            out = net(y)
            pyro.sample("a", dist.Normal(out[:, 0], out[:, 1].exp()))
            pyro.sample("b", dist.LogNormal(out[:, 2], out[:, 3].exp()))

    z = plane(2)
    values = torch.stack([z[..., 0], (z[..., 0] / 2 + 0.5 * z[..., 1]).exp()], -1)
    density = normal(z).sum(-1) + normal(y.double(), values @ weight.double(), 0.6).sum(-1)
    return Case(model, guide, (y,), integral(density, z))
