"""Loops of a user's own under `pv.minibatch`: the right rows are trained, or what cannot be told.

The model is z ~ N(0, 1), y ~ N(z, 1). Rows of a batch are chosen so that they are positions in it,
too: whoever takes one for the other is wrong without an error.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer import autoguide as guides
from pyro.optim import SGD  # type: ignore[attr-defined]
from torch import Tensor

import pyro_vae as pv
from tests.helpers.remedies import location as model

Y = torch.linspace(-4.0, 4.0, 6)
SWAPPED, TABLE = torch.tensor([1, 0]), torch.arange(6.0)

pytestmark = pytest.mark.usefixtures("user_param_store")


def step(program: Any, guide: Any, rows: Tensor, plate: str | None = None) -> None:
    """A step of stochastic gradient ascent."""
    svi = SVI(program, guide, SGD({"lr": 0.01}), Trace_ELBO())
    with pv.minibatch(rows, len(Y), plate=plate):
        svi.step(Y[rows])


JOINT = {
    "AutoDiagonalNormal": guides.AutoDiagonalNormal,
    "AutoMultivariateNormal": guides.AutoMultivariateNormal,
    "AutoLowRankMultivariateNormal": guides.AutoLowRankMultivariateNormal,
    "AutoIAFNormal": guides.AutoIAFNormal,
    "AutoLaplaceApproximation": guides.AutoLaplaceApproximation,
    "AutoStructured": guides.AutoStructured,
    "AutoGaussian": guides.AutoGaussian,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", JOINT)
def test_one_vector_for_all_rows_is_refused(kind: str) -> None:
    """On a part of the rows, before and after it was made for all; on all in order it trains."""
    words = r"one vector, '\w+', .* all rows in order; got .*LocalParameters\(6\).*AutoNormal"
    for rows in (SWAPPED, torch.tensor([4, 1, 2]), torch.tensor([3]), torch.arange(6).flip(0)):
        pyro.clear_param_store()
        with pytest.raises(ValueError, match=words):
            step(model, JOINT[kind](model), rows)
    guide = JOINT[kind](model)
    step(model, guide, torch.arange(6))  # one of the three remedies
    with pytest.raises(ValueError, match=words):
        step(model, guide, SWAPPED, "data")


def test_its_other_remedies() -> None:
    """`AutoNormal` in a named plate and a table move the rows of the batch, and no others."""
    automatic = guides.AutoNormal(model)
    step(model, automatic, torch.tensor([4, 1]), "data")
    before = automatic.locs.z.detach().clone()
    step(model, automatic, torch.tensor([4, 1]), "data")
    moved = (automatic.locs.z.detach() != before).nonzero().flatten()
    assert moved.tolist() == [1, 4]
    table = pv.Guide(model, pv.LocalParameters(6), example=Y)
    start = table.mean(Y)
    step(model, table, torch.tensor([4, 1]))
    assert (table.mean(Y) != start).any(1).nonzero().flatten().tolist() == [1, 4]


def test_parameters_made_before_the_plate_is_named_are_refused() -> None:
    """`AutoNormal` made on a batch has parameters of that batch alone."""
    with pytest.raises(ValueError, match=r"'AutoNormal.locs.z' has 2 .*rows, 6|num_data=6, plate="):
        step(model, guides.AutoNormal(model), SWAPPED)


def hierarchy(y: Tensor) -> None:
    """Latents around a vector that all data share."""
    weights = pyro.sample("weights", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.LogNormal(0.1 * weights.sum(), 0.5))
        pyro.sample("y", dist.Normal(z, 5.0), obs=y)


def joint_globals(local: Any) -> Any:
    """Shared sites jointly, latents of a row by another guide."""
    guide = guides.AutoGuideList(hierarchy)
    guide.append(guides.AutoMultivariateNormal(poutine.block(hierarchy, expose=["weights"])))
    guide.append(local(poutine.block(hierarchy, expose=["z"])))
    return guide


def around_globals() -> Any:
    """Latents of a row follow the joint draw of the shared sites and a draw of the row's own."""
    shared = guides.AutoMultivariateNormal(poutine.block(hierarchy, expose=["weights"]))

    def guide(y: Tensor) -> None:
        weights = shared(y)["weights"]
        scale = pyro.param("scale", torch.tensor(0.1))
        with pyro.plate("data", len(y)):
            noise = pyro.sample("noise", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
            log_z = 0.1 * weights.sum() + scale * noise
            pyro.sample("z", dist.Delta(log_z.exp(), log_density=-log_z - scale.log()))

    return guide


@pytest.mark.parametrize("rows", [SWAPPED, torch.tensor([3])])
@pytest.mark.parametrize(
    "make",
    [
        lambda: joint_globals(guides.AutoNormal),
        lambda: joint_globals(guides.AutoDelta),
        lambda: guides.AutoHierarchicalNormalMessenger(hierarchy),
        around_globals,
    ],
)
def test_one_vector_of_what_is_shared_is_let_be(make: Callable[[], Any], rows: Tensor) -> None:
    """The wrong twin: rows that depend on the same entries of a joint draw, not on their own."""
    guide = make()
    step(hierarchy, guide, rows, "data")
    step(hierarchy, guide, rows, "data")


INDEXINGS: dict[str, Callable[[Tensor, Any], Any]] = {
    "t[i]": lambda t, i: t[i],
    "t[..., i]": lambda t, i: t[..., i],
    "t[i, None]": lambda t, i: t[i, None][:, 0],
    "a column": lambda t, i: t[i.unsqueeze(-1)][:, 0],
    "another shape": lambda t, i: t[i.view(1, -1)][0],
    "expanded": lambda t, i: t[i.expand(2, 2)][1],
    "another type": lambda t, i: t[i.int()],
    "a slice": lambda t, i: t[i[:]],
    "a part": lambda t, i: t[i[i >= 0]],
    "one by one": lambda t, i: torch.stack([t[part] for part in i.unbind()]),
    "entries": lambda t, i: torch.stack([t[i[n]] for n in range(2)]),
    "index_select": lambda t, i: t.index_select(0, i),
    "gather": lambda t, i: t.gather(0, i),
    "take": lambda t, i: t.take(i),
    "embedding": lambda t, i: torch.nn.functional.embedding(i, t[:, None])[:, 0],
    "assigned": lambda t, i: assigned(t, i),
}


def assigned(t: Tensor, i: Any) -> Tensor:
    """Entries set one by one."""
    made = torch.zeros(len(t))
    made[i] = t[i]
    return made[i]


@pytest.mark.parametrize("how", INDEXINGS)
@pytest.mark.parametrize("table", [TABLE, TABLE[SWAPPED]], ids=["data set", "batch"])
def test_the_index_and_its_parts_pick_the_rows(how: str, table: Tensor) -> None:
    """From a table of the data set, and from what holds the batch alone."""
    with (
        pv.minibatch(SWAPPED, len(Y)),
        pyro.plate("data", len(Y), subsample_size=2) as index,
    ):
        assert torch.equal(INDEXINGS[how](table, index), TABLE[SWAPPED])


@pytest.mark.parametrize(
    "plain", [lambda i: i.tolist(), lambda i: i.numpy(), np.asarray, lambda i: int(i[0])]
)
def test_plain_numbers_of_the_index_are_refused(plain: Callable[[Any], Any]) -> None:
    """They may be meant either way, unless both are the same; the remedy picks the rows."""
    with (
        pv.minibatch(SWAPPED, len(Y)),
        pyro.plate("data", len(Y), subsample_size=2) as index,
    ):
        with pytest.raises(ValueError, match=r"torch.as_tensor\(table\)\[i\] and y\[i\]"):
            plain(index)
        found = torch.as_tensor(TABLE.numpy())[index]
    assert torch.equal(found, TABLE[SWAPPED])
    with (
        pv.minibatch(torch.arange(2), len(Y)),
        pyro.plate("data", len(Y), subsample_size=2) as index,
    ):
        plain(index)


def test_a_deterministic_site_beside_global_sites_is_no_part_of_a_vector() -> None:
    """Its value has no dimension left of its event, and the global sites are drawn as one vector.

    At the first step the ELBO of any q has a gradient, so the guide's parameters move.
    """

    def schools(y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        scale = pyro.sample("scale", dist.HalfCauchy(5.0))
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            effect = pyro.deterministic("effect", mean + scale * z)
            pyro.sample("y", dist.Normal(effect, 1.0), obs=y)

    guide = pv.Guide(schools, pv.LocalParameters(len(Y)), example=Y)
    assert guide.shared is not None
    before = guide.shared.value.detach().clone()
    step(schools, guide, SWAPPED)
    assert not torch.equal(guide.shared.value, before)


@pytest.mark.parametrize(
    "rows",
    [
        [0, 2],
        range(0, 3, 2),
        slice(0, 3, 2),
        np.array([0, 2]),
        np.array([True, False, True, False]),
        torch.tensor([True, False, True, False]),
        torch.tensor([0.0, 2.0]),
    ],
    ids=repr,
)
def test_what_selects_rows_otherwise_is_refused_with_the_conversion(rows: Any) -> None:
    """The code in the message, run as it stands, makes positions of whatever was passed."""
    with pytest.raises((TypeError, ValueError), match="`rows` must be an int tensor") as refused:
        pv.minibatch(rows, 4)
    code = str(refused.value).partition("as in ")[2].partition(", or reshape")[0]
    converted = eval(code, {"rows": rows, "torch": torch, "num_data": 4})
    with pv.minibatch(converted, 4):
        assert converted.tolist() == [0, 2]
