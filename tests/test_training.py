"""Training: seeds, what a step is, the warm-up, and what may be chosen."""

import copy
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import (
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.compiling import Captured
from pyro_vae.training import clipped, constant, hold_then_fall
from pyro_vae.training.optimizers import Scheduler
from tests.helpers.factor_analysis import (
    amortization_gap,
    best_global,
    mean_field_guide,
    model_of,
)
from tests.helpers.statistics import FACTS, assert_mean
from tests.helpers.training import (
    OneParameter,
    Prior,
    adam,
    assert_same_state,
    data,
    fit,
    sgd,
    small,
    state,
    stop_after,
)

MODEL = model_of(FACTS)


# Seeds


def test_seed_is_the_result() -> None:
    """The same seed gives the same weights to the last bit, another one others."""
    model, guide = small()
    y, start = data(), copy.deepcopy((model, guide))
    torch.manual_seed(1)
    first = state(model, guide)
    results, states = [], []
    for seed in (3, 3, 4):
        model, guide = start[0], pv.Guide(start[0], pv.Encoder(nn.Linear(3, 4)))
        model.load_state_dict({name[2:]: v for name, v in first.items() if name[0] == "0"})
        guide.load_state_dict({name[2:]: v for name, v in first.items() if name[0] == "1"})
        results.append(fit(model, guide, y, num_epochs=2, batch_size=4, seed=seed))
        states.append(state(model, guide))
    assert_same_state(states[0], states[1])
    assert np.array_equal(results[0].history.elbo, results[1].history.elbo)
    assert not torch.equal(states[0]["0.decoder.weight"], states[2]["0.decoder.weight"])
    assert [result.seed for result in results] == [3, 3, 4]


def test_streams_of_the_caller() -> None:
    """Training draws from streams of its own."""
    model, guide = small()
    y = data()
    before = torch.get_rng_state(), str(np.random.get_state())  # noqa: NPY002
    fit(model, guide, y, num_epochs=1, validation=y)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert str(np.random.get_state()) == before[1]  # noqa: NPY002


# What a step is


@pytest.mark.parametrize("subsamples", [False, True])
@pytest.mark.parametrize("batch_size", [1, 4, 7, 10, 999])
def test_every_datum_counts_the_same(batch_size: int, *, subsamples: bool) -> None:
    """In an epoch of small steps theta moves by lr / B times the gradient of all data.

    Ten rows in batches of 4 leave a last one of 2, which would move it as far as the others if
    batches counted in place of rows. What is reported is the mean over data, exactly. A plate
    that subsamples by itself is not scaled twice.
    """
    y, lr = torch.arange(10, dtype=torch.float64) ** 2, 1e-9
    model = OneParameter(subsamples=subsamples)
    guide = Prior(model)
    result = fit(model, guide, y, num_epochs=1, batch_size=batch_size, optimizer=sgd(lr=lr))
    gradient = y.sum() / min(batch_size, 10)
    torch.testing.assert_close(model.theta.detach() / lr, gradient, rtol=1e-6, atol=0)
    exact = torch.distributions.Normal(0.0, 1.0).log_prob(y).mean()
    assert result.history.elbo[0] == pytest.approx(exact.item(), rel=1e-7)


@pytest.mark.parametrize(
    "make_map", [lambda: pv.Encoder(nn.Linear(3, 4)), lambda: pv.LocalParameters(1)]
)
def test_one_row(make_map: Callable[[], pv.InferenceMap]) -> None:
    """One datum is a data set."""
    model, guide = small(map=make_map())
    result = fit(model, guide, torch.ones(1, 3), num_epochs=3)
    assert result.history.elbo.shape == (3,)
    assert np.isfinite(result.history.elbo).all()


OBJECTIVES = [
    Trace_ELBO(),
    Trace_ELBO(num_particles=3),
    Trace_ELBO(num_particles=3, vectorize_particles=True),
    TraceMeanField_ELBO(),
    TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False),
]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: type(objective).__name__)
def test_objectives(objective: Any) -> None:
    """Every ELBO of Pyro with a differentiable loss trains, towards the same optimum."""
    y = FACTS.sample(40)
    guide = pv.Guide(MODEL, pv.GlobalParameters(), example=y)
    before = (MODEL, guide, y, 100)
    start = pv.elbo(*before).mean.value
    result = fit(
        MODEL, guide, y, num_epochs=60, batch_size=20, objective=objective, optimizer=adam(lr=0.05)
    )
    gap = amortization_gap(FACTS, y, guide.parameters_of(y)).mean()
    best = amortization_gap(FACTS, y, best_global(FACTS, y)).mean()
    assert best - 1e-9 <= gap < best + 0.05
    assert pv.elbo(*before).mean.value > start + 0.5
    assert result.trained == ("guide.map.value",)


@pytest.mark.parametrize("objective", [RenyiELBO(), TraceGraph_ELBO()])
def test_objectives_that_are_refused(objective: Any) -> None:
    """Without a differentiable loss there is no gradient for a torch optimizer to follow."""
    model, guide = small()
    with pytest.raises(TypeError, match=r"a method differentiable_loss.*pyro\.infer\.SVI"):
        fit(model, guide, data(), objective=objective)


# Warm-up


@pytest.mark.usefixtures("float64")
def test_warmup_does_not_leak(seed: int) -> None:
    """At a step size of 0 every epoch reports the same full ELBO, whatever the weight of the KL.

    At a weight of 0 it would be minus the distortion, higher by the rate.
    """
    y = FACTS.sample(200)
    guide = mean_field_guide(FACTS, MODEL)
    result = fit(
        MODEL,
        guide,
        y,
        num_epochs=31,
        batch_size=70,
        optimizer=sgd(lr=0.0),
        seed=seed,
        objective=pv.BetaELBO(pv.LinearWarmup(30)),
    )
    elbo = (FACTS.log_evidence(y) - FACTS.mean_field_gap()).mean()
    assert_mean(torch.from_numpy(result.history.elbo), elbo)
    rate = pv.elbo(MODEL, guide, y, 50).rate.value.mean()
    with pytest.raises(AssertionError, match="resolution"):
        assert_mean(torch.from_numpy(result.history.elbo), elbo + rate / 2)
    # Three steps an epoch: the last one of the first has weight 2 / 3 of 1 / 30.
    expected = [min(1.0, (epoch + 2 / 3) / 30) for epoch in range(31)]
    assert result.history.kl_weight == pytest.approx(expected)


@pytest.mark.parametrize("warmup", [0, 1])
def test_warmup_is_in_the_loss(warmup: int) -> None:
    """The first step has weight 0 then: the q of an idle latent stays where it is."""
    model, y = OneParameter(), torch.arange(4, dtype=torch.float64)
    map = pv.GlobalParameters()
    guide = pv.Guide(model, map, example=y)
    with torch.no_grad():
        map.value.fill_(1)
    objective = pv.BetaELBO(pv.LinearWarmup(warmup)) if warmup else None
    fit(model, guide, y, num_epochs=2, objective=objective, augment=stop_after(2))
    assert bool((map.value == 1).all()) == (warmup == 1)
    assert model.theta.item() > 0


@pytest.mark.parametrize("warmup", [5, 6])
def test_warmup_has_to_end(warmup: int) -> None:
    """Else the model would be a beta-VAE with beta below 1, in silence."""
    with pytest.raises(ValueError, match=f"a warm-up of {warmup} epochs in 5 epochs"):
        fit(*small(), data(), num_epochs=5, objective=pv.BetaELBO(pv.LinearWarmup(warmup)))


# History, optimizers and schedules


def test_history() -> None:
    """One entry an epoch, of what its name says."""
    model, guide = small()
    result = fit(model, guide, data(), num_epochs=4, batch_size=5, optimizer=sgd(lr=0.1), seed=2)
    history = result.history
    assert history.epoch.tolist() == [1, 2, 3, 4]
    assert history.learning_rate == pytest.approx([0.1, 0.1, 0.1, 0.05])
    assert history.kl_weight.tolist() == [1, 1, 1, 1]
    assert (np.diff(history.seconds) > 0).all()
    assert np.isfinite(history.elbo).all()
    assert np.isnan(history.validation_elbo).all()
    assert np.isnan(history.validation_error).all()
    assert (result.stopped, result.best_epoch) == ("finished", 4)
    assert "kept the parameters of epoch 4" in result.summary()


@pytest.mark.parametrize(
    ("scheduler", "rates"),
    [
        (None, [1, 1, 1, 0.5]),
        (constant, [1, 1, 1, 1]),
        (hold_then_fall(2), [1, 1, 0, 0]),
        (functools.partial(torch.optim.lr_scheduler.StepLR, step_size=2), [1, 1, 0.1, 0.1]),
    ],
)
def test_schedulers(scheduler: Any, rates: list[float]) -> None:
    """Stepped once an epoch; the default one falls in the second half."""
    model, guide = small()
    result = fit(
        model, guide, data(), num_epochs=4, batch_size=3, optimizer=sgd(lr=1e-3),
        scheduler=scheduler,
    )  # fmt: skip
    assert result.history.learning_rate == pytest.approx(1e-3 * np.array(rates))


@pytest.mark.parametrize(
    "optimizer",
    [torch.optim.Adam, torch.optim.RMSprop, adam(lr=0.01), sgd(lr=0.01, momentum=0.9)],
)
def test_optimizers(optimizer: Any) -> None:
    """Whatever makes a torch optimizer of a list of tensors."""
    model, guide = small()
    before = model.decoder.weight.clone()
    fit(model, guide, data(), num_epochs=2, optimizer=optimizer)
    assert not torch.equal(model.decoder.weight, before)


def test_optimizers_of_pyro_are_refused() -> None:
    """They take parameters one by one, in a loop of the user's own."""
    model, guide = small()
    optimizers: Any = pyro.optim
    for optimizer, alike in (
        (optimizers.ClippedAdam({"lr": 0.1}), "Adam, lr=0.1"),
        (optimizers.SGD({"lr": 0.2}), "SGD, lr=0.2"),
        (optimizers.Adam(lambda name: {"lr": 0.1}), "Adam"),
    ):
        with pytest.raises(TypeError, match=r"got one of pyro\.optim") as refused:
            fit(model, guide, data(), optimizer=optimizer)
        assert str(refused.value).endswith(f"functools.partial(torch.optim.{alike})")


@pytest.mark.usefixtures("user_param_store")
def test_a_table_follows_the_schedule_and_forgets_it() -> None:
    """Its rows rest while the step size is 0, and move again in a loop of the user's own."""
    model, guide = small(map=pv.LocalParameters(10))
    y = data()
    assert isinstance(guide.map, pv.LocalParameters)
    fit(model, guide, y, num_epochs=1)  # the schedule has fallen to 0 at its end
    table = guide.map.table.clone()
    fit(model, guide, y, num_epochs=1, scheduler=_rest)
    assert torch.equal(guide.map.table, table)
    with pv.minibatch(torch.arange(10), 10):
        Trace_ELBO().differentiable_loss(model, guide, y).backward()
    assert not torch.equal(guide.map.table, table)


def _rest(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.0)


@pytest.mark.parametrize(("name", "value"), [("num_epochs", 0), ("batch_size", 0)])
def test_bad_sizes(name: str, value: int) -> None:
    """At least one epoch of at least one row."""
    model, guide = small()
    options: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match=rf"`{name}` must be .* at least 1.*; got 0"):
        fit(model, guide, data(), **options)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (torch.zeros(0, 3), "at least one row"),
        (torch.tensor([[0, torch.nan, 0], [0, 0, 0]]), "MissingIndicator"),
        (torch.tensor([[0, torch.inf, 0], [0, 0, 0]]), "row 0, column 1"),
        (255 * torch.eye(3), "divide by 255"),
    ],
)
def test_bad_data(y: Tensor, message: str) -> None:
    """Refused at the door, be they for training or for validation."""
    model, guide = small(pv.likelihoods.Bernoulli())
    with pytest.raises(ValueError, match=message):
        fit(model, guide, y)
    with pytest.raises(ValueError, match=message):
        fit(model, guide, data(), validation=y)


def test_constant_columns_are_named() -> None:
    """They swallow a likelihood that learns its scale."""
    model, guide = small(pv.likelihoods.Gaussian(pv.likelihoods.LearnedSigma()))
    y = data()
    y[:, 1] = 5
    with pytest.warns(UserWarning, match=r"constant in 1 of \d columns over 10 rows \(1\)"):
        fit(model, guide, y, num_epochs=1)


@pytest.mark.parametrize("mode", ["min", "max"])
def test_plateaus_are_told_the_elbo(mode: Any) -> None:
    """Whichever way a scheduler is told to look: while the ELBO rises it is content."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau
    scheduler = Scheduler(functools.partial(plateau, patience=0, mode=mode), optimizer)
    for elbo in (1, 2, 3):
        scheduler.step(float(elbo))
    assert optimizer.param_groups[0]["lr"] == 1.0
    scheduler.step(0.0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


_SHORT = functools.partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=1)
UNUSABLE: list[tuple[dict[str, Any], str]] = [
    ({"scheduler": _SHORT, "num_epochs": 2}, "OneCycleLR failed .* to the number of epochs"),
    ({"scheduler": torch.optim.lr_scheduler.StepLR}, r"step_size=10\); .*StepLR.* fails"),
    ({"scheduler": lambda made: torch.optim.lr_scheduler.LambdaLR(made, lambda _: -1.0)}, "-0.002"),
    ({"optimizer": functools.partial(torch.optim.LBFGS, lr=0.1)}, "`fit` cannot use LBFGS"),
    (
        {"optimizer": functools.partial(torch.optim.SGD, lr=float("nan"))},
        "the step size .* got nan",
    ),
    (
        {"optimizer": functools.partial(torch.optim.Adam, lr=float("inf"))},
        "the step size .* got inf",
    ),
    (
        {"optimizer": functools.partial(torch.optim.Adam, lr=-1.0)},
        "such as torch.optim.Adam.*Invalid learn",
    ),
    (
        {"optimizer": lambda _: torch.optim.Adam([])},
        "such as torch.optim.Adam.*empty parameter list",
    ),
    ({"device": "gpu"}, "pass 'cpu', or 'cuda' where"),
    ({"device": "meta"}, "pass 'cpu', or 'cuda' where"),
]


@pytest.mark.parametrize(("options", "message"), UNUSABLE)
def test_what_fit_cannot_use_is_refused(options: dict[str, Any], message: str) -> None:
    """With the line to write."""
    with pytest.raises((TypeError, ValueError), match=message):
        fit(*small(), data(), **{"num_epochs": 1, **options})


def test_an_optimizer_that_is_made_already() -> None:
    """Trains as a factory of the same settings does, by group, and is left as it was."""

    def weights(model: Any, guide: Any, **options: Any) -> list[Tensor]:
        fit(model, guide, y, num_epochs=2, seed=1, **options)
        return list(state(model, guide).values())

    y, (model, guide) = data(), small()
    (other, its), (third, with_groups) = (copy.deepcopy((model, guide)) for _ in range(2))
    made = torch.optim.SGD([*model.parameters(), *guide.parameters()], lr=0.01, momentum=0.9)
    groups = torch.optim.SGD(
        [{"params": third.parameters(), "lr": 0.0}, {"params": with_groups.parameters()}], lr=0.01
    )
    ours = weights(model, guide, optimizer=made)
    theirs = weights(
        other, its, optimizer=functools.partial(torch.optim.SGD, lr=0.01, momentum=0.9)
    )
    for one, two in zip(ours, theirs, strict=True):
        assert torch.equal(one, two)
    assert (made.param_groups[0]["lr"], made.state) == (0.01, {})
    before = state(third)
    weights(third, with_groups, optimizer=groups)
    for name, value in state(third).items():
        assert torch.equal(value, before[name])
    with pytest.raises(ValueError, match=r"lacks 4 of 4 .* lr=0\.01\)"):
        fit(*small(), data(), optimizer=made)


def test_a_guide_of_another_model() -> None:
    """One whose latents have other sizes is refused by their names."""
    model = pv.models.VAE(nn.Linear(3, 3), pv.likelihoods.Gaussian(), latent_dim=3)
    with pytest.raises(ValueError, match=r"sizes \{'z': 2\}.* \{'z': 3\}.* pv\.Guide\("):
        fit(model, small()[1], data())


@pytest.mark.parametrize("compile", [False, True])
def test_clipped_gradients(monkeypatch: pytest.MonkeyPatch, *, compile: bool) -> None:
    """Together as long as they may be, in steps of either kind."""
    monkeypatch.setattr(Captured, "compiled", lambda run, *args: run)
    torch.manual_seed(0)
    model, guide = small()
    parameters = [*model.parameters(), *guide.parameters()]
    before = torch.cat([part.detach().flatten() for part in parameters])
    fit(
        model, guide, data(), num_epochs=2, compile=compile, scheduler=constant,
        optimizer=clipped(sgd(lr=1.0), max_norm=1e-3),
    )  # fmt: skip
    after = torch.cat([part.detach().flatten() for part in parameters])
    assert 1e-3 < (after - before).norm() < 2.01e-3


def test_an_optimizer_that_is_made_already_clips_too() -> None:
    """Its hooks run in the optimizer that takes its place."""
    model, guide = small()
    parameters = [*model.parameters(), *guide.parameters()]
    before = torch.cat([part.detach().flatten() for part in parameters])
    made = clipped(sgd(lr=1.0), max_norm=1e-3)(parameters)
    fit(model, guide, data(), num_epochs=1, scheduler=constant, optimizer=made)
    after = torch.cat([part.detach().flatten() for part in parameters])
    assert 0 < (after - before).norm() < 1.01e-3


def test_integers_and_halves_are_refused_with_the_line_to_write() -> None:
    """Data are those of the model's dtype; float16 has no room for an optimizer."""
    with pytest.raises(ValueError, match=r"with torch\.as_tensor\(y\)\.to\(torch\.float32\)$"):
        fit(*small(), data().long())
    model, guide = small()
    with pytest.raises(ValueError, match=r"float16, in which optimizer steps overflow"):
        fit(model.half(), guide.half(), data().half())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_are_switched_on(mode: Any) -> None:
    """Where the caller has none."""
    model, guide = small()
    before, y = model.decoder.weight.clone(), data()
    with mode():
        fit(model, guide, y, num_epochs=1)
        assert not torch.is_grad_enabled()
    assert not torch.equal(model.decoder.weight, before)


def test_parameters_of_inference_mode_are_refused() -> None:
    """Torch differentiates nothing by them; data of that mode are copied."""
    with torch.inference_mode():
        net, y = nn.Linear(2, 3), data() * 1.0
    with pytest.raises(ValueError, match=r"'decoder\.weight' was created in torch\.inference_mode"):
        pv.models.VAE(net, pv.likelihoods.Gaussian(), latent_dim=2)
    model, guide = small()
    fit(model, guide, y, num_epochs=1)


def test_a_last_batch_of_one_row() -> None:
    """Layers that take the spread over a batch have it join the one before; others see it alone."""
    sizes: list[int] = []

    class Sees(nn.Module):
        def forward(self, y: Tensor) -> Tensor:
            sizes.append(len(y))
            return y

    def run(rows: int, batch_size: int, norm: nn.Module) -> list[int]:
        model = pv.models.VAE(nn.Linear(2, 3), pv.likelihoods.Gaussian(), latent_dim=2)
        net = nn.Sequential(Sees(), norm, nn.Linear(3, 4))
        guide = pv.Guide(model, pv.Encoder(net))
        fit(model, guide, torch.eye(9, 3)[:rows], num_epochs=1, batch_size=batch_size)
        return sizes[-3:]

    assert run(9, 4, nn.BatchNorm1d(3))[-2:] == [4, 5]
    assert run(9, 4, nn.LayerNorm(3))[-3:] == [4, 4, 1]
    with pytest.raises(ValueError, match=r"BatchNorm1d 'map\.net\.1' requires the variance"):
        run(9, 1, nn.BatchNorm1d(3))
    with pytest.raises(ValueError, match="requires the variance over a batch"):
        run(1, 4, nn.BatchNorm1d(3))


def test_data_that_require_gradients_are_not_trained() -> None:
    """They are leaves of the loss's graph, as parameters are; they stay as they were."""
    y = data().requires_grad_()
    before = y.detach().clone()
    result = fit(*small(), y, num_epochs=2)
    assert torch.equal(y, before)
    assert not [name for name in result.trained if "unregistered" in name]


def test_parameters_behind_a_detach_are_named() -> None:
    """They are not trained, as a warning says before training, and the result after it."""

    class Detached(nn.Linear):
        def forward(self, z: Tensor) -> Tensor:
            return super().forward(z).detach()

    model = pv.models.VAE(Detached(2, 3), pv.likelihoods.Gaussian(), latent_dim=2)
    guide = pv.Guide(model, pv.Encoder(nn.Linear(3, 4)))
    with pytest.warns(UserWarning, match=r"of the model .*decoder\.weight and 1 more.* detach\(\)"):
        result = fit(model, guide, data(), num_epochs=1)
    assert "loss does not depend on model.decoder.weight and 1 more, so" in result.advice
    model.requires_grad_(requires_grad=False)
    assert "no part" not in fit(model, guide, data(), num_epochs=1).advice
    assert "no part" not in fit(*small(), data(), num_epochs=1).advice
    assert "no part" not in fit(model, guide, data(), num_epochs=1, train_model=False).advice
