"""Objectives: bounds and gradients against exact and independent ones, in `fit` and in Pyro's SVI.

Factor analysis has every answer. Where gradients are compared, many rows with the same datum give
as many independent replicates of them in one call.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.testing.fakes import NonreparameterizedNormal
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceEnum_ELBO
from pyro.nn import PyroModule
from pyro.optim import Adam as PyroAdam  # type: ignore[attr-defined]
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.objectives import (
    IWAE,
    STL,
    BetaELBO,
    Cyclic,
    DReG,
    LinearWarmup,
    Objective,
    Renyi,
)
from pyro_vae.training import constant
from tests.helpers.cases import normal
from tests.helpers.factor_analysis import (
    exact_guide,
    mean_field_guide,
    mean_field_net,
    mean_field_program,
    model_of,
)
from tests.helpers.idioms import IDIOMS
from tests.helpers.statistics import FACTS, FACTS_Y, assert_mean
from tests.helpers.training import data as binary
from tests.helpers.training import fit, sgd, small

EACH: dict[str, Callable[[int], Objective]] = {
    "IWAE": IWAE,
    "DReG": DReG,
    "STL": STL,
    "Renyi": lambda particles: Renyi(0.5, particles),
    "BetaELBO": lambda particles: BetaELBO(0.5, particles),
}
float64 = pytest.mark.usefixtures("float64")

# Outside `fit` guides register their parameters in Pyro's store, as Pyro's default setting wants.
pytestmark = pytest.mark.usefixtures("user_param_store")


class Free(pv.InferenceMap):
    """One leaf with a row of parameters for every datum, so that gradients stay apart."""

    per_row = True

    def __init__(self, parameters: Tensor) -> None:
        super().__init__()
        self.rows = nn.Parameter(parameters.clone())

    def setup(self, num_parameters: int, initial: Tensor) -> None:
        """They are there."""

    def forward(self, batch: Any, rows: Tensor | None) -> Tensor:
        """All of them, or those of the rows."""
        return self.rows if rows is None else self.rows[rows]


def free_guide(model: Any, rows: int, family: Any = None, shift: float = 0.0) -> pv.Guide:
    """A guide at the mean-field optimum of FACTS_Y, or away from it, for so many copies."""
    parameters = mean_field_net(FACTS)(FACTS_Y).detach() + shift
    return pv.Guide(model, Free(parameters.expand(rows, -1)), family, example=FACTS_Y)


def row_gradients(objective: Any, model: Any, guide: pv.Guide, y: Tensor) -> Tensor:
    """The gradient of the bound of each row by that row's parameters, `(rows, parameters)`."""
    guide.map.zero_grad()
    (-objective.differentiable_loss(model, guide, y)).backward()
    gradient = guide.map.rows.grad
    assert isinstance(gradient, Tensor)
    return gradient.clone()


# ------------------------------------------------------------------------------- values


@float64
@pytest.mark.parametrize(("particles", "exact"), [(2, -8.999247640), (5, -8.94082), (50, -8.87642)])
def test_iwae_at_the_mean_field_optimum(particles: int, exact: float) -> None:
    """It has the mean that is known; the ELBO, one particle, is caught."""
    model = model_of(FACTS)
    guide, y = mean_field_guide(FACTS, model), FACTS_Y.expand(1000 // particles, -1)

    def means(objective: Objective) -> Tensor:
        return torch.tensor([-objective.loss(model, guide, y) / len(y) for _ in range(50)])

    assert_mean(means(IWAE(particles)), exact)  # known to 2e-4: a twentieth of the resolution
    with pytest.raises(AssertionError, match="resolution"):
        assert_mean(means(IWAE(1)), exact)


@float64
@pytest.mark.parametrize("name", [name for name in EACH if name != "BetaELBO"])
def test_exact_under_the_posterior(name: str) -> None:
    """Every weight is p(y), so every bound is log p(y), whatever the draws; guides by hand too."""
    y = FACTS.sample(3)
    objective = EACH[name](4)
    progress = objective.progress(model_of(FACTS), exact_guide(FACTS), y)
    expected = FACTS.log_evidence(y).sum()
    torch.testing.assert_close(-progress.loss, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(progress.elbo, expected, rtol=1e-10, atol=0)


@float64
def test_renyi_has_its_limits() -> None:
    """Order 0 is the importance-weighted bound and order 1 the ELBO, at the same draws."""
    model = model_of(FACTS)
    guide, y = mean_field_guide(FACTS, model), FACTS.sample(5)

    def bound(objective: Objective) -> float:
        pyro.set_rng_seed(3)
        return -objective.loss(model, guide, y)

    assert bound(Renyi(0.0, 7)) == pytest.approx(bound(IWAE(7)), rel=1e-12)
    assert bound(Renyi(1.0, 7)) == pytest.approx(bound(BetaELBO(1.0, 7)), rel=1e-12)
    assert bound(Renyi(1 + 1e-6, 7)) == pytest.approx(bound(Renyi(1.0, 7)), rel=1e-5)
    orders = [bound(Renyi(alpha, 7)) for alpha in (-1.0, 0.0, 0.5, 1.0, 3.0)]
    assert orders == sorted(orders, reverse=True)
    assert orders[0] > orders[-1] + 0.01


@float64
def test_beta_of_one_is_the_elbo() -> None:
    """At the same draw it is what Trace_ELBO makes of it, with its gradient."""
    model, guide = small()
    model, guide, y = model.double(), guide.double(), binary().double()
    leaves = [*model.parameters(), *guide.parameters()]
    found = []
    for objective in (BetaELBO(1.0), Trace_ELBO(), BetaELBO(0.5)):
        pyro.set_rng_seed(5)
        loss: Tensor = objective.differentiable_loss(model, guide, y)
        found.append([loss, *torch.autograd.grad(loss, leaves)])
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-12)
    assert (found[0][0] - found[2][0]).abs() > 1e-3


def test_beta_weighs_the_kl_term() -> None:
    """The loss is linear in the weight; the plain ELBO beside it does not know of it."""
    model, guide = small()
    y = binary()
    progress = []
    for beta in (0.0, 1.0, 4.0):
        pyro.set_rng_seed(5)
        progress.append(BetaELBO(beta).progress(model, guide, y))
    none, one, four = (entry.loss for entry in progress)
    torch.testing.assert_close(four - none, 4 * (one - none))
    for entry in progress:
        torch.testing.assert_close(entry.elbo, -one.detach())


# ----------------------------------------------------------------------------- gradients


@float64
def test_sticking_the_landing_has_no_noise() -> None:
    """Under the posterior its gradient is zero for every draw, and so is DReG's; IWAE's is not."""
    model, rows = model_of(FACTS), 6
    family = pv.FullRankNormal()
    posterior = FACTS.posterior(FACTS_Y)
    precision = posterior.precision_matrix
    parameters = family.closest_normal(posterior.loc, precision).expand(rows, -1)
    guide = pv.Guide(model, Free(parameters), family, example=FACTS_Y)
    y = FACTS_Y.expand(rows, -1)
    quiet: tuple[Objective, ...] = (STL(), DReG(5), STL(5))
    for objective in quiet:
        assert row_gradients(objective, model, guide, y).abs().max() < 1e-10
    for plain in (IWAE(1), IWAE(5)):
        assert row_gradients(plain, model, guide, y).abs().max() > 1e-2


def replicated(objective: Objective, rows: int, shift: float) -> Tensor:
    """Replicates of the gradient of one datum's bound, away from the optimum."""
    model = model_of(FACTS)
    guide = free_guide(model, rows, shift=shift)
    return row_gradients(objective, model, guide, FACTS_Y.expand(rows, -1))


@float64
@pytest.mark.parametrize("particles", [2, 8])
def test_dreg_is_unbiased(particles: int) -> None:
    """The same mean as the plain gradient, with far less noise; STL has another mean."""
    rows, shift = 20_000, 0.3
    plain = replicated(IWAE(particles), rows, shift)
    double = replicated(DReG(particles), rows, shift)
    assert_mean(double - plain, 0.0)
    assert (double.var(dim=0) < 0.7 * plain.var(dim=0)).all()
    biased = replicated(STL(particles), rows, shift)
    with pytest.raises(AssertionError, match="resolution"):
        assert_mean(biased - plain, 0.0)


@float64
def test_stl_of_one_particle_is_unbiased() -> None:
    """It has the mean of the plain gradient of the ELBO."""
    rows = 20_000
    assert_mean(replicated(STL(), rows, 0.3) - replicated(IWAE(1), rows, 0.3), 0.0)


@float64
def test_signal_to_noise() -> None:
    r"""From 8 to 128 particles DReG's ratio grows four-fold, and the plain one's falls as much.

    The signal of the plain gradient is drowned at many particles, so DReG's mean is the signal.
    The guide is wide enough for weights that are bounded, as the asymptotics want.
    """
    rows, ratios = 2_000, []
    for particles in (8, 128):
        plain, double = (replicated(make(particles), rows, 0.5) for make in (IWAE, DReG))
        signal = double.mean(dim=0).norm()
        ratios.append([signal / part.var(dim=0).sum().sqrt() for part in (plain, double)])
    (plain_few, double_few), (plain_many, double_many) = ratios
    assert 1 / 8 < plain_many / plain_few < 1 / 2  # 16 to the power of -1/2 is 1/4
    assert 2 < double_many / double_few < 8


@float64
@pytest.mark.parametrize("name", EACH)
def test_gradients_of_the_model(name: str) -> None:
    """They are those of the bound at the same draws, by hand from the draws and their weights."""
    model, guide = small()
    model, guide, y = model.double(), guide.double(), binary().double()
    pyro.set_rng_seed(3)
    loss = EACH[name](6).differentiable_loss(model, guide, y)
    leaves = list(model.parameters())
    found = torch.autograd.grad(loss, leaves)
    pyro.set_rng_seed(3)
    z, log_guide = guide.posterior(y).draw(6)
    z, log_guide = z.detach(), log_guide.detach()
    log_prior = normal(z, 0.0, 1.0).sum(-1)
    log_joint = pv.log_joint(model, z, y)
    log_w = log_joint - log_guide
    bound = {
        "Renyi": (log_w / 2).logsumexp(0) * 2,
        "BetaELBO": (log_joint - log_prior).mean(0),
    }.get(name, log_w.logsumexp(0))
    expected = torch.autograd.grad(-bound.sum(), leaves)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@float64
def test_a_guide_by_hand_has_the_same_gradient() -> None:
    """As a guide of ours at the same draws, doubly reparameterized or not."""
    model = model_of(FACTS)
    y = FACTS.sample(4)
    net = mean_field_net(FACTS)
    ours = pv.Guide(model, pv.Encoder(net), example=FACTS_Y)

    def by_hand(y: Tensor) -> None:
        loc, log_scale = net(y).chunk(2, dim=-1)
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    for name, make in EACH.items():
        gradients = []
        for guide in (ours, by_hand):
            pyro.set_rng_seed(3)
            loss = make(3).differentiable_loss(model, guide, y)
            gradients.append(torch.autograd.grad(loss, list(net.parameters())))
        torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-11, msg=name)


# --------------------------------------------------------------------------- mini-batches

TAU, SIGMA = 2.0, 0.7


def population(y: Tensor) -> None:
    """A mean that all data share, and an effect for each."""
    mean = pyro.sample("mean", dist.Normal(0.0, TAU))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(mean, 1.0).expand([len(y)]))
        pyro.sample("y", dist.Normal(z, SIGMA), obs=y)


def population_guide(y: Tensor) -> None:
    """A posterior by hand, wide of the mark."""
    mean = pyro.sample("mean", dist.Normal(0.7, 0.3))
    with pyro.plate("data", len(y)):
        pyro.sample("z", dist.Normal((mean + y) / 2, 1.0))


def mean_of_batches(objective: Any, model: Any, guide: Any, y: Tensor, size: int) -> Tensor:
    """Losses of a random partition into batches, averaged: unbiased for the whole."""
    losses = []
    for rows in torch.randperm(len(y)).split(size):
        with pv.minibatch(rows, len(y), plate="data"):
            losses.append(objective.loss(model, guide, y[rows]))
    return torch.tensor(losses).mean()


def over_batches(objective: Any, model: Any, guide: Any, y: Tensor, size: int) -> Tensor:
    """Replicates of the above."""
    return torch.stack([mean_of_batches(objective, model, guide, y, size) for _ in range(20)])


@float64
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    "name",
    ["IWAE", *(pytest.param(name, marks=pytest.mark.slow) for name in EACH if name != "IWAE")],
)
def test_batches_average_to_the_whole(name: str, shared: bool) -> None:  # noqa: FBT001
    """The loss of a batch has the mean of the loss of all data, with a global site or without."""
    y = torch.linspace(-1.0, 2.0, 12) if shared else FACTS.sample(12)
    model: Any = population if shared else model_of(FACTS)
    guide = population_guide if shared else mean_field_program(FACTS)
    objective = EACH[name](5)
    whole = over_batches(objective, model, guide, y, 12)
    for size in (6, 3, 1):
        assert_mean(over_batches(objective, model, guide, y, size) - whole, 0.0)


@float64
@pytest.mark.slow
def test_pyros_renyi_elbo_is_caught() -> None:
    """It has the scale inside the logarithm of a mean: with one row a batch it is no bound."""
    model, y = model_of(FACTS), FACTS.sample(12)
    guide = mean_field_program(FACTS)
    whole = over_batches(IWAE(5), model, guide, y, 12)
    assert_mean(over_batches(IWAE(5), model, guide, y, 1) - whole, 0.0)
    theirs = over_batches(RenyiELBO(alpha=0, num_particles=5), model, guide, y, 1)
    with pytest.raises(AssertionError, match="resolution"):
        assert_mean(theirs - whole, 0.0)
    assert -theirs.mean() > FACTS.log_evidence(y).sum()  # no bound at all


@float64
def test_shared_sites_are_a_plain_term() -> None:
    """Given the exact posterior of each z, the bound is the ELBO of the shared site alone."""
    y = torch.linspace(-1.0, 2.0, 12)
    precision = 1 + 1 / SIGMA**2

    def guide(y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.7, 0.3))
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal((mean + y / SIGMA**2) / precision, precision**-0.5))

    pyro.set_rng_seed(3)
    loss = IWAE(5).loss(population, guide, y)
    pyro.set_rng_seed(3)
    mean = dist.Normal(0.7, 0.3).sample()
    conditional = normal(y, mean, math.sqrt(1 + SIGMA**2)).sum()
    expected = conditional + normal(mean, 0.0, TAU) - normal(mean, 0.7, 0.3)
    assert -loss == pytest.approx(expected.item(), rel=1e-10)


@float64
def test_a_guide_of_ours_with_shared_sites() -> None:
    """At the same draws it has the loss and the gradients of Trace_ELBO, for a batch too."""
    y = torch.linspace(-1.0, 2.0, 12)

    class Net(nn.Linear):
        def forward(self, y: Tensor) -> Tensor:
            return super().forward(y[:, None])

    guide = pv.Guide(population, pv.Encoder(Net(1, 2)), example=y)
    found = []
    for objective in (BetaELBO(1.0), Trace_ELBO()):
        pyro.set_rng_seed(4)
        with pv.minibatch(torch.arange(3), 12):
            loss: Tensor = objective.differentiable_loss(population, guide, y[:3])
        found.append([loss, *torch.autograd.grad(loss, list(guide.parameters()))])
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-12)


@float64
@pytest.mark.parametrize("name", ["subsamples", "indexes"])
def test_plates_that_subsample(name: str) -> None:
    """Called with all data, the rows are drawn, and the loss has the mean of all rows' loss."""
    case = IDIOMS[name]
    y = torch.randn(50)
    guide = pv.Guide(case.program, Free(torch.zeros(len(y), 2)), example=y)
    batches = torch.tensor([IWAE(3).loss(case.program, guide, y) for _ in range(100)])
    with torch.no_grad():
        rows = torch.arange(len(y))
        with pv.minibatch(rows, len(y)):
            whole = torch.tensor([IWAE(3).loss(case.program, guide, y) for _ in range(100)])
    assert_mean(batches - whole, 0.0)


def test_scales_stand_outside() -> None:
    """A scale of the whole model multiplies the loss; one of some sites is refused."""
    model, guide, y = model_of(FACTS), exact_guide(FACTS), FACTS.sample(3)
    plain = IWAE(4).loss(model, guide, y)
    scaled: Any = poutine.scale(model, 0.1)
    assert IWAE(4).loss(scaled, guide, y) == pytest.approx(0.1 * plain, rel=1e-9)

    def partly(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            with poutine.scale(scale=0.5):
                z = pyro.sample("z", dist.Normal(y.new_zeros(2), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(z @ FACTS.loadings.T, 1.0).to_event(1), obs=y)

    with pytest.raises(ValueError, match=r"the same scale.*BetaELBO"):
        IWAE(4).loss(partly, guide, y)


# ------------------------------------------------------------------------------- training


@pytest.mark.parametrize("name", EACH)
def test_fit_trains_everything(name: str) -> None:
    """Every parameter of model and guide moves, and the history has the plain ELBO."""
    model, guide = small()
    before = {n: p.clone() for m in (model, guide) for n, p in m.named_parameters()}
    result = fit(model, guide, binary(), num_epochs=3, batch_size=4, objective=EACH[name](3))
    after = {n: p for m in (model, guide) for n, p in m.named_parameters()}
    assert all(not torch.equal(after[n], value) for n, value in before.items())
    assert np.isfinite(result.history.elbo).all()


@pytest.mark.parametrize("map", [lambda: pv.Encoder(nn.Linear(3, 4)), pv.GlobalParameters])
@pytest.mark.parametrize("name", EACH)
def test_svi_trains_everything(name: str, map: Any) -> None:
    """In a loop of the user's own with Pyro's global store, too."""
    model, guide = small(map=map())
    before = {n: p.clone() for m in (model, guide) for n, p in m.named_parameters()}
    svi = SVI(model, guide, PyroAdam({"lr": 0.1}), EACH[name](3))
    for _ in range(2):
        svi.step(binary())
    after = {n: p for m in (model, guide) for n, p in m.named_parameters()}
    assert all(not torch.equal(after[n], value) for n, value in before.items())


@pytest.mark.parametrize("name", EACH)
def test_svi_trains_programs_by_hand(name: str) -> None:
    """A guide that is a PyroModule, and a model that is a function with `pyro.param`."""

    class ByHand(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(3, 4)

        def forward(self, y: Tensor) -> None:
            loc, log_scale = self.net(y).chunk(2, dim=-1)
            with pyro.plate("data", len(y)):
                pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    def model(y: Tensor) -> None:
        weights = pyro.param("weights", lambda: torch.ones(2, 3))
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(z @ weights, 1.0).to_event(1), obs=y)

    guide = ByHand()
    before = [p.clone() for p in guide.parameters()]
    svi = SVI(model, guide, PyroAdam({"lr": 0.1}), EACH[name](3))
    for _ in range(2):
        svi.step(binary())
    assert all(not torch.equal(p, old) for p, old in zip(guide.parameters(), before, strict=True))
    weights: Tensor = pyro.param("weights")
    assert bool(weights.ne(1).all())


@pytest.mark.parametrize("name", EACH)
def test_rows_of_a_table_move_once(name: str) -> None:
    """One backward pass moves each row of the batch once, and no other."""
    model, guide = small(map=pv.LocalParameters(10))
    y = binary()
    rows = torch.tensor([1, 4, 7])
    with pv.minibatch(rows, 10):
        EACH[name](3).loss_and_grads(model, guide, y[rows])
    assert isinstance(guide.map, pv.LocalParameters)
    visits = torch.zeros(10, dtype=torch.int64)
    visits[rows] = 1
    assert torch.equal(guide.map.visits, visits)
    fresh = pv.LocalParameters(10)
    pv.Guide(model, fresh)
    moved = guide.map.table.ne(fresh.table).any(dim=1)
    assert torch.equal(moved, visits.bool())


def test_a_refined_map_trains() -> None:
    """What a map adds to the gradient of the ELBO is added here, too."""
    model, guide = small(map=pv.Refined(pv.Encoder(nn.Linear(3, 4)), steps=2))
    before = {n: p.clone() for m in (model, guide) for n, p in m.named_parameters()}
    fit(model, guide, binary(), num_epochs=2, objective=IWAE(3))
    after = {n: p for m in (model, guide) for n, p in m.named_parameters()}
    assert all(not torch.equal(after[n], value) for n, value in before.items())


def test_the_history_has_the_plain_elbo() -> None:
    """With nothing that moves it is the ELBO, though the objective is another one."""
    model, guide = small()
    y = binary()
    still: Any = {"optimizer": sgd(lr=0.0), "scheduler": constant}
    result = fit(model, guide, y, num_epochs=60, objective=IWAE(20), **still)
    plain = pv.elbo(model, guide, y, 3000)
    draws = torch.as_tensor(result.history.elbo, dtype=torch.float64)
    assert_mean(draws, plain.mean.value.item())
    heavy = fit(model, guide, y, num_epochs=60, objective=BetaELBO(5.0), **still)
    assert_mean(torch.as_tensor(heavy.history.elbo), plain.mean.value.item())
    assert set(heavy.history.kl_weight) == {5.0}


@pytest.mark.parametrize("settings", [{}, {"shards": 2}])
def test_the_history_has_the_loss(settings: dict[str, Any]) -> None:
    """At the same draws it is linear in the weight of the KL term, and minus the ELBO at 1."""
    (model, guide), y = small(), binary()
    given = settings | {"num_epochs": 2, "batch_size": 4, "optimizer": sgd(lr=0.0), "seed": 0}
    half, none, full = (
        fit(model, guide, y, objective=BetaELBO(beta), **given).history for beta in (0.5, 0.0, 1.0)
    )
    assert np.negative(full.loss) == pytest.approx(full.elbo, rel=1e-5)
    assert half.elbo == pytest.approx(full.elbo, rel=1e-5)
    assert half.loss == pytest.approx(np.add(none.loss, full.loss) / 2, rel=1e-5)
    assert (abs(np.subtract(half.loss, full.loss)) > 0.01).all()
    pyro_elbo = fit(model, guide, y, **given).history
    assert (np.negative(pyro_elbo.loss) == pyro_elbo.elbo).all()  # in every bit


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: IWAE(0), "`num_particles` must be a whole number of at least 1; got 0"),
        (lambda: Renyi(math.nan), "`alpha` must be a finite number"),
        (lambda: BetaELBO(-1.0), "`beta` must be a finite number of at least 0"),
        (lambda: LinearWarmup(0), "`epochs` must be positive"),
        (lambda: Cyclic(1, rising=2.0), "`rising` must be a share"),
        (lambda: LinearWarmup(1, start=-1.0), "at least 0"),
    ],
)
def test_arguments_out_of_range(make: Callable[[], object], message: str) -> None:
    """They are refused by name."""
    with pytest.raises(ValueError, match=message):
        make()


def test_a_draw_that_would_lose_its_gradient() -> None:
    """A guide that must have a reparameterized is refused, where a parameter hangs on it."""
    model = model_of(FACTS)
    loc = torch.zeros(2, requires_grad=True)

    def guide(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            pyro.sample("z", NonreparameterizedNormal(loc, 1.0).to_event(1))

    with pytest.raises(ValueError, match="must have a reparameterized"):
        IWAE(3).differentiable_loss(model, guide, FACTS_Y)


# ---------------------------------------------------------------------------- discrete sites


@float64
def test_discrete_sites_are_summed_out() -> None:
    """At the same draw the loss is that of Pyro's own enumeration; `fit` takes it as it is."""
    case = IDIOMS["clusters"]
    batch = case.data()
    guide = pv.Guide(case.program, pv.GlobalParameters(), example=batch)
    structure = guide.program.structure
    theirs = TraceEnum_ELBO(max_plate_nesting=structure.nesting)
    pyro.set_rng_seed(3)
    expected = theirs.loss(guide.program.enumerating(case.program), guide, *batch)
    pyro.set_rng_seed(3)
    assert BetaELBO(1.0).loss(case.program, guide, *batch) == pytest.approx(expected, rel=1e-10)
    result = fit(case.program, guide, batch[0], num_epochs=2, objective=DReG(4))
    assert np.isfinite(result.history.elbo).all()
