"""Bernoulli regression over many data sets: how many need more than the amortized posterior."""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.evidence import LadderMarginal, Rung

from .record import ADAM, Claim, Finding

OBSERVATIONS, COEFFICIENTS = 50, 4
CLAIM = Claim(
    title="For most data sets the amortized posterior of a regression is accepted; few need chains",
    source=(
        "Li, Vehtari, Bürkner, Radev, Acerbi & Schmitt, 2026: Amortized Bayesian Workflow "
        "(Bernoulli regression: of 10,000 data sets 9,519 were accepted from the amortized "
        "posterior, 425 more by importance sampling, 56 by chains)"
    ),
    figures="Quoted; only the abstract of the paper could be read.",
    setting=(
        f"Logistic regression with a fixed design of {OBSERVATIONS} observations, an intercept "
        f"and {COEFFICIENTS - 1} slopes with prior N(0, I). One datum is a whole data set. An "
        "encoder with layers of 64 units gives a full-rank normal q and is trained for 60 epochs "
        "on 4,000 simulated data sets. `pv.Tightest(2_000)` is applied to 200 new data sets. It "
        "tries importance sampling from the encoder's q, importance sampling from a fitted q, "
        "and tempered chains. The source has another design and other diagnostics."
    ),
    criterion=(
        "More than half of the data sets are accepted from the amortized posterior, more than "
        "95% are accepted without chains, and every data set is accepted by some estimator. The "
        "shares depend on how well the encoder was trained, so they are not compared with the "
        "published ones."
    ),
)


def design() -> Tensor:
    """An intercept and standard normal covariates, the same for every data set."""
    draw = torch.Generator().manual_seed(0)
    covariates = torch.randn(OBSERVATIONS, COEFFICIENTS - 1, generator=draw)
    return torch.cat([torch.ones(OBSERVATIONS, 1), covariates], dim=1)


def model(y: Tensor) -> None:
    """A data set of zeros and ones in a row."""
    with pyro.plate("data sets", len(y)):
        zero = y.new_zeros(len(y), COEFFICIENTS)
        beta = pyro.sample("beta", dist.Normal(zero, 1.0).to_event(1))
        pyro.sample("y", dist.Bernoulli(logits=beta @ design().to(y).mT).to_event(1), obs=y)


def simulated(count: int, seed: int) -> Tensor:
    """Data sets from the prior."""
    draw = torch.Generator().manual_seed(seed)
    beta = torch.randn(count, COEFFICIENTS, generator=draw)
    rates = (beta @ design().mT).sigmoid()
    return torch.bernoulli(rates, generator=draw)


def findings(*, smoke: bool = False) -> list[Finding]:
    """Shares of new data sets by the rung that settled them."""
    count, epochs, new = (100, 2, 4) if smoke else (4_000, 60, 200)
    y = simulated(count, 1)
    torch.manual_seed(0)
    net = pv.nets.MLPEncoder(OBSERVATIONS, hidden=(64, 64))
    guide = pv.Guide(model, pv.Encoder(net), pv.FullRankNormal(), example=y[:2])
    pv.fit(
        model,
        guide,
        y,
        num_epochs=epochs,
        batch_size=100,
        train_model=False,
        optimizer=ADAM,
        progress=False,
    )
    ladder = pv.Tightest(200 if smoke else 2_000)
    found = pv.log_marginal_likelihood(model, guide, simulated(new, 2), ladder, progress=False)
    assert isinstance(found, LadderMarginal)
    shares = found.rung_shares
    fitted = sum(shares.get(rung, 0.0) for rung in (Rung.FITTED, Rung.STUDENT, Rung.MIXTURE))
    own, chains = shares.get(Rung.GUIDE, 0.0), shares.get(Rung.TEMPERED, 0.0)
    return [
        Finding(
            "data sets accepted from the amortized posterior", "95.2%", f"{own:.1%}", own > 0.5
        ),
        Finding(
            "data sets accepted by importance sampling from a fitted q", "4.2%", f"{fitted:.1%}"
        ),
        Finding("data sets accepted by chains", "0.6%", f"{chains:.1%}", own + fitted > 0.95),
        Finding(
            "data sets accepted by no estimator",
            "0%",
            f"{shares.get(Rung.NONE, 0.0):.1%}",
            Rung.NONE not in shares,
        ),
    ]
