"""Topics, cells, players, patients: counts, simplexes, positive supports, masks."""

# Programs as their authors write them, of which Pyro declares no types.
# mypy: disable-error-code="call-overload,arg-type,untyped-decorator"

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from torch import Tensor, nn

from tests.corpus.case import (
    Case,
    bernoulli,
    double,
    gamma,
    integral,
    line,
    multinomial,
    normal,
    over_normals,
    poisson,
    program,
)

ROWS = 4
POSITIVE = dist.constraints.positive


@program
def prod_lda() -> Case:
    """ProdLDA: logistic-normal topic shares, a decoder with batch norm, multinomial word counts."""
    words = 5
    beta, norm = nn.Linear(2, words, bias=False), nn.BatchNorm1d(words, affine=False)
    encoder, docs = nn.Linear(words, 4), torch.randint(0, 4, (ROWS, words)).float()

    def model(docs: Tensor) -> None:
        pyro.module("beta", beta)
        pyro.module("norm", norm)
        with pyro.plate("documents", docs.shape[0]):
            loc = docs.new_zeros((docs.shape[0], 2))
            logtheta = pyro.sample("logtheta", dist.Normal(loc, torch.ones_like(loc)).to_event(1))
            probs = norm(beta(logtheta.softmax(-1))).softmax(-1)
            total = int(docs.sum(-1).max())
            pyro.sample("obs", dist.Multinomial(total, probs), obs=docs)

    def guide(docs: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("documents", docs.shape[0]):
            loc, log_scale = encoder(docs).chunk(2, -1)
            pyro.sample("logtheta", dist.Normal(loc, log_scale.exp()).to_event(1))

    net, scale = double(beta), (1 + norm.eps) ** -0.5  # in eval mode, before any batch

    def likelihood(z: Tensor) -> Tensor:
        return multinomial(docs.double(), (net(z.softmax(-1)) * scale).softmax(-1))

    return Case(model, guide, (docs,), over_normals(likelihood, 2))


@program
def lda() -> Case:
    """Latent Dirichlet allocation: global topics, a plate of words, enumerated word topics."""
    vocabulary, length = 4, 5
    docs = torch.randint(0, vocabulary, (ROWS, length))
    topics = torch.tensor([[0.6, 0.2, 0.1, 0.1], [0.1, 0.2, 0.3, 0.4]])
    net = nn.Linear(length, 2)

    @config_enumerate
    def model(docs: Tensor) -> None:
        with pyro.plate("topics", 2):
            topic_words = pyro.sample("topic_words", dist.Dirichlet(torch.ones(vocabulary)))
        with pyro.plate("documents", len(docs), dim=-1):
            doc_topics = pyro.sample("doc_topics", dist.Dirichlet(torch.tensor([1.5, 1.0])))
            with pyro.plate("words", length, dim=-2):
                word_topics = pyro.sample("word_topics", dist.Categorical(doc_topics))
                pyro.sample("doc_words", dist.Categorical(topic_words[word_topics]), obs=docs.T)

    def guide(docs: Tensor) -> None:
        concentration = pyro.param("topic_concentration", 10 * topics, constraint=POSITIVE)
        with pyro.plate("topics", 2):
            pyro.sample("topic_words", dist.Dirichlet(concentration))
        pyro.module("net", net)
        with pyro.plate("documents", len(docs), dim=-1):
            pyro.sample("doc_topics", dist.Dirichlet(net(docs.float() / 4).exp() + 1))

    t = line(-30, 30, 1201)
    share = torch.cat([t.sigmoid(), (-t).sigmoid()], -1)
    prior = 0.5 * share[:, :1].log() + torch.tensor(1.5).double().log()  # Beta(1.5, 1)
    likelihood = (share @ topics.double())[:, docs].log().sum(-1)
    density = prior + share.log().sum(-1, keepdim=True) + likelihood
    return Case(model, guide, (docs,), integral(density, t), {"topic_words": topics}, discrete=True)


@program
def amortized_lda() -> Case:
    """Amortized LDA as in scvi-tools: logistic-normal topics, the KL scaled by poutine.scale."""
    genes = 4
    counts, net = torch.randint(0, 5, (ROWS, genes)).float(), nn.Linear(genes, 4)
    log_topics = torch.randn(2, genes)

    def model(x: Tensor, library: Tensor) -> None:
        with pyro.plate("topics", 2), poutine.scale(None, 0.5):
            prior = dist.Normal(torch.zeros(genes), 1.0).to_event(1)
            feature = pyro.sample("log_topic_feature_dist", prior).softmax(-1)
        with pyro.plate("cells", x.shape[0]):
            with poutine.scale(None, 0.5):
                log_topic = dist.Normal(torch.zeros(2), 1.0).to_event(1)
                share = pyro.sample("log_cell_topic_dist", log_topic).softmax(-1)
            most = int(library.max().item())
            pyro.sample("feature_counts", dist.Multinomial(most, share @ feature), obs=x)

    def guide(x: Tensor, library: Tensor) -> None:
        loc = pyro.param("loc", log_topics)
        scale = pyro.param("scale", 0.1 * torch.ones(2, genes), constraint=POSITIVE)
        with pyro.plate("topics", 2), poutine.scale(None, 0.5):
            pyro.sample("log_topic_feature_dist", dist.Normal(loc, scale).to_event(1))
        pyro.module("net", net)
        with pyro.plate("cells", x.shape[0]), poutine.scale(None, 0.5):
            mean, log_scale = net(x.log1p()).chunk(2, -1)
            pyro.sample("log_cell_topic_dist", dist.Normal(mean, log_scale.exp()).to_event(1))

    def likelihood(z: Tensor) -> Tensor:
        return multinomial(counts.double(), z.softmax(-1) @ log_topics.double().softmax(-1))

    data = (counts, counts.sum(-1))
    given = {"log_topic_feature_dist": log_topics}
    return Case(model, guide, data, over_normals(likelihood, 2), given)


def abundances(counts: Tensor, expected: Tensor) -> Tensor:
    """Log evidence of counts that scale with a gamma abundance of each row, by quadrature."""
    t = line(-14, 8, 1201)
    rate = (t.exp() * expected.double()).unsqueeze(1)
    y, alpha = counts.double(), torch.tensor(5.0).double()
    counted = (
        (y + alpha).lgamma() - alpha.lgamma() - (y + 1).lgamma()
        + alpha * (alpha / (alpha + rate)).log() + y * (rate / (alpha + rate)).log()
    ).sum(-1)  # fmt: skip
    return integral(gamma(t.exp(), 2.0, 1.0) + t + counted, t)


@program
def cell2location() -> Case:
    """Cell2location: a plate of observations at dim -2, one of genes at -1, gamma abundances."""
    genes = 3
    counts, state = torch.randint(0, 6, (ROWS, genes)).float(), torch.rand(genes) + 0.5
    gain, net = torch.tensor([0.8, 1.0, 1.3]), nn.Linear(genes, 2)

    def model(x: Tensor) -> None:
        with pyro.plate("gene", genes, dim=-1):
            m_g = pyro.sample("m_g", dist.Gamma(9.0, 9.0))
        obs_plate = pyro.plate("obs_plate", size=len(x), dim=-2)
        with obs_plate:
            w_sf = pyro.sample("w_sf", dist.Gamma(2.0, torch.ones(1, 1)))
            rate = w_sf * state * m_g
            pyro.sample("data", dist.GammaPoisson(5.0, 5.0 / rate).to_event(0), obs=x)

    def guide(x: Tensor) -> None:
        loc = pyro.param("m_loc", gain.log())
        with pyro.plate("gene", genes, dim=-1):
            pyro.sample("m_g", dist.LogNormal(loc, 0.05))
        pyro.module("net", net)
        with pyro.plate("obs_plate", size=len(x), dim=-2):
            mean, log_scale = net(x.log1p()).chunk(2, -1)
            pyro.sample("w_sf", dist.LogNormal(mean, log_scale.exp()))

    truth = abundances(counts, state * gain)

    def named() -> Case:
        def model(x: Tensor) -> None:
            m_g = pyro.sample("m_g", dist.Gamma(9.0, 9.0).expand([genes]).to_event(1))
            with pyro.plate("obs_plate", len(x)):
                w_sf = pyro.sample("w_sf", dist.Gamma(2.0, 1.0))
                rate = w_sf.unsqueeze(-1) * state * m_g
                pyro.sample("data", dist.GammaPoisson(5.0, 5.0 / rate).to_event(1), obs=x)

        def guide(x: Tensor) -> None:
            loc = pyro.param("m_loc", gain.log())
            pyro.sample("m_g", dist.LogNormal(loc, 0.05).to_event(1))
            with pyro.plate("obs_plate", len(x)):
                mean, log_scale = net(x.log1p()).unbind(-1)
                pyro.sample("w_sf", dist.LogNormal(mean, log_scale.exp()))

        return Case(model, guide, (counts,), truth, {"m_g": gain})

    return Case(model, guide, (counts,), truth, {"m_g": gain}, remedies={"data": named})


@program
def sparse_gamma() -> Case:
    """Sparse gamma deep exponential family, one layer: local gammas, global gamma weights."""
    weights, y = torch.tensor([[0.5, 2.0, 1.0]]), torch.randint(0, 4, (ROWS, 3)).float()
    net = nn.Linear(3, 2)

    def model(y: Tensor) -> None:
        with pyro.plate("w_plate", 3):
            w = pyro.sample("w", dist.Gamma(0.5, 0.5))
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Gamma(0.3, 0.3).expand([1]).to_event(1))
            pyro.sample("y", dist.Poisson(z * w).to_event(1), obs=y)

    def guide(y: Tensor) -> None:
        concentration = pyro.param("w_concentration", 20 * weights[0], constraint=POSITIVE)
        with pyro.plate("w_plate", 3):
            pyro.sample("w", dist.Gamma(concentration, 20.0))
        pyro.module("net", net)
        with pyro.plate("data", len(y)):
            shape, mean = nn.functional.softplus(net(y)).chunk(2, -1)
            pyro.sample("z", dist.Gamma(shape, shape / mean).to_event(1))

    t = line(-120, 8, 4001)
    likelihood = poisson(y.double(), (t.exp() * weights.double()).unsqueeze(1)).sum(-1)
    truth = integral(gamma(t.exp(), 0.3, 0.3) + t + likelihood, t)
    return Case(model, guide, (y,), truth, {"w": weights[0]})


@program
def baseball() -> Case:
    """Baseball, partially pooled: hit probabilities with a beta prior; m and kappa are global."""
    hits, at_bats = torch.tensor([18.0, 12.0, 9.0, 14.0]), 45.0
    m, kappa = torch.tensor(0.27), torch.tensor(30.0)
    net = nn.Linear(1, 2)

    def model(hits: Tensor) -> None:
        m = pyro.sample("m", dist.Uniform(0.0, 1.0))
        kappa = pyro.sample("kappa", dist.Pareto(1.0, 1.5))
        with pyro.plate("num_players", len(hits)):
            phi = pyro.sample("phi", dist.Beta(m * kappa, (1 - m) * kappa))
            pyro.sample("obs", dist.Binomial(at_bats, phi), obs=hits)

    def guide(hits: Tensor) -> None:
        share = pyro.param("share", torch.tensor(0.27), constraint=dist.constraints.unit_interval)
        pyro.sample("m", dist.Beta(100 * share, 100 * (1 - share)))
        tail = dist.transforms.AffineTransform(1.0, 1.0)
        pyro.sample("kappa", dist.TransformedDistribution(dist.LogNormal(3.3, 0.1), [tail]))
        pyro.module("net", net)
        with pyro.plate("num_players", len(hits)):
            out = net(hits.unsqueeze(-1) / at_bats)
            a, b = (out + torch.tensor([2.5, 3.5])).exp().unbind(-1)
            pyro.sample("phi", dist.Beta(a, b))

    a, b, y, n = (value.double() for value in (m * kappa, (1 - m) * kappa, hits, at_bats + 0 * m))
    truth = (
        (n + 1).lgamma() - (y + 1).lgamma() - (n - y + 1).lgamma()
        + (a + y).lgamma() + (b + n - y).lgamma() - (a + b + n).lgamma()
        + (a + b).lgamma() - a.lgamma() - b.lgamma()
    )  # fmt: skip
    return Case(model, guide, (hits,), truth, {"m": m, "kappa": kappa})


@program
def baseball_logits() -> Case:
    """Baseball on the logit scale: a hierarchical normal prior and binomial hits."""
    hits, net = torch.tensor([18.0, 12.0, 9.0, 14.0]), nn.Linear(1, 2)
    given = {"loc": torch.tensor(-1.0), "scale": torch.tensor(0.4)}

    def model(hits: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(-1.0, 1.0))
        scale = pyro.sample("scale", dist.HalfCauchy(1.0))
        with pyro.plate("num_players", len(hits)):
            alpha = pyro.sample("alpha", dist.Normal(loc, scale))
            pyro.sample("obs", dist.Binomial(45, logits=alpha), obs=hits)

    def guide(hits: Tensor) -> None:
        mean = pyro.param("mean", torch.tensor([-1.0, -0.9]))
        pyro.sample("loc", dist.Normal(mean[0], 0.1))
        pyro.sample("scale", dist.LogNormal(mean[1], 0.1))
        pyro.module("net", net)
        with pyro.plate("num_players", len(hits)):
            shift, log_scale = net(hits.unsqueeze(-1) / 45).unbind(-1)
            pyro.sample("alpha", dist.Normal(shift - 1, 0.3 * log_scale.exp()))

    t, y = line(-8, 6), hits.double()
    chance = y * t - 45 * nn.functional.softplus(t)
    counted = torch.tensor(46.0).double().lgamma() - (y + 1).lgamma() - (46 - y).lgamma()
    truth = integral(normal(t, -1.0, 0.4) + chance + counted, t)
    return Case(model, guide, (hits,), truth, given)


@program
def zero_inflated() -> Case:
    """Zero-inflated Poisson counts with a local log rate."""
    y, net = torch.tensor([[0.0, 0.0, 1.0], [2.0, 0.0, 3.0], [0.0, 0.0, 0.0]]), nn.Linear(3, 2)

    def model(y: Tensor) -> None:
        gate = pyro.param("gate", torch.tensor(0.3), constraint=dist.constraints.unit_interval)
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            rate = z.exp().unsqueeze(-1).expand(-1, 3)
            pyro.sample("y", dist.ZeroInflatedPoisson(rate, gate=gate).to_event(1), obs=y)

    def guide(y: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(y)):
            loc, log_scale = net(y).unbind(-1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()))

    def likelihood(z: Tensor) -> Tensor:
        counted = 0.7 * poisson(y.double(), z.exp()).exp()
        return torch.where(y == 0, 0.3 + counted, counted).log().sum(-1)

    return Case(model, guide, (y,), over_normals(likelihood, 1, 801))


@program
def hurdle() -> Case:
    """Hurdle model: whether an amount is positive; if it is not, poutine.mask hides the amount."""
    y, net = torch.tensor([0.0, 1.3, 0.4, 0.0]), nn.Linear(1, 2)

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("any", dist.Bernoulli(logits=z), obs=(y > 0).float())
            with poutine.mask(mask=y > 0):
                amount = y.clamp(min=1e-3)
                pyro.sample("amount", dist.LogNormal(z / 2, 0.5), obs=amount)

    def guide(y: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(y)):
            loc, log_scale = net(y.unsqueeze(-1)).unbind(-1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()))

    def likelihood(z: Tensor) -> Tensor:
        z, some = z.squeeze(-1), (y > 0).double()
        log_amount = y.double().clamp(min=1e-3).log()
        return bernoulli(some, z) + some * (normal(log_amount, z / 2, 0.5) - log_amount)

    return Case(model, guide, (y,), over_normals(likelihood, 1, 801))


@program
def censored() -> Case:
    """Censored survival with a gamma frailty: poutine.mask separates deaths from censored times."""
    times, event = torch.tensor([0.4, 2.0, 1.1, 3.0]), torch.tensor([1.0, 0.0, 1.0, 0.0])
    net = nn.Linear(2, 2)

    def model(times: Tensor, event: Tensor) -> None:
        with pyro.plate("patients", len(times)):
            frailty = pyro.sample("frailty", dist.Gamma(2.0, 2.0))
            with poutine.mask(mask=event.bool()):
                pyro.sample("death", dist.Exponential(frailty), obs=times)
            with poutine.mask(mask=~event.bool()):
                alive = (-frailty * times).exp()
                pyro.sample("alive", dist.Bernoulli(alive), obs=torch.ones_like(times))

    def guide(times: Tensor, event: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("patients", len(times)):
            a, b = net(torch.stack([times, event], -1)).exp().unbind(-1)
            pyro.sample("frailty", dist.Gamma(1 + a, 1 + b))

    t, d = times.double(), event.double()  # the mean of frailty^d exp(-frailty t) under Gamma(2, 2)
    truth = d * torch.tensor(2.0).double().log() + 2 * (2 / (2 + t)).log() - d * (2 + t).log()
    return Case(model, guide, (times, event), truth)


@program
def factored() -> Case:
    """Censored survival with a gamma frailty: one pyro.factor holds the whole likelihood."""
    case = censored()

    def model(times: Tensor, event: Tensor) -> None:
        with pyro.plate("patients", len(times)):
            frailty = pyro.sample("frailty", dist.Gamma(2.0, 2.0))
            pyro.factor("likelihood", event * frailty.log() - frailty * times)

    def observing() -> Case:
        def model(times: Tensor, event: Tensor) -> None:
            with pyro.plate("patients", len(times)):
                frailty = pyro.sample("frailty", dist.Gamma(2.0, 2.0))
                log_factor = event * frailty.log() - frailty * times
                pyro.sample("likelihood", dist.Unit(log_factor), obs=times.new_empty(0))

        return Case(model, case.guide, case.data, case.log_prob)

    return Case(model, case.guide, case.data, case.log_prob, remedies={"likelihood": observing})


@program
def dirichlet_multinomial() -> Case:
    """Dirichlet-multinomial: latent category shares on a simplex, observed counts."""
    counts, net = torch.randint(0, 6, (ROWS, 3)).float(), nn.Linear(3, 3)
    prior = torch.tensor([2.0, 3.0, 1.5])

    def model(counts: Tensor) -> None:
        with pyro.plate("data", len(counts)):
            share = pyro.sample("share", dist.Dirichlet(prior))
            pyro.sample("counts", dist.Multinomial(30, share, validate_args=False), obs=counts)

    def guide(counts: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(counts)):
            pyro.sample("share", dist.Dirichlet(1 + net(counts).exp().clamp(max=30.0)))

    a, y = prior.double(), counts.double()
    truth = (
        (y.sum(-1) + 1).lgamma() - (y + 1).lgamma().sum(-1)
        + a.sum().lgamma() - (a.sum() + y.sum(-1)).lgamma()
        + ((a + y).lgamma() - a.lgamma()).sum(-1)
    )  # fmt: skip
    return Case(model, guide, (counts,), truth)


@program
def simplex_weights() -> Case:
    """Mixture of two known components with latent weights and a sparse Dirichlet prior."""
    y, net = torch.randn(ROWS, 3) * 2, nn.Linear(3, 2)
    prior, locs = torch.tensor([0.4, 0.6]), torch.tensor([-1.0, 2.0])

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            weights = pyro.sample("weights", dist.Dirichlet(prior))
            mixing = dist.Categorical(weights.unsqueeze(-2).expand(-1, 3, -1))
            parts = dist.Normal(locs.expand(3, 2), 1.0)
            pyro.sample("y", dist.MixtureSameFamily(mixing, parts).to_event(1), obs=y)

    def guide(y: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(y)):
            pyro.sample("weights", dist.Dirichlet(0.5 + net(y).exp()))

    t = line(-90, 90, 4501)
    share = torch.cat([nn.functional.logsigmoid(t), nn.functional.logsigmoid(-t)], -1)
    a = prior.double()
    density = (a * share).sum(-1, keepdim=True) + a.sum().lgamma() - a.lgamma().sum()
    parts = normal(y.double().unsqueeze(-1), locs.double(), 1.0)
    mixed = (share.view(-1, 1, 1, 2) + parts).logsumexp(-1).sum(-1)
    return Case(model, guide, (y,), integral(density + mixed, t))
