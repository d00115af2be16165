"""Guides tied to rows: right on their own rows, refused with a remedy on others, told from others.

The model is z ~ N(0, 1), y ~ N(z, 1): the posterior is N(y / 2, sqrt 1/2), and log p(y) is that of
N(0, sqrt 2). With the posterior of every row in its parameters a guide has no gap.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoHierarchicalNormalMessenger,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalMessenger,
    AutoRegressiveMessenger,
)
from pyro.infer.autoguide.initialization import init_to_value
from pyro.optim import SGD  # type: ignore[attr-defined]
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.guides.entry import posterior_of
from pyro_vae.guides.posteriors import SitesPosterior
from pyro_vae.guides.tied import RepeatedCalls, tied_site
from pyro_vae.programs import Program
from tests.helpers.remedies import hierarchy
from tests.helpers.remedies import location as model

SD, POSITIVE = 0.5**0.5, dist.constraints.positive
Y = torch.linspace(-4.0, 4.0, 6)
EXACT = torch.distributions.Normal(0.0, 2**0.5).log_prob(Y).double()

pytestmark = pytest.mark.usefixtures("user_param_store")


def subsampled(y: Tensor) -> None:
    """The same with a plate that subsamples."""
    with pyro.plate("data", len(Y), subsample_size=2) as rows:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y[rows])


def two(y: Tensor) -> None:
    """The same with z = a + b."""
    with pyro.plate("data", len(y)):
        a, b = (pyro.sample(name, dist.Normal(0.0, SD)) for name in "ab")
        pyro.sample("y", dist.Normal(a + b, 1.0), obs=y)


def locs() -> Tensor:
    """A free parameter for every row."""
    return pyro.param("loc", Y / 2)


def scales() -> Tensor:
    """Another one, positive."""
    return pyro.param("scale", torch.full((len(Y),), SD), constraint=POSITIVE)


def whole(y: Tensor) -> None:
    """On all rows."""
    loc, scale = locs(), scales()
    with pyro.plate("data", len(y)):
        pyro.sample("z", dist.Normal(loc, scale))


def indexed(y: Tensor) -> None:
    """By the rows of a plate that subsamples."""
    loc, scale = locs(), scales()
    with pyro.plate("data", len(Y), subsample_size=2) as rows:
        pyro.sample("z", dist.Normal(loc[rows], scale[rows]))


def unlike(y: Tensor) -> None:
    """By a distribution that is not rebuilt by row."""
    loc, scale = locs(), scales()
    affine = torch.distributions.AffineTransform(loc, scale)
    with pyro.plate("data", len(y)):
        standard = dist.Normal(torch.zeros(len(Y)), 1.0)
        pyro.sample("z", dist.TransformedDistribution(standard, [affine]))


class Table(nn.Module):
    """Parameters in a module."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(Y / 2)

    def forward(self, y: Tensor) -> None:
        """A program."""
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(self.loc, SD))


def dependent(y: Tensor) -> None:
    """Of `two`, whose posterior has the covariance 1/2 I - 1/8: b depends on a."""
    slope = -1 / 3
    loc = pyro.param("quarter", Y / 4)
    with pyro.plate("data", len(y)):
        a = pyro.sample("a", dist.Normal(loc, (3 / 8) ** 0.5))
        mean = loc + slope * (a - loc)
        pyro.sample("b", dist.Normal(mean, (3 / 8 * (1 - slope**2)) ** 0.5))


def by_noise(y: Tensor) -> None:
    """By an auxiliary site: only the value of z says whose parameters it has."""
    loc, log_density = locs(), -torch.tensor(SD).log()
    with pyro.plate("data", len(Y), subsample_size=2) as rows:
        noise = pyro.sample("noise", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Delta(loc[rows] + SD * noise, log_density=log_density))


Pair = tuple[Callable[..., Any], Callable[[], Any]]
PAIRS: dict[str, Pair] = {
    "on all rows": (model, lambda: whole),
    "in a subsampling plate": (subsampled, lambda: indexed),
    "in a module": (model, Table),
    "unlike others": (model, lambda: unlike),
    "two dependent sites": (two, lambda: dependent),
}


@pytest.fixture(params=PAIRS)
def pair(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """A model and a guide that is tied to the rows of Y."""
    program, make = PAIRS[request.param]
    return program, make()


def test_own_rows_are_exact(pair: tuple[Any, Any]) -> None:
    """ELBO and log p of every row, none of them with the parameters of another."""
    value = pv.elbo(*pair, Y, 10).elbo.value
    torch.testing.assert_close(value, EXACT, rtol=0, atol=1e-5)
    found = pv.log_marginal_likelihood(*pair, Y, pv.ImportanceSampling(100))
    torch.testing.assert_close(found.value, EXACT, rtol=0, atol=1e-5)
    assert found.reliable.all()


def test_other_rows_are_refused(pair: tuple[Any, Any]) -> None:
    """Fewer rows and more, before a number is made of them."""
    program, guide = pair
    pv.elbo(program, guide, Y, 2)  # its parameters are there
    for other in (Y[3:], Y[:1], torch.cat([Y, Y]), torch.zeros(7)):
        for ask in (pv.elbo, pv.log_marginal_likelihood, pv.to_inference_data):
            with pytest.raises(ValueError, match=r"pv\.LocalParameters\(num_data\).*fit_rows"):
                ask(program, guide, other)


def test_parts_and_points(pair: tuple[Any, Any]) -> None:
    """A part of the rows keeps its own parameters; the density is that of the draws."""
    program, guide = pair
    structure = Program(program, Y)
    posterior: Any = posterior_of(guide, structure, (Y,))
    assert isinstance(posterior, SitesPosterior | RepeatedCalls)
    z, log_q = posterior.draw(5)
    torch.testing.assert_close(posterior.log_prob(z), log_q)
    rows = torch.tensor([4, 1])
    part = posterior.rows(rows)
    assert len(part) == 2
    torch.testing.assert_close(part.log_prob(z[:, rows]), log_q[:, rows])
    torch.testing.assert_close(part.rows(slice(1, 2)).log_prob(z[:, 1:2]), log_q[:, 1:2])
    drawn, _ = part.draw(5)
    assert drawn.shape == (5, 2, structure.latent_dim)


def test_equal_parameters_are_told_by_their_gradient() -> None:
    """Before training all rows have the same q: the gradient says whose parameters are whose."""
    program = Program(subsampled, Y)
    assert tied_site(program, fresh, (Y,)) == "z"
    assert set(pyro.get_param_store().keys()) == set()  # a look leaves nothing behind


def amortized(y: Tensor) -> None:
    """The posterior, by a weight that all rows share."""
    weight = pyro.param("weight", torch.tensor(0.5))
    with pyro.plate("data", len(y)):
        pyro.sample("z", dist.Normal(weight * y, SD))


def amortized_in_a_plate(y: Tensor) -> None:
    """The same in a plate that subsamples."""
    weight = pyro.param("weight", torch.tensor(0.5))
    with pyro.plate("data", len(Y), subsample_size=2) as rows:
        pyro.sample("z", dist.Normal(weight * y[rows], SD))


def auxiliary(y: Tensor) -> None:
    """The same by way of a standard normal."""
    weight = pyro.param("weight", torch.tensor(0.5))
    with pyro.plate("data", len(y)):
        noise = pyro.sample("noise", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Delta(weight * y + SD * noise, log_density=-torch.tensor(SD).log()))


@pytest.mark.parametrize(
    ("program", "guide"),
    [(model, amortized), (subsampled, amortized_in_a_plate), (model, auxiliary)],
    ids=["plain", "subsampling", "auxiliary"],
)
def test_guides_of_a_datum_are_let_be(program: Any, guide: Any) -> None:
    """The wrong twin of all this: q(z_n) that depends on row n alone answers for any rows."""
    assert tied_site(Program(program, Y), guide, (Y,)) is None
    for rows in (Y, Y[:1], Y.flip(0)[2:], torch.cat([Y, Y])):
        expected = torch.distributions.Normal(0.0, 2**0.5).log_prob(rows).double()
        value = pv.elbo(program, guide, rows, 10).elbo.value
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["shared site", "auxiliary"])
def test_what_all_data_share_may_be_random(kind: str) -> None:
    """The shared site, or noise on which its q rests, moves q of every datum from call to call."""

    def guide(y: Tensor) -> None:
        start = pyro.param("start", torch.tensor(0.1))
        if kind == "auxiliary":
            start = pyro.sample("noise", dist.Normal(start, 0.5), infer={"is_auxiliary": True})
        loc = pyro.sample("loc", dist.Normal(start, 0.5))
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal((y + loc + 0.1 * start) / 2, SD))

    def of_the_batch(y: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.1, 0.5))
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal((y + loc + y.mean()) / 2, SD))

    assert tied_site(Program(hierarchy, Y), guide, (Y,)) is None
    pv.fit(hierarchy, guide, Y, num_epochs=1, batch_size=2, progress=False)
    assert tied_site(Program(hierarchy, Y), of_the_batch, (Y,)) == "z"  # the twin


def test_flows_known_at_their_own_draws_alone() -> None:
    """A planar flow has no density at given points: its draws are compared by their noise."""
    flow = dist.transforms.planar(2)
    data = torch.stack([Y, Y.flip(0)], -1)

    def vectors(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(z, 1.0).to_event(1), obs=y)

    def flowing(loc: Callable[[Tensor], Tensor]) -> Callable[[Tensor], None]:
        def guide(y: Tensor) -> None:
            pyro.module("flow", flow)
            with pyro.plate("data", len(y)):
                base = dist.Normal(loc(y), 0.8).to_event(1)
                pyro.sample("z", dist.TransformedDistribution(base, [flow]))

        return guide

    found = pv.evaluate(vectors, flowing(lambda y: y / 2), data, pv.ImportanceSampling(2000))
    exact = torch.distributions.Normal(0.0, 2**0.5).log_prob(data).sum(-1).double()
    off = (found.log_marginal.value - exact).abs()
    assert ((off < 6 * found.log_marginal.error) | ~found.log_marginal.reliable).all()
    assert (found.bound.value - exact < 6 * found.bound.error).all()
    for loc in (lambda y: y - y.mean(0), lambda y: y + torch.arange(len(y))[:, None]):
        with pytest.raises(ValueError, match=r"q of site 'z' .* position in the batch"):
            pv.elbo(vectors, flowing(loc), data)


def test_an_auxiliary_site() -> None:
    """Its rows have their own parameters, too."""
    value = pv.elbo(subsampled, by_noise, Y, 10).elbo.value
    torch.testing.assert_close(value, EXACT, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"pv\.LocalParameters\(num_data\).*fit_rows"):
        pv.elbo(subsampled, by_noise, Y[3:])


def test_a_guide_of_the_batch_is_refused() -> None:
    """A q that looks at the mean of the batch belongs to no datum."""

    def guide(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal((y - y.mean()) / 2, SD))

    with pytest.raises(ValueError, match=r"site 'z' .* depends on a row's position .* other rows"):
        pv.elbo(model, guide, Y + 1)


def set_to_posterior(guide: Any) -> None:
    """Gives an automatic guide the posterior of every row."""
    if isinstance(guide, AutoNormal):
        guide.locs.z, guide.scales.z = Y / 2, torch.full((len(Y),), SD)
    else:
        guide.loc.data.copy_(Y / 2)
        guide.scale = torch.full((len(Y),), SD)


@pytest.mark.parametrize("kind", [AutoNormal, AutoDiagonalNormal])
def test_automatic_guides_on_their_rows(kind: Any) -> None:
    """With the posterior's parameters they are exact; on other rows they are refused."""
    guide = kind(model)
    with pytest.raises(TypeError, match="train this guide first"):
        pv.elbo(model, guide, Y)
    assert Trace_ELBO().loss(model, guide, Y) > 0  # a step of SVI calls it
    set_to_posterior(guide)
    value = pv.elbo(model, guide, Y, 10).elbo.value
    torch.testing.assert_close(value, EXACT, rtol=0, atol=1e-5)
    posterior = posterior_of(guide, Program(model, Y), (Y,))
    torch.testing.assert_close(posterior.rows(slice(3, 6)).mean().squeeze(-1), Y[3:] / 2)
    with pytest.raises(
        ValueError, match=r"tied to 6 training rows, but the batch has 3 rows: .*fit_rows"
    ):
        pv.elbo(model, guide, Y[3:])


def test_messengers_are_evaluated_by_row() -> None:
    """Their sites are transformed normals: one call serves all draws."""
    guide = AutoNormalMessenger(model)
    guide(Y)
    guide.locs.z, guide.scales.z = Y / 2, torch.full((len(Y),), SD)
    assert isinstance(posterior_of(guide, Program(model, Y), (Y,)), SitesPosterior)
    value = pv.elbo(model, guide, Y, 10).elbo.value
    torch.testing.assert_close(value, EXACT, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "kind", [AutoNormalMessenger, AutoHierarchicalNormalMessenger, AutoRegressiveMessenger]
)
def test_messengers_are_first_called_with_all_rows(kind: Any) -> None:
    """Trial calls make no parameters for a few rows; training makes one for every row."""
    guide = kind(two)
    with pytest.raises(TypeError, match="train this guide first"):
        pv.elbo(two, guide, Y)
    pv.fit(two, guide, Y, num_epochs=2, batch_size=len(Y), progress=False)
    assert guide.locs.a.shape == Y.shape
    pv.elbo(two, guide, Y, 2)


@pytest.mark.parametrize("kind", [AutoDelta, AutoMultivariateNormal])
def test_other_automatic_guides_are_refused(kind: Any) -> None:
    """A point has no density, and a joint normal none of one row alone."""
    guide = kind(model)
    guide(Y)
    with pytest.raises(TypeError, match="density of a single row's latents under"):
        pv.elbo(model, guide, Y)


@pytest.mark.parametrize("local", [True, False])
def test_a_guide_of_automatic_parts_is_first_called_with_all_rows(*, local: bool) -> None:
    """A trial call made parameters for three rows, and then all rows were refused."""

    def shared(y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(pyro.sample("z", dist.Normal(mean, 1.0)), 1.0), obs=y)

    of_mean, of_z = (AutoNormal(poutine.block(shared, expose=[name])) for name in ("mean", "z"))

    def guide(y: Tensor) -> None:
        of_mean(y)
        if local:
            of_z(y)
            return
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(y / 2, 0.5**0.5))

    size = len(Y) if local else 2
    pv.fit(shared, guide, Y, num_epochs=2, batch_size=size, progress=False)
    assert of_mean.locs.mean.shape == ()
    assert not local or of_z.locs.z.shape == Y.shape
    assert pv.elbo(shared, guide, Y, 2).elbo.value.isfinite().all()


def test_an_automatic_guide_of_a_part_of_the_model_is_refused_and_the_remedy_followed() -> None:
    """As a guide written by hand that lacks a site, with the call that makes a whole one."""

    def shared(y: Tensor) -> None:
        """A global mean of local latents."""
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(pyro.sample("z", dist.Normal(mean, 1.0)), 1.0), obs=y)

    part = AutoNormal(poutine.block(shared, expose=["z"]))
    part(Y)
    with pytest.raises(ValueError, match=r"lacks \['mean'\]: build it .* AutoNormal\(model\)"):
        pv.elbo(shared, part, Y)
    whole = AutoNormal(shared)
    whole(Y)
    assert pv.elbo(shared, whole, Y, 2).elbo.value.isfinite().all()


def test_remedies() -> None:
    """Free parameters of ours are fitted to new rows; an encoder answers for any."""
    local = pv.Guide(model, pv.LocalParameters(len(Y)), example=Y).fit_rows(Y + 1)
    exact = torch.distributions.Normal(0.0, 2**0.5).log_prob(Y + 1).double()
    value = pv.elbo(model, local, Y + 1, 100).elbo
    torch.testing.assert_close(value.value, exact, rtol=0, atol=2e-3)
    net = nn.Sequential(nn.Unflatten(-1, (-1, 1)), nn.Linear(1, 2))
    pv.elbo(model, pv.Guide(model, pv.Encoder(net), example=Y), Y + 1)


def test_rows_of_a_minibatch_keep_their_parameters() -> None:
    """Whoever says which rows these are gets their own parameters; else they are refused."""
    rows = torch.tensor([4, 1])
    with pytest.raises(ValueError, match=r"pv\.LocalParameters"):
        pv.elbo(subsampled, indexed, Y[rows], 10)
    automatic = AutoNormal(model)
    automatic(Y)
    set_to_posterior(automatic)
    for program, guide in ((subsampled, indexed), (two, dependent), (model, automatic)):
        with pv.minibatch(rows, len(Y)):
            value = pv.elbo(program, guide, Y[rows], 10).elbo.value
        torch.testing.assert_close(value, EXACT[rows], rtol=0, atol=1e-5)


ROWS = torch.tensor([4, 1])


def by_index(size: int | None = None, subsample_size: int | None = None) -> Callable[..., None]:
    """A guide that takes its parameters by the plate's index; z is at them, near enough."""

    def guide(y: Tensor) -> None:
        loc = pyro.param("free", torch.zeros(len(Y)))
        with pyro.plate("data", size or len(y), subsample_size) as rows:
            pyro.sample("z", dist.Normal(loc[rows], 1e-3))

    return guide


def by_selection(y: Tensor) -> None:
    """The same with rows taken in another way."""
    loc = pyro.param("free", torch.zeros(len(Y)))
    with pyro.plate("data", len(y)) as rows:
        pyro.sample("z", dist.Normal(loc.index_select(0, torch.as_tensor(rows).cpu()), 1e-3))


def by_plate(y: Tensor) -> None:
    """The same by Pyro's own choice of rows."""
    with pyro.plate("data", len(y)):
        loc = pyro.param("free", torch.zeros(len(Y)), event_dim=0)
        pyro.sample("z", dist.Normal(loc, 1e-3))


def at_zero(y: Tensor) -> None:
    """A guide without parameters."""
    with pyro.plate("data", len(y)):
        pyro.sample("z", dist.Normal(torch.zeros(len(y)), 1e-3))


def offsets(y: Tensor) -> None:
    """A model with a free parameter for every row."""
    free = pyro.param("free", torch.zeros(len(Y)))
    with pyro.plate("data", len(y)) as rows:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z + free[rows], 1.0), obs=y)


def of_all(y: Tensor) -> None:
    """The model with a plate of all data."""
    with pyro.plate("data", len(Y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


LOOPS: dict[str, tuple[Any, Any, str | None]] = {
    "a plate of the batch": (model, by_index(), None),
    "one that subsamples": (subsampled, by_index(len(Y), 2), None),
    "one of all data": (of_all, by_index(len(Y)), "data"),
    "index_select": (model, by_selection, None),
    "rows that Pyro takes": (model, by_plate, "data"),
    "a model's": (offsets, at_zero, None),
}


def step_of(program: Any, guide: Any, plate: str | None, rows: Tensor = ROWS) -> None:
    """A step of a loop of the user's own."""
    svi = SVI(program, guide, SGD({"lr": 0.1}), Trace_ELBO())
    with pv.minibatch(rows, len(Y), plate=plate):
        svi.step(Y[rows])


@pytest.mark.parametrize("case", LOOPS)
def test_an_own_loop_trains_the_rows_of_its_batch(case: str) -> None:
    """From zero every entry moves by the step size times N / B times y, and no other entry does."""
    step_of(*LOOPS[case])
    expected = torch.zeros(len(Y)).index_copy(0, ROWS, 0.1 * len(Y) / len(ROWS) * Y[ROWS])
    torch.testing.assert_close(pyro.param("free").detach(), expected, rtol=0, atol=5e-3)


def test_pyros_guides_keep_a_row_for_every_datum() -> None:
    """Made and trained batch by batch, `AutoNormal` has parameters of all data."""
    automatic = AutoNormal(model, init_loc_fn=init_to_value(values={"z": torch.zeros(2)}))
    step_of(model, automatic, "data")
    assert (automatic.locs.z.detach() != 0).nonzero().flatten().tolist() == [1, 4]


def in_a_loop(y: Tensor) -> None:
    """Rows one by one, whose index is a number."""
    loc = pyro.param("free", torch.zeros(len(Y)))
    for row in pyro.plate("data", len(y)):
        pyro.sample(f"z{row}", dist.Normal(loc[int(row)], 1.0))


REFUSED: dict[str, tuple[Any, Any, Tensor, str]] = {
    "a plate of all data": (of_all, by_index(len(Y)), ROWS, r"num_data=6, plate='data'\)"),
    "rows that Pyro takes": (model, by_plate, ROWS, r"'free' has 6 .* num_data=6, plate='data'\)"),
    "a loop": (model, in_a_loop, ROWS, r"must not be a loop .* Write `with pyro\.plate\('data'"),
    "data in another order": (subsampled, at_zero, torch.arange(6).flip(0), r"torch\.arange\("),
}


@pytest.mark.parametrize("case", REFUSED)
def test_rows_that_cannot_be_told_are_refused(case: str) -> None:
    """With the line to write."""
    program, guide, rows, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        step_of(program, guide, None, rows)


def test_a_model_with_a_table_is_refused_and_its_remedy_followed() -> None:
    """What belongs to a datum is data: with row numbers beside it any rows can be asked about."""
    with pytest.raises(
        ValueError, match=r"torch\.arange\(len\(y\)\) as a tensor `row` of the data"
    ):
        pv.log_joint(offsets, torch.zeros(1, 2, 1), Y[ROWS])

    def remedy(y: Tensor, row: Tensor) -> None:
        free = pyro.param("filled", Y)
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z + free[row], 1.0), obs=y)

    value = pv.log_joint(remedy, torch.zeros(1, 2, 1), Y[ROWS], ROWS)
    torch.testing.assert_close(value, torch.full((1, 2), -math.log(2 * math.pi)).to(value))


def fresh(y: Tensor) -> None:
    """Parameters of all rows, before training."""
    loc = pyro.param("loc", torch.zeros(len(Y)))
    scale = pyro.param("scale", torch.ones(len(Y)), constraint=POSITIVE)
    with pyro.plate("data", len(Y), subsample_size=2) as rows:
        pyro.sample("z", dist.Normal(loc[rows], scale[rows]))


def by_hand() -> Any:
    """A guide whose parameters are made when it is called."""
    return fresh


def automatic_guide() -> Any:
    """One of Pyro's, not called yet."""
    return AutoNormal(model)


MAKERS = pytest.mark.parametrize("make", [by_hand, automatic_guide])


@MAKERS
def test_fit_trains_them_on_all_rows(make: Callable[[], Any]) -> None:
    """A step has all rows, in their order: every row moves towards its own posterior."""
    guide = make()
    pv.fit(
        model, guide, Y, num_epochs=200, batch_size=len(Y), progress=False,
        optimizer=partial(torch.optim.Adam, lr=0.1),
    )  # fmt: skip
    value = pv.elbo(model, guide, Y, 200).elbo.value
    assert (EXACT - value < 0.1).all()  # at the start it is 4 nats and more below at the ends
    assert value[0] < value[2]


@MAKERS
def test_what_they_cannot_do_is_refused_before_training(make: Callable[[], Any]) -> None:
    """Batches of some rows, and data that are held out: nothing has moved when it is said."""
    guide = make()
    with pytest.raises(
        ValueError, match=r"tied to its 6 training rows, but a step has only 2 .*batch_size=6"
    ):
        pv.fit(model, guide, Y, batch_size=2, num_epochs=1, progress=False)
    with pytest.raises(TypeError, match=r"for other data use .*pv\.LocalParameters"):
        pv.fit(model, guide, Y, validation=Y[:2], num_epochs=1, progress=False)
    with pytest.raises(TypeError, match=r"for other data use .*pv\.LocalParameters"):
        pv.compare(model, {"first": pv.GlobalParameters(), "tied": guide}, Y, Y, train_model=False)
    assert not list(pyro.get_param_store().keys())
