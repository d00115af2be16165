"""Autoencoders with classes or causes beside the latents: semi-supervised, conditional, causal."""

# mypy: disable-error-code="call-overload,arg-type,untyped-decorator"

from dataclasses import replace

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import config_enumerate
from torch import Tensor, nn

import pyro_vae as pv
from tests.corpus.case import (
    Case,
    bernoulli,
    double,
    normal,
    over_normals,
    program,
)
from tests.corpus.vaes import PIXELS, ROWS, pictures


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
    """Semi-supervised VAE with observed labels; its networks take torch.cat([z, y], -1)."""
    both, xs, ys = SemiSupervised(), pictures(), labels()
    truth = both.log_joint(xs)[ys.argmax(-1), torch.arange(ROWS)]
    return Case(both.model, both.guide, (xs, ys), truth)


@program
def ss_vae_enumerated() -> Case:
    """Semi-supervised VAE with enumerated labels; its networks do not broadcast."""
    both, xs = SemiSupervised(), pictures()
    model, truth = config_enumerate(both.model), both.log_joint(xs).logsumexp(0)
    case = Case(model, both.guide, (xs,), truth, discrete=True)
    return replace(case, remedies={"pv.BetaELBO": lambda: replace(case, loss=pv.BetaELBO(1.0))})


@program
def ss_vae_broadcast() -> Case:
    """Semi-supervised VAE with labels enumerated in the guide; its networks broadcast."""
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
    """Conditional VAE: the prior depends on covariates, the decoder on covariates and latents."""
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
    """Causal effect VAE: the guide has treatment and outcome as observed auxiliary sites."""
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
    """ScANVI with labels: the guide adds the loss of its classifier by pyro.factor."""
    both, x, y = ScANVI(), torch.randint(0, 4, (ROWS, PIXELS)).float(), labels()
    truth = both.log_joint(x)[y.argmax(-1), torch.arange(ROWS)]
    return Case(both.model, both.guide, (x, y), truth)


@program
def scanvi_unlabelled() -> Case:
    """ScANVI without labels: the guide samples the label."""
    both, x = ScANVI(), torch.randint(0, 4, (ROWS, PIXELS)).float()
    return Case(both.model, both.guide, (x,), both.log_joint(x).logsumexp(0))
