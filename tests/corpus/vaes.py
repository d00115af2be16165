"""Variational autoencoders, supervised, semi-supervised, conditional, laddered, causal."""

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
    """A decoder and an encoder, registered by pyro.module inside functions."""
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
    """Model and guide are bound methods of one nn.Module."""
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
    """A convolutional decoder with view, pictures of three dimensions."""
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
    """The noise is a pyro.param inside the model, the KL annealed by poutine.scale."""
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
    """Poutine.scale around the whole program, by one over the size of the data."""
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
    return replace(whole, remedies={"train it first": trained, **others})


def tied(case: Case) -> Callable[[], Case]:
    """Free parameters per datum, as refusals of Pyro's own guides say."""

    def local() -> Case:
        guide = pv.Guide(case.model, pv.LocalParameters(ROWS), example=case.data)
        return Case(case.model, guide, case.data, case.log_prob)

    return local


def labels(classes: int = 3) -> Tensor:
    """One-hot labels."""
    return nn.functional.one_hot(torch.randint(0, classes, (ROWS,)), classes).float()


class SemiSupervised(nn.Module):
    """Digits and styles, with nets of torch.cat([z, y], -1)."""

    def __init__(self, *, broadcast: bool = False) -> None:
        super().__init__()
        self.decoder, self.classifier = nn.Linear(4, PIXELS), nn.Linear(PIXELS, 3)
        self.encoder = nn.Linear(PIXELS + 3, 2)
        self.broadcast = broadcast

    def cat(self, *parts: Tensor) -> Tensor:
        """Side by side; stretched first, as Pyro's own example does in its MLP."""
        if not self.broadcast:
            return torch.cat(parts, -1)
        shape = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
        return torch.cat([part.expand(*shape, -1) for part in parts], -1)

    def model(self, xs: Tensor, ys: Tensor | None = None) -> None:
        """A label, observed or not, and a style make the pixels."""
        pyro.module("ss_vae", self)
        with pyro.plate("data", xs.size(0)):
            options = {"dtype": xs.dtype, "device": xs.device}
            zeros = torch.zeros(xs.size(0), 1, **options)
            zs = pyro.sample("z", dist.Normal(zeros, torch.ones_like(zeros)).to_event(1))
            prior = torch.ones(xs.size(0), 3, **options) / 3
            ys = pyro.sample("y", dist.OneHotCategorical(prior), obs=ys)
            logits = self.decoder(self.cat(zs, ys))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=xs)

    def guide(self, xs: Tensor, ys: Tensor | None = None) -> None:
        """A classifier and, given its answer, an encoder."""
        with pyro.plate("data", xs.size(0)):
            if ys is None:
                ys = pyro.sample("y", dist.OneHotCategorical(logits=self.classifier(xs)))
            loc, log_scale = self.encoder(self.cat(xs, ys)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    def log_joint(self, xs: Tensor) -> Tensor:
        """Log p(x, y) of every label: `(labels, batch)`."""
        net, x = double(self.decoder), xs.double()

        def of(label: Tensor) -> Tensor:
            def likelihood(z: Tensor) -> Tensor:
                return bernoulli(x, net(torch.cat([z, label.expand(len(z), 1, 3)], -1))).sum(-1)

            return over_normals(likelihood, 1, 401)

        return torch.stack([of(label) for label in torch.eye(3).double()]) - torch.tensor(3.0).log()


@program
def ss_vae_observed() -> Case:
    """Semi-supervised VAE, labels observed: nets of torch.cat([z, y], -1)."""
    both, xs, ys = SemiSupervised(), pictures(), labels()
    truth = both.log_joint(xs)[ys.argmax(-1), torch.arange(ROWS)]
    return Case(both.model, both.guide, (xs, ys), truth)


@program
def ss_vae_enumerated() -> Case:
    """Semi-supervised VAE, labels enumerated, nets that do not broadcast."""
    both, xs = SemiSupervised(), pictures()
    model, truth = config_enumerate(both.model), both.log_joint(xs).logsumexp(0)
    case = Case(model, both.guide, (xs,), truth, discrete=True)
    return replace(case, remedies={"pv.BetaELBO": lambda: replace(case, loss=pv.BetaELBO(1.0))})


@program
def ss_vae_broadcast() -> Case:
    """Semi-supervised VAE, labels enumerated in the guide, nets that broadcast."""
    both, xs = SemiSupervised(broadcast=True), pictures()
    guide = config_enumerate(both.guide, "parallel", expand=True)
    truth = both.log_joint(xs).logsumexp(0)

    def alone(xs: Tensor) -> None:
        with pyro.plate("data", xs.size(0)):
            loc, log_scale = both.encoder(both.cat(xs, xs.new_zeros(3))).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    def summed_out() -> Case:
        return Case(both.model, alone, (xs,), truth, discrete=True)

    remedies = {"leave it out": summed_out}
    return Case(both.model, guide, (xs,), truth, discrete=True, remedies=remedies)


@program
def cvae() -> Case:
    """Conditional VAE: a prior net of the covariates, a generation net of both."""
    prior, generation, recognition = nn.Linear(2, 2), nn.Linear(3, PIXELS), nn.Linear(7, 2)
    xs, ys = torch.randn(ROWS, 2), pictures()

    def model(xs: Tensor, ys: Tensor | None = None) -> None:
        pyro.module("prior", prior)
        pyro.module("generation", generation)
        with pyro.plate("data"):
            loc, log_scale = prior(xs).chunk(2, -1)
            zs = pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))
            logits = generation(torch.cat([zs, xs], -1))
            pyro.sample("y", dist.Bernoulli(logits=logits).to_event(1), obs=ys)

    def guide(xs: Tensor, ys: Tensor | None = None) -> None:
        with pyro.plate("data"):
            if ys is None:
                loc, log_scale = prior(xs).chunk(2, -1)
            else:
                pyro.module("recognition", recognition)
                loc, log_scale = recognition(torch.cat([xs, ys], -1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    first, second, x = double(prior), double(generation), xs.double()

    def likelihood(noise: Tensor) -> Tensor:
        loc, log_scale = first(x).chunk(2, -1)
        z = loc + log_scale.exp() * noise
        return bernoulli(ys.double(), second(torch.cat([z, x.expand(len(z), -1, -1)], -1))).sum(-1)

    def sized() -> Case:
        def model(xs: Tensor, ys: Tensor) -> None:
            with pyro.plate("data", len(xs)):
                loc, log_scale = prior(xs).chunk(2, -1)
                zs = pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))
                logits = generation(torch.cat([zs, xs], -1))
                pyro.sample("y", dist.Bernoulli(logits=logits).to_event(1), obs=ys)

        def guide(xs: Tensor, ys: Tensor) -> None:
            with pyro.plate("data", len(xs)):
                loc, log_scale = recognition(torch.cat([xs, ys], -1)).chunk(2, -1)
                pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

        return Case(model, guide, (xs, ys), truth)

    truth = over_normals(likelihood, 1, 801)
    return Case(model, guide, (xs, ys), truth, remedies={"data": sized})


@program
def cevae() -> Case:
    """Causal effect VAE: the guide observes treatment and outcome as auxiliary sites."""
    covariates, propensity, outcome = nn.Linear(1, 3), nn.Linear(1, 1), nn.Linear(2, 1)
    treated, effect, encoder = nn.Linear(3, 1), nn.Linear(4, 1), nn.Linear(5, 2)
    x, t, y = torch.randn(ROWS, 3), torch.randint(0, 2, (ROWS,)).float(), torch.randn(ROWS)

    def model(x: Tensor, t: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([1]).to_event(1))
            pyro.sample("x", dist.Normal(covariates(z), 1.0).to_event(1), obs=x)
            t = pyro.sample("t", dist.Bernoulli(logits=propensity(z).squeeze(-1)), obs=t)
            mean = outcome(torch.cat([z, t.unsqueeze(-1)], -1)).squeeze(-1)
            pyro.sample("y", dist.Normal(mean, 0.7), obs=y)

    def guide(x: Tensor, t: Tensor, y: Tensor) -> None:
        auxiliary = {"is_auxiliary": True}
        with pyro.plate("data", len(x)):
            chosen = dist.Bernoulli(logits=treated(x).squeeze(-1))
            t = pyro.sample("t", chosen, obs=t, infer=auxiliary)
            mean = effect(torch.cat([x, t.unsqueeze(-1)], -1)).squeeze(-1)
            y = pyro.sample("y", dist.Normal(mean, 1.0), obs=y, infer=auxiliary)
            features = torch.cat([x, t.unsqueeze(-1), y.unsqueeze(-1)], -1)
            loc, log_scale = encoder(features).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    nets = [double(net) for net in (covariates, propensity, outcome)]

    def likelihood(z: Tensor) -> Tensor:
        treatment = t.double().view(1, ROWS, 1)
        pair = torch.cat([z.expand(-1, ROWS, 1), treatment.expand(len(z), -1, -1)], -1)
        return (
            normal(x.double(), nets[0](z)).sum(-1)
            + bernoulli(t.double(), nets[1](z).squeeze(-1))
            + normal(y.double(), nets[2](pair).squeeze(-1), 0.7)
        )

    return Case(model, guide, (x, t, y), over_normals(likelihood, 1, 801))


class ScANVI(nn.Module):
    """Two layers of latents and a label between them; a classifier's loss in the guide."""

    def __init__(self) -> None:
        super().__init__()
        self.middle, self.decoder = nn.Linear(4, 2), nn.Linear(1, PIXELS)
        self.lower, self.upper = nn.Linear(PIXELS, 2), nn.Linear(4, 2)
        self.classifier = nn.Linear(1, 3)

    def model(self, x: Tensor, y: Tensor | None = None) -> None:
        """A cell's state, its type, its expression."""
        pyro.module("scanvi", self)
        with pyro.plate("batch", len(x)):
            z1 = pyro.sample("z1", dist.Normal(0, x.new_ones(1)).to_event(1))
            y = pyro.sample("y", dist.OneHotCategorical(logits=x.new_zeros(3)), obs=y)
            loc, log_scale = self.middle(torch.cat([z1, y], -1)).chunk(2, -1)
            z2 = pyro.sample("z2", dist.Normal(loc, log_scale.exp()).to_event(1))
            pyro.sample("x", dist.Poisson(self.decoder(z2).exp()).to_event(1), obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        """From the bottom up; the loss of the classifier where labels are known."""
        pyro.module("scanvi", self)
        with pyro.plate("batch", len(x)):
            loc, log_scale = self.lower(x).chunk(2, -1)
            z2 = pyro.sample("z2", dist.Normal(loc, log_scale.exp()).to_event(1))
            label = dist.OneHotCategorical(logits=self.classifier(z2))
            if y is None:
                y = pyro.sample("y", label)
            else:
                loss = -0.5 * label.log_prob(y)
                pyro.factor("classification_loss", -loss, has_rsample=False)
            loc, log_scale = self.upper(torch.cat([z2, y], -1)).chunk(2, -1)
            pyro.sample("z1", dist.Normal(loc, log_scale.exp()).to_event(1))

    def log_joint(self, x: Tensor) -> Tensor:
        """Log p(x, y) of every label: `(labels, batch)`."""
        middle, decoder, counts = double(self.middle), double(self.decoder), x.double()

        def of(label: Tensor) -> Tensor:
            def likelihood(z: Tensor) -> Tensor:
                pair = torch.cat([z[..., :1], label.expand(len(z), 1, 3)], -1)
                loc, log_scale = middle(pair).chunk(2, -1)
                log_rate = decoder(loc + log_scale.exp() * z[..., 1:])
                return (counts * log_rate - log_rate.exp() - (counts + 1).lgamma()).sum(-1)

            return over_normals(likelihood, 2)

        return torch.stack([of(label) for label in torch.eye(3).double()]) - torch.tensor(3.0).log()


@program
def scanvi_labelled() -> Case:
    """ScANVI with labels: pyro.factor of a classifier in the guide."""
    both, x, y = ScANVI(), torch.randint(0, 4, (ROWS, PIXELS)).float(), labels()
    truth = both.log_joint(x)[y.argmax(-1), torch.arange(ROWS)]
    return Case(both.model, both.guide, (x, y), truth)


@program
def scanvi_unlabelled() -> Case:
    """ScANVI without labels: the guide samples the label, nets of torch.cat([z, y], -1)."""
    both, x = ScANVI(), torch.randint(0, 4, (ROWS, PIXELS)).float()
    return Case(both.model, both.guide, (x,), both.log_joint(x).logsumexp(0))


@program
def ladder() -> Case:
    """Ladder VAE: two layers, each the parent of the next; the guide shares its climb."""
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
    """Missing pixels by obs_mask: what was not measured is a latent site."""
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
    """A categorical cluster and a normal within it: mixture VAE, enumerated."""
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
    """Attend, infer, repeat without pictures: presence of objects, positions masked by it."""
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
    """A decoder of two latents, given as a grid check: plates named by the author."""
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
