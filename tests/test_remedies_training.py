"""What refusals of training say to write runs, and is right: objectives, and guides tied to rows.

As in `test_remedies`, z ~ N(0, 1) and y ~ N(z, 1): log p(y) is known, and so is the posterior. A
row has the words of the refusal, the call that is refused, and the call that it says to make.
"""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, JitTrace_ELBO, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal, AutoNormalMessenger
from pyro.optim import Adam  # type: ignore[attr-defined]
from torch import Tensor

import pyro_vae as pv
from tests.helpers.remedies import (
    SD,
    Remedy,
    Y,
    evidence,
    exact,
    fit,
    follow,
    global_guide,
    hierarchy,
    of_all_rows,
    positive,
    table,
    trained,
)
from tests.helpers.remedies import location as model


def fitted(program: Any, guide: Any, data: Any = Y, **more: Any) -> Any:
    """Log p after an epoch in which the model, which has no parameters, stays as it is."""
    fit(program, guide, data, **more)
    return evidence(program, guide, data=data)


def tightest_after(program: Any, guide: Any, **more: Any) -> Any:
    """The same by the tightest estimate, for guides that an epoch leaves far from the posterior."""
    fit(program, guide, **more)
    return evidence(program, guide, pv.Tightest())


def kinds(y: Tensor) -> None:
    """A kind that says nothing of y."""
    with pyro.plate("data", len(y)):
        pyro.sample("kind", dist.Bernoulli(0.3))
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def of_kinds(y: Tensor) -> None:
    """A guide that draws the kind, too."""
    share = pyro.param("share", torch.tensor(0.3), constraint=dist.constraints.unit_interval)
    with pyro.plate("data", len(y)):
        pyro.sample("kind", dist.Bernoulli(share.expand(len(y))))
        pyro.sample("z", dist.Normal(y / 2, SD))


def two_scales(y: Tensor) -> None:
    """The latent counts half in training."""
    with pyro.plate("data", len(y)):
        with poutine.scale(scale=0.5):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def in_order(y: Tensor) -> None:
    """The posterior, in one parameter for all rows in order."""
    loc = pyro.param("loc", lambda: Y / 2)
    with pyro.plate("data", len(y)):
        pyro.sample("z", dist.Normal(loc, SD))


def by_index(y: Tensor) -> None:
    """The same; the plate says which entries belong to the rows."""
    loc = pyro.param("loc", lambda: Y / 2)
    with pyro.plate("data", len(y)) as i:
        pyro.sample("z", dist.Normal(loc[i], SD))


def loss_of_particles(**options: Any) -> None:
    """The loss of Pyro of two particles under a map that uses the model at its shared sites."""
    guide = pv.Guide(hierarchy, pv.Refined(pv.GlobalParameters(), steps=1), example=Y)
    elbo = Trace_ELBO(num_particles=2, max_plate_nesting=1, **options)
    assert math.isfinite(elbo.loss(hierarchy, guide, Y))


def stepped(objective: Any) -> Any:
    """Log p after a step of Pyro's SVI."""
    guide = table()
    SVI(model, guide, Adam({"lr": 0.01}), objective).step(Y)
    return evidence(model, guide, pv.Tightest())


REMEDIES = {
    "steps of two": Remedy(
        "pass `batch_size=4`",
        lambda: fit(model, of_all_rows, batch_size=2),
        lambda: fitted(model, of_all_rows, batch_size=4),
    ),
    "untrained AutoNormal": Remedy(
        "train this guide first, with pv.fit",
        lambda: evidence(model, AutoNormal(model)),
        lambda: evidence(model, trained(AutoNormal(model, init_scale=SD)), pv.Tightest()),
    ),
    "gradients of AutoNormal": Remedy(
        r"train the guide with Trace_ELBO\(\)",
        lambda: fit(model, AutoNormal(model), objective=pv.IWAE(5)),
        lambda: tightest_after(model, AutoNormal(model), objective=Trace_ELBO()),
    ),
    "a table of other length": Remedy(
        "pass `num_data=4`",
        lambda: fit(model, table(rows=7)),
        lambda: evidence(model, trained(table()), pv.Tightest()),
    ),
    # Objectives.
    "no rsample": Remedy(
        r"or train with Trace_ELBO\(\), which has a score-function gradient|omit `objective`",
        lambda: fit(kinds, of_kinds, objective=pv.BetaELBO(1.0)),
        lambda: fitted(kinds, of_kinds),
    ),
    "discrete sites drawn": Remedy(
        "pass TraceEnum_ELBO, which sums these sites out, or omit `objective`",
        lambda: fit(kinds, global_guide(kinds), objective=TraceMeanField_ELBO()),
        lambda: tightest_after(kinds, global_guide(kinds)),
    ),
    "two scales": Remedy(
        r"use pv.BetaELBO\(...\) to weight the KL term",
        lambda: fit(two_scales, global_guide(two_scales), objective=pv.IWAE(5)),
        lambda: tightest_after(model, global_guide(model), objective=pv.BetaELBO(0.5)),
    ),
    "analytic KL of two": Remedy(
        r"use Trace_ELBO\(\)",
        lambda: fit(positive, global_guide(positive), objective=pv.AnalyticELBO()),
        lambda: tightest_after(positive, global_guide(positive), objective=Trace_ELBO()),
    ),
    "nothing to train": Remedy(
        "call pv.log_marginal_likelihood directly",
        lambda: fit(model, exact),
        lambda: evidence(model, exact),
    ),
    "a messenger before training": Remedy(
        "AutoNormalMessenger has no parameters before its first call",
        lambda: evidence(model, AutoNormalMessenger(model)),
        lambda: tightest_after(model, AutoNormalMessenger(model)),
    ),
    "copies of the rows of a guide that takes all": Remedy(
        r"3 copies of each row, but the guide works only for exactly 4 rows.*loc\[i\].*Trace_ELBO",
        lambda: fit(model, in_order, objective=pv.IWAE(3)),
        lambda: fitted(model, in_order, objective=Trace_ELBO()),
    ),
    "copies of the rows of a guide with an index": Remedy(
        r"\(`with pyro\.plate\('data', len\(y\)\) as i:`, then `loc\[i\]`\)",
        lambda: fit(model, in_order, objective=pv.IWAE(3)),
        lambda: fitted(model, by_index, objective=pv.IWAE(3)),
    ),
    "Pyro's JIT": Remedy(
        r"JIT cannot trace LocalParameters.* Trace_ELBO\(\) instead of JitTrace_ELBO\(\)",
        lambda: stepped(JitTrace_ELBO()),
        lambda: stepped(Trace_ELBO()),
    ),
    "particles of shared sites": Remedy(
        "pass vectorize_particles=False",
        lambda: loss_of_particles(vectorize_particles=True),
        lambda: loss_of_particles(vectorize_particles=False),
    ),
}


@pytest.mark.parametrize("name", REMEDIES)
@pytest.mark.filterwarnings("ignore")
def test_what_a_refusal_says_to_call_is_right(name: str) -> None:
    """The call is refused in these words; the other one gives log p(y) within its error."""
    follow(REMEDIES[name])
