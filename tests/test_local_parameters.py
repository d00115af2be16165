"""Free parameters for every datum: which rows move, for which data they answer, how they are fit.

The exact answers are the mean-field optimum of factor analysis, `N(m, diag(1 / P_ii))`, and that of
a Gamma-Poisson model over the logarithm of its rate.
"""

import copy
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam  # type: ignore[attr-defined]
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, kl_divergence

import pyro_vae as pv
from pyro_vae.programs import evaluating
from pyro_vae.programs.modes import local_parameters
from tests.helpers.cases import factor_analysis, gamma
from tests.helpers.statistics import FACTS, FACTS_Y

NUM_DATA = 20

float64 = pytest.mark.usefixtures("float64")

Trainer = Callable[["pv.models.VAE", pv.Guide, Tensor, list[Tensor]], None]


def pair(num_data: int = NUM_DATA, **options: Any) -> tuple[pv.models.VAE, pv.Guide]:
    """A linear model, and a guide with a row for every datum."""
    model = pv.models.VAE(nn.Linear(2, 3), pv.likelihoods.Gaussian(sigma=0.5), latent_dim=2)
    return model, pv.Guide(model, pv.LocalParameters(num_data, **options))


def data(num_data: int = NUM_DATA) -> Tensor:
    """Data for the model."""
    return torch.randn(num_data, 3)


def table(guide: pv.Guide) -> Tensor:
    """A copy of the parameters of every row."""
    value = guide.map.table
    assert isinstance(value, Tensor)
    return value.clone()


def visits(guide: pv.Guide) -> list[int]:
    """Steps that each row has taken."""
    value = guide.map.visits
    assert isinstance(value, Tensor)
    return [int(count) for count in value]


def loss_of(model: pv.models.VAE, guide: pv.Guide, y: Tensor, rows: Tensor, **options: Any) -> Any:
    """The differentiable loss of some rows."""
    with pv.minibatch(rows, num_data=len(y)), local_parameters(model, guide):
        return Trace_ELBO(**options).differentiable_loss(model, guide, y[rows])


# ---------------------------------------------------------------------- rows that move


def by_svi(model: pv.models.VAE, guide: pv.Guide, y: Tensor, batches: list[Tensor]) -> None:
    """A user's own loop with Pyro's Adam."""
    svi = SVI(model, guide, Adam({"lr": 0.01}), Trace_ELBO())
    for rows in batches:
        with pv.minibatch(rows, num_data=len(y)):
            svi.step(y[rows])


def by_torch(optimizer: Callable[[Any], torch.optim.Optimizer]) -> Trainer:
    """A loop with one of torch's optimizers, over all that the guide and the model own."""

    def train(model: pv.models.VAE, guide: pv.Guide, y: Tensor, batches: list[Tensor]) -> None:
        steps = optimizer([*model.parameters(), *guide.parameters()])
        for rows in batches:
            steps.zero_grad()
            loss_of(model, guide, y, rows).backward()
            steps.step()

    return train


TRAINERS: dict[str, Trainer] = {
    "svi": by_svi,
    "adam": by_torch(lambda values: torch.optim.Adam(values, lr=0.01)),
    "sgd": by_torch(lambda values: torch.optim.SGD(values, lr=1e-4, momentum=0.9)),
    "decay": by_torch(lambda values: torch.optim.AdamW(values, lr=0.01, weight_decay=0.1)),
}


@pytest.mark.usefixtures("user_param_store")
@pytest.mark.parametrize("name", TRAINERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_other_rows_do_not_move(name: str, dtype: torch.dtype) -> None:
    """Not by a bit, whatever the optimizer, and also where they have momentum from before."""
    model = pv.models.VAE(
        nn.Linear(2, 3, dtype=dtype), pv.likelihoods.Gaussian(sigma=0.5), latent_dim=2
    )
    guide, y = pv.Guide(model, pv.LocalParameters(NUM_DATA)), data().to(dtype)
    train, start = TRAINERS[name], table(guide)
    assert start.dtype == dtype
    train(model, guide, y, [torch.arange(5), torch.arange(3, 8)])
    first = table(guide)
    assert (first[:8] != start[:8]).all()
    assert torch.equal(first[8:], start[8:])
    train(model, guide, y, [torch.arange(8, 12)] * 5)
    second = table(guide)
    assert torch.equal(second[:8], first[:8])
    assert (second[8:12] != first[8:12]).all()
    assert torch.equal(second[12:], start[12:])
    assert visits(guide) == [1] * 3 + [2] * 2 + [1] * 3 + [5] * 4 + [0] * 8


def test_a_row_named_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes one step, along the sum of its gradients; both copies have the same parameters."""
    model, guide = pair()
    y, rows, before = data(), torch.tensor([3, 5, 3]), table(guide)
    with pv.minibatch(rows, NUM_DATA):
        parameters = guide.parameters_of(y[rows])
    assert torch.equal(parameters[0], parameters[2])
    updates: list[tuple[Tensor, Tensor]] = []
    monkeypatch.setattr(guide.map, "update", lambda *update: updates.append(update))
    (parameters * torch.tensor([[1.0], [10.0], [100.0]])).sum().backward()
    ((moved_rows, gradient),) = updates
    assert moved_rows.tolist() == [3, 5]
    assert torch.equal(gradient, torch.tensor([[101.0], [10.0]]).expand(2, 4))
    monkeypatch.undo()
    loss_of(model, guide, y, rows).backward()
    moved = (table(guide) != before).any(dim=-1)
    assert moved.nonzero().squeeze(-1).tolist() == [3, 5]
    assert visits(guide)[3] == visits(guide)[5] == 1


def test_particles_share_a_step() -> None:
    """The gradients of all particles of a loss add up to one step of every row."""
    model, guide = pair()
    loss_of(model, guide, data(), torch.arange(4), num_particles=3).backward()
    assert visits(guide) == [1] * 4 + [0] * 16


def test_gradients_alone_move_nothing() -> None:
    """A row moves in `backward()` and not when a gradient is only looked at."""
    model, guide = pair()
    y, rows, before = data(), torch.arange(4), table(guide)
    with pv.minibatch(rows, NUM_DATA):
        parameters = guide.parameters_of(y[rows])
    (gradient,) = torch.autograd.grad(parameters.sum(), parameters)
    assert torch.equal(gradient, torch.ones(4, 4))
    torch.autograd.grad(loss_of(model, guide, y, rows), list(model.parameters()))
    assert torch.equal(table(guide), before)


def test_evaluation_moves_nothing() -> None:
    """Neither in evaluation mode nor without gradients, though the loss is differentiated."""
    model, guide = pair()
    y, rows, before = data(), torch.arange(4), table(guide)
    guide.eval()
    loss_of(model, guide, y, rows).backward()
    guide.train()
    with torch.no_grad():
        loss_of(model, guide, y, rows)
    with evaluating(guide):
        loss_of(model, guide, y, rows).backward()
    guide.mean(y)
    assert torch.equal(table(guide), before)
    assert visits(guide) == [0] * NUM_DATA


def test_a_gradient_that_is_not_finite() -> None:
    """Names the row of the data set, and leaves the table as it was."""
    _, guide = pair()
    assert isinstance(guide.map, pv.LocalParameters)
    before, gradient = table(guide), torch.ones(2, 4)
    gradient[1, 2] = torch.nan
    with pytest.raises(
        FloatingPointError, match=r"row 7 of LocalParameters .* \(affected: 1 of 2 rows"
    ):
        guide.map.update(torch.tensor([4, 7]), gradient)
    assert torch.equal(table(guide), before)
    assert visits(guide) == [0] * NUM_DATA


# ---------------------------------------------------------------------- whose rows they are


def test_wrong_rows() -> None:
    """Too many, too few, or beyond the table."""
    _, guide = pair()
    with pytest.raises(ValueError, match=r"`num_data` must be a whole .* got 0"):
        pv.LocalParameters(0)
    message = "the 3 rows of the minibatch; got 4 rows"
    with pv.minibatch(torch.arange(3), NUM_DATA), pytest.raises(ValueError, match=message):
        guide.mean(data(4))
    message = "has 20 rows, but the minibatch contains row 25, .*: pass `num_data=26` or more"
    with pv.minibatch(torch.tensor([2, 25]), 30), pytest.raises(ValueError, match=message):
        guide.mean(data(2))


def test_other_data_are_refused() -> None:
    """Other rows than those of the table, as many or not, with the two ways out."""
    _, guide = pair()
    y = data()
    guide.map.remember(y)
    guide.mean(y)
    other = y.clone()
    other[[4, 7]] += 1
    with pytest.raises(
        ValueError, match=r"got other data in 2 of 20 rows, the first in row 4: .*guide\.fit_rows"
    ):
        guide.mean(other)
    with pytest.raises(
        ValueError, match=r"all of its 20 training rows; got 3 rows: .*pv\.minibatch"
    ):
        guide.sample(y[:3])
    with pv.minibatch(torch.arange(3), NUM_DATA):
        assert guide.mean(y[:3]).shape == (3, 2)


def test_state_goes_through_a_file(tmp_path: Any) -> None:
    """The table, the state of its optimizer and the digests of its data; training goes on alike."""
    model, guide = pair()
    y = data()
    guide.map.remember(y)
    loss_of(model, guide, y, torch.arange(5)).backward()
    torch.save(guide.state_dict(), tmp_path / "guide.pt")
    fresh = pv.Guide(model, pv.LocalParameters(NUM_DATA))
    fresh.load_state_dict(torch.load(tmp_path / "guide.pt"))
    assert torch.equal(fresh.mean(y), guide.mean(y))
    with pytest.raises(ValueError, match="20 of 20 rows"):
        fresh.mean(y + 1)
    for each in (guide, fresh):
        pyro.set_rng_seed(1)
        loss_of(model, each, y, torch.arange(3, 8)).backward()
    assert torch.equal(table(fresh), table(guide))
    assert visits(fresh) == visits(guide)


def test_copies_are_trained_apart() -> None:
    """Also when a loss was computed before the copy and is differentiated after it."""
    model, guide = pair()
    y, rows = data(), torch.arange(5)
    loss = loss_of(model, guide, y, rows)
    copied = copy.deepcopy(guide)
    before = table(guide)
    loss_of(model, copied, y, rows).backward()
    assert torch.equal(table(guide), before)
    once = table(copied)
    assert not torch.equal(once, before)
    assert not torch.equal(once, before)
    assert not torch.equal(once, before)
    loss.backward()
    assert not torch.equal(table(guide), before)
    assert torch.equal(table(copied), once)


# ---------------------------------------------------------------------- where the table lives


def tensors_of(map: pv.InferenceMap) -> dict[str, Tensor]:
    """The table, its optimizer's state, and the digests."""
    return dict(map.named_buffers())


@pytest.mark.parametrize("move", ["to", "apply"])
def test_a_table_stays_where_it_is_told(move: str) -> None:
    """The guide moves to a device without memory of its own, and no entry of the table is lost."""
    model = pv.models.VAE(nn.Linear(2, 3), pv.likelihoods.Gaussian(sigma=0.5), latent_dim=2)
    guide, y = pv.Guide(model, pv.LocalParameters(NUM_DATA, device="cpu")), data()
    guide.map.remember(y)
    loss_of(model, guide, y, torch.arange(5)).backward()
    before = {name: value.clone() for name, value in tensors_of(guide.map).items()}
    guide.to("meta", torch.float64) if move == "to" else guide.double().to(device="meta")
    for name, value in tensors_of(guide.map).items():
        assert value.device == torch.device("cpu")
        assert torch.equal(value, before[name].to(value.dtype)), name
    assert table(guide).dtype == torch.float64
    assert visits(guide) == [1] * 5 + [0] * 15
    (anchor,) = guide.map.parameters()
    assert anchor.device == torch.device("meta")  # so that data go where the model is
    with pv.minibatch(torch.arange(3), NUM_DATA):
        assert guide.parameters_of(y[:3].to("meta")).device == torch.device("meta")


def test_a_table_moves_with_the_guide_unless_told() -> None:
    """Without a device of its own it goes along; what is lost there shows that it did."""
    _, guide = pair()
    guide.to("meta")
    devices = {value.device for value in tensors_of(guide.map).values()}
    assert devices == {torch.device("meta")}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device with memory")
def test_training_with_the_table_elsewhere() -> None:
    """A model on a GPU, its table in main memory: rows move as they do beside the model."""
    model, beside = pair()
    guides = (beside, pv.Guide(model, pv.LocalParameters(NUM_DATA, device="cpu")))
    y = data().cuda()
    for each in (model, *guides):
        each.cuda()
    for guide in guides:
        pyro.set_rng_seed(1)
        loss_of(model, guide, y, torch.arange(5)).backward()
    assert table(guides[1]).device == torch.device("cpu")
    torch.testing.assert_close(table(guides[1]), table(beside).cpu())
    assert visits(guides[1]) == [1] * 5 + [0] * 15


# ---------------------------------------------------------------------- fitted to given data


def mean_field_elbo(guide: pv.Guide, y: Tensor) -> Tensor:
    """The exact ELBO of a mean-field guide of factor analysis, `(batch,)`, in nats."""
    loc, log_scale = guide.posterior(y).parameters.detach().chunk(2, dim=-1)
    q = MultivariateNormal(loc, torch.diag_embed((2 * log_scale).exp()))
    return FACTS.log_evidence(y) - kl_divergence(q, FACTS.posterior(y))


@float64
def test_rows_reach_the_mean_field_optimum() -> None:
    """Mean m and variances 1 / P_ii for every datum, so the ELBO is a known gap below log p(y)."""
    y = torch.cat([FACTS_Y, FACTS.sample(NUM_DATA - 1)])
    guide = pv.Guide(factor_analysis, pv.GlobalParameters(), example=y)
    stream = torch.get_rng_state()
    fitted = guide.fit_rows(y)
    assert torch.equal(torch.get_rng_state(), stream)
    fit = fitted.row_fit
    assert fit is not None
    assert fit.converged.all()
    elbo = mean_field_elbo(fitted, y)
    best = FACTS.log_evidence(y) - FACTS.mean_field_gap()
    assert (best - elbo).min() >= -1e-12  # nothing is above the optimum
    assert (best - elbo).max() < 1e-8
    assert ((fit.elbo - elbo).abs() < 8 * fit.error).all()
    # The new guide answers for these data, and for no others.
    assert_shapes_and_refuses(fitted, y)


@float64
def test_new_rows_join_a_table() -> None:
    """Old rows stay to the bit, with their optimizer; new ones reach the mean-field optimum.

    The twin, new rows at the prior, does not. Training goes on with all of them.
    """
    y, model = FACTS.sample(12), factor_analysis
    guide = pv.Guide(model, pv.LocalParameters(8), example=y)
    pv.fit(model, guide, y[:8], num_epochs=3, train_model=False, progress=False)
    before, steps = table(guide), visits(guide)
    more = guide.extended(y[8:], progress=False)
    assert torch.equal(table(more)[:8], before)
    assert visits(more) == steps + [0] * 4
    assert torch.equal(table(guide), before)
    best = mean_field_elbo(guide.fit_rows(y[8:], progress=False), y[8:])
    blank = pv.Guide(model, pv.LocalParameters(12), example=y)
    reached, prior = (mean_field_elbo(some, y)[8:] for some in (more, blank))
    torch.testing.assert_close(reached, best, rtol=0, atol=1e-3)
    assert float((best - prior).mean()) > 0.1
    with pytest.raises(ValueError, match="must be those that LocalParameters was trained on"):
        more.mean(y.flip(0))
    pv.fit(model, more, y, num_epochs=1, train_model=False, progress=False)
    assert visits(more) == [step + 1 for step in steps] + [1] * 4
    with pytest.raises(TypeError, match=r"only a guide with pv\.LocalParameters"):
        pv.Guide(model, pv.GlobalParameters(), example=y).extended(y)


def assert_shapes_and_refuses(fitted: pv.Guide, y: Tensor) -> None:
    """A guide of fitted rows is one for its data."""
    assert not fitted.training
    assert fitted.sample(y, 3).shape == (3, len(y), 2)
    with pytest.raises(ValueError, match="must be those that LocalParameters"):
        fitted.mean(y.flip(0))


@float64
def test_rows_of_a_constrained_latent() -> None:
    r"""A normal q of z = log rate, where E[e^z] is known: its optimum is on paper.

    With :math:`a = 2 + y, b = 3 + 1`: :math:`s^2 = 1/a, \; m = \log(a/b) - s^2 / 2`.
    """
    y = torch.tensor([0.0, 1.0, 3.0, 20.0])
    guide = pv.Guide(gamma, pv.GlobalParameters(), example=y)
    fitted = guide.fit_rows(y, pv.FitRows(num_particles=64))
    shape = 2 + y
    loc, log_scale = fitted.posterior(y).parameters.detach().unbind(-1)

    def elbo(loc: Tensor, log_scale: Tensor) -> Tensor:
        """Up to a constant."""
        return shape * loc - 4 * (loc + (2 * log_scale).exp() / 2).exp() + log_scale

    best = elbo((shape / 4).log() - 1 / (2 * shape), -shape.log() / 2)
    assert (best - elbo(loc, log_scale)).max() < 0.01  # of about 1 nat from prior to posterior
    assert (best - elbo(loc, log_scale)).min() >= -1e-12


FEW_STEPS = pv.FitRows(max_steps=2)


@float64
def test_fits_are_reproducible() -> None:
    """The same seed, the same rows. A short fit says it has not converged."""
    y = torch.tensor([0.0, 1.0, 3.0, 20.0])
    guide = pv.Guide(gamma, pv.GlobalParameters(), example=y)
    first, second = (guide.fit_rows(y, FEW_STEPS, seed=1) for _ in range(2))
    assert torch.equal(table(first), table(second))
    assert first.row_fit is not None
    assert not first.row_fit.converged.all()


@float64
def test_pieces_do_not_matter() -> None:
    """Rows that do not fit into memory at once are fitted in pieces, each to its own data."""
    y = FACTS.sample(5)
    guide = pv.Guide(factor_analysis, pv.GlobalParameters(), example=y)
    method = pv.FitRows(num_particles=8, max_rows=16)  # two data at once
    pieces = guide.fit_rows(y, method)
    alone = guide.fit_rows(y[:2], method)
    assert table(pieces).shape == (5, 4)
    torch.testing.assert_close(table(pieces)[:2], table(alone))
    assert (mean_field_elbo(pieces, y) > FACTS.log_evidence(y) - 1).all()


@pytest.mark.parametrize("map_name", ["encoder", "local"])
def test_where_a_fit_starts(map_name: str) -> None:
    """At the encoder's answer; near the prior where rows belong to other data."""
    model, guide = pair()
    if map_name == "encoder":
        guide = pv.Guide(model, pv.Encoder(nn.Linear(3, 4)))
    y = data(6)
    fitted = guide.fit_rows(y, pv.FitRows(max_steps=0))
    start = guide.parameters_of(y).detach() if map_name == "encoder" else torch.zeros(6, 4)
    assert torch.equal(table(fitted), start)


def test_a_fit_leaves_the_model_alone() -> None:
    """Weights, gradients, buffers and modes; and it takes NumPy's arrays."""
    decoder = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
    model = pv.models.VAE(decoder, pv.likelihoods.Gaussian(), latent_dim=2)
    guide = pv.Guide(model, pv.Encoder(nn.Linear(3, 4)))
    before = copy.deepcopy(model.state_dict())
    fitted = guide.fit_rows(np.ones((4, 3), dtype=np.float32), FEW_STEPS)
    assert fitted.model is model
    assert model.training
    assert guide.training
    assert all(value.grad is None for value in [*model.parameters(), *guide.parameters()])
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def broken(y: Tensor) -> None:
    """Its density is nan for positive data, and nothing else looks."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        loc = torch.where(y > 0, torch.nan, z)
        pyro.sample("y", dist.Normal(loc, 1.0, validate_args=False), obs=y)


def test_a_density_that_is_not_finite() -> None:
    """The first such datum is named."""
    y = torch.tensor([-1.0, -1.0, 1.0, 1.0])
    guide = pv.Guide(broken, pv.GlobalParameters(), example=y)
    with pytest.raises(FloatingPointError, match=r"in 2 rows, first in row 2 \(ELBO nan\)"):
        guide.fit_rows(y, FEW_STEPS)
    pieces = pv.FitRows(num_particles=8, max_rows=16)  # two data at once
    with pytest.raises(FloatingPointError, match=r"first in row 2 \(ELBO nan"):
        guide.fit_rows(y, pieces)


@float64
def test_new_rows_are_fitted_as_told() -> None:
    """Under the options given, from the draws of the seed; the twins, other ones, differ."""
    y = torch.arange(6.0)
    guide = pv.Guide(gamma, pv.LocalParameters(2), example=y)
    ways: list[dict[str, Any]] = [
        {},
        {"fitting": pv.FitRows(num_particles=4, max_steps=1)},
        {"fitting": pv.FitRows(num_particles=4, max_steps=1), "seed": 1},
    ]
    fits = []
    for way in ways:
        longer, alone = guide.extended(y[2:], **way), guide.fit_rows(y[2:], **way)
        assert torch.equal(table(longer)[2:], table(alone))
        assert longer.row_fit is not None
        assert alone.row_fit is not None
        assert torch.equal(longer.row_fit.elbo, alone.row_fit.elbo)
        fits.append(longer.row_fit)
    for one, other in itertools.combinations(fits, 2):
        assert not torch.allclose(one.elbo, other.elbo)


@float64
@pytest.mark.parametrize("decay", [0.5, 50.0])
def test_steps_decay(decay: float) -> None:
    """Under a constant gradient Adam steps by the step size, lr / sqrt(1 + k / decay)."""
    map_ = pv.LocalParameters(3, lr=0.2, decay=decay)
    guide = pv.Guide(factor_analysis, map_, example=FACTS.sample(3))
    before, rows = table(guide), torch.tensor([2])
    for _ in range(4):
        map_.update(rows, torch.full((1, before.shape[1]), 3.0))
    path = sum(0.2 / (1 + k / decay) ** 0.5 for k in range(1, 5))
    torch.testing.assert_close((before - table(guide))[2], torch.full_like(before[2], path))
    longer = guide.extended(FACTS.sample(1)).map
    assert isinstance(longer, pv.LocalParameters)
    assert (longer.lr, longer.decay) == (0.2, decay)
