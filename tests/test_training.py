"""Training: what a step is, what stops it, what it leaves behind, and the optima it reaches."""

import copy
import functools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import (
    SVI,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from pyro.nn import PyroModule, PyroParam, pyro_method
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.training import Fit, constant, hold_then_fall
from tests.factor_analysis import amortization_gap, mean_field_guide, model_of, prior_guide
from tests.statistics import FACTS, FACTS_Y, assert_mean

MODEL = model_of(FACTS)

fit = functools.partial(pv.fit, progress=False)
adam = functools.partial(functools.partial, torch.optim.Adam)  # adam(lr=0.1) is a factory
sgd = functools.partial(functools.partial, torch.optim.SGD)


def small(likelihood: Any = None, map: pv.InferenceMap | None = None) -> tuple[Any, pv.Guide]:
    """A model of three features and two latents, and a guide."""
    likelihood = pv.likelihoods.Gaussian() if likelihood is None else likelihood
    model = pv.models.VAE(nn.Linear(2, 3), likelihood, latent_dim=2)
    return model, pv.Guide(model, pv.Encoder(nn.Linear(3, 4)) if map is None else map)


MAPS: dict[str, Callable[[], pv.InferenceMap]] = {
    "encoder": lambda: pv.Encoder(nn.Linear(3, 4)),
    "rows": lambda: pv.LocalParameters(10),
    "global": pv.GlobalParameters,
}


def data(rows: int = 10) -> Tensor:
    """Binary, so that they fit every likelihood; no column is constant."""
    return torch.cat([torch.eye(3), torch.rand(rows - 3, 3).round()])


def state(*modules: nn.Module) -> dict[str, Tensor]:
    """A copy of all that modules hold."""
    return {
        f"{index}.{name}": value.clone()
        for index, module in enumerate(modules)
        for name, value in module.state_dict().items()
    }


def assert_same_state(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Equal to the last bit, but for the note of which data a table belongs to."""
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        if not name.endswith("digests"):
            assert torch.equal(value, expected[name]), f"{name} differs"


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


ZERO = torch.zeros(2, dtype=torch.float64)


class OneParameter(nn.Module):
    """y ~ N(theta, 1) with an idle z: with the prior as the guide the loss has no noise."""

    def __init__(self, *, subsamples: bool = False) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.subsamples = subsamples

    def forward(self, y: Tensor) -> None:
        """The program; in the idiom of Pyro's subsampling if asked to."""
        with self.plate(y):
            pyro.sample("z", dist.Normal(ZERO, ZERO + 1).to_event(1))
            pyro.sample("y", dist.Normal(self.theta, 1.0), obs=y)

    def plate(self, y: Tensor) -> Any:
        """Over ten data of which these are some, or over these."""
        size = 10 if self.subsamples else len(y)
        return pyro.plate("data", size, subsample_size=len(y))


class Prior(nn.Module):
    """The prior as a guide, in the idiom of the model."""

    def __init__(self, model: OneParameter) -> None:
        super().__init__()
        self.model = [model]  # in a list, so as not to be a submodule

    def forward(self, y: Tensor) -> None:
        """The program."""
        with self.model[0].plate(y):
            pyro.sample("z", dist.Normal(ZERO, ZERO + 1).to_event(1))


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
    best = amortization_gap(FACTS, y, best_global(y)).mean()
    assert best - 1e-9 <= gap < best + 0.05
    assert pv.elbo(*before).mean.value > start + 0.5
    assert result.trained == ("guide.map.value",)


@pytest.mark.parametrize("objective", [RenyiELBO(), TraceGraph_ELBO()])
def test_objectives_that_are_refused(objective: Any) -> None:
    """Without a differentiable loss there is no gradient for a torch optimizer to follow."""
    model, guide = small()
    with pytest.raises(TypeError, match=r"no differentiable_loss.*pyro\.infer\.SVI"):
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
        MODEL, guide, y, num_epochs=31, batch_size=70, optimizer=sgd(lr=0.0), warmup=30, seed=seed
    )
    elbo = (FACTS.log_evidence(y) - FACTS.mean_field_gap()).mean()
    assert_mean(torch.from_numpy(result.history.elbo), elbo)
    rate = pv.elbo(MODEL, guide, y, 50).rate.value.mean()
    with pytest.raises(AssertionError, match="resolution"):
        assert_mean(torch.from_numpy(result.history.elbo), elbo + rate / 2)
    # Three steps an epoch: the last one of the first has weight 2 / 3 of 1 / 30.
    expected = [min(1.0, (epoch + 2 / 3) / 30) for epoch in range(31)]
    assert result.history.kl_weight == pytest.approx(expected)


def test_warmup_is_in_the_loss() -> None:
    """While the weight is 0 a guide that is paid for likelihood alone does not stay a prior."""
    widths = []
    for warmup in (0, 9_999):
        model, guide = small(pv.likelihoods.Gaussian(0.1), pv.GlobalParameters())
        fit(model, guide, data(), num_epochs=10_000, warmup=warmup, scheduler=constant,
            optimizer=adam(lr=0.1), per_batch=_stop_after(60), train_model=False)  # fmt: skip
        widths.append(guide.parameters_of(data())[0, 2:].exp().mean().item())
    assert widths[1] < widths[0]


def _stop_after(calls: int) -> Callable[[Tensor], Tensor]:
    """Leaves batches as they are, and interrupts training after so many."""
    count = iter(range(calls))

    def per_batch(y: Tensor) -> Tensor:
        if next(count, None) is None:
            raise KeyboardInterrupt
        return y

    return per_batch


@pytest.mark.parametrize("warmup", [-1, 5, 6])
def test_warmup_has_to_end(warmup: int) -> None:
    """Else the model would be a beta-VAE with beta below 1, in silence."""
    model, guide = small()
    with pytest.raises(ValueError, match=f"takes {warmup} of 5 epochs"):
        fit(model, guide, data(), num_epochs=5, warmup=warmup)


# Validation and early stopping


def test_early_stopping_waits_for_the_warmup() -> None:
    """At a step size of 0 the first epoch after the warm-up is the best; then patience runs out."""
    model, guide = small()
    result = fit(
        model, guide, data(), num_epochs=50, validation=data(), patience=3, warmup=4,
        optimizer=sgd(lr=0.0),
    )  # fmt: skip
    assert (result.stopped, result.best_epoch, len(result.history.epoch)) == ("early", 5, 8)
    assert len(set(result.history.validation_elbo)) == 1  # the same draws every epoch
    assert result.summary().startswith("early after 8 epochs")


class Walk(torch.optim.SGD):
    """An optimizer that puts every parameter where it is told, step by step."""

    def __init__(self, parameters: list[Tensor], path: list[float]) -> None:
        super().__init__(parameters, lr=0.0)
        self.path = iter(path)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """A step."""
        value = next(self.path)
        for parameter in self.param_groups[0]["params"]:
            parameter.fill_(value)


def walk(*path: float) -> Callable[[list[Tensor]], Walk]:
    """Makes one."""
    return functools.partial(Walk, path=list(path))


@pytest.mark.parametrize(("patience", "num_epochs"), [(None, 7), (2, 5)])
def test_the_best_state_is_kept(patience: int | None, num_epochs: int) -> None:
    """A parameter walks to the held-out mean, 0, and away again: to the state of epoch 3."""
    model, y = OneParameter(), torch.zeros(4, dtype=torch.float64)
    result = fit(
        model, prior_guide, y + 1, num_epochs=7, validation=y, patience=patience,
        optimizer=walk(3, 2, 1, 2, 3, 4, 5),
    )  # fmt: skip
    validation = result.history.validation_elbo.astype(np.float64)
    assert len(validation) == num_epochs
    assert result.stopped == ("finished" if patience is None else "early")
    assert result.best_epoch == 3
    assert model.theta.item() == 1
    exact = torch.distributions.Normal(1.0, 1.0).log_prob(torch.tensor(0.0)).item()
    assert validation[2] == pytest.approx(exact, abs=1e-6)
    assert validation[4] == pytest.approx(exact - 4, abs=1e-6)  # theta = 3


@pytest.mark.parametrize("name", ["encoder", "global"])
def test_the_best_state_has_every_part(name: str) -> None:
    """Model and guide, whose ELBO afterwards is the best in the history to the last bit."""
    model, guide = small(map=MAPS[name]())
    y = data(10)
    result = fit(model, guide, y, num_epochs=3, validation=y, optimizer=walk(0.1, 2, 3))
    assert result.best_epoch == 1
    assert all((parameter == 0.1).all() for parameter in model.parameters())
    assert result.history.validation_elbo.argmax() == 0
    assert pv.elbo(model, guide, y, 10, seed=0).mean.value == result.history.validation_elbo[0]


def test_the_best_state_is_after_the_warmup() -> None:
    """An epoch whose loss had less than the full KL is not kept, be it the best."""
    model, y = OneParameter(), torch.zeros(4, dtype=torch.float64)
    result = fit(
        model, prior_guide, y + 1, num_epochs=5, validation=y, warmup=2, patience=2,
        optimizer=walk(0, 1, 3, 2, 4),
    )  # fmt: skip
    assert result.history.validation_elbo.argmax() == 0
    assert result.best_epoch == 4
    assert model.theta.item() == 2


@pytest.mark.parametrize(("path", "kept"), [((9, 9), "stopped at"), ((1, 9), "epoch 1 had")])
def test_nan_in_the_validation(path: tuple[int, int], kept: str) -> None:
    """Weights that are too much for held-out data: the best ones so far are put back, if any."""
    theta = torch.zeros((), requires_grad=True)

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            loc = torch.where((y < 0) & (theta > 5), torch.nan, theta)
            pyro.sample("y", dist.Normal(loc, 1.0), obs=y)

    y = torch.arange(4.0)
    message = f"after epoch . on the validation data: log_likelihood is nan.*{kept}"
    with pytest.raises(FloatingPointError, match=message.replace("epoch . on", "epoch ., on")):
        fit(model, prior_guide, y, num_epochs=2, validation=-y, optimizer=walk(*path))
    assert theta.item() == path[0]


@pytest.mark.usefixtures("float64")
def test_validation_of_a_table() -> None:
    """Held-out data have no rows: theirs are fitted afresh, to their own optimum."""
    y, held_out = FACTS.sample(12), FACTS.sample(5)
    guide = pv.Guide(MODEL, pv.LocalParameters(12), example=y)
    result = fit(MODEL, guide, y, num_epochs=1, validation=held_out)
    best = (FACTS.log_evidence(held_out) - FACTS.mean_field_gap()).mean().item()
    history = result.history
    value, error = (
        column.astype(np.float64) for column in (history.validation_elbo, history.validation_error)
    )
    assert (abs(value - best) < 0.1 + 5 * error).all()


def test_patience_needs_validation() -> None:
    """Patience waits for something."""
    model, guide = small()
    with pytest.raises(ValueError, match="pass validation="):
        fit(model, guide, data(), patience=3)


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
    assert "kept epoch 4" in result.summary()


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
    with pytest.raises(TypeError, match=r"functools\.partial\(torch\.optim\.Adam"):
        fit(model, guide, data(), optimizer=pyro.optim.ClippedAdam({"lr": 0.1}))  # type: ignore[arg-type]


def test_a_table_follows_the_schedule_and_forgets_it() -> None:
    """Its rows rest while the step size is 0, and move again in the next training."""
    model, guide = small(map=pv.LocalParameters(10))
    y = data()
    fit(model, guide, y, num_epochs=2, scheduler=hold_then_fall(1))
    assert isinstance(guide.map, pv.LocalParameters)
    after_one = guide.map.table.clone()
    fit(model, guide, y, num_epochs=1, scheduler=lambda o: hold_then_fall(1)(o))
    assert not torch.equal(guide.map.table, after_one)
    rest = guide.map.table.clone()
    fit(model, guide, y, num_epochs=1, scheduler=_rest)
    assert torch.equal(guide.map.table, rest)


def _rest(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.0)


@pytest.mark.parametrize(("name", "value"), [("num_epochs", 0), ("batch_size", 0)])
def test_bad_sizes(name: str, value: int) -> None:
    """At least one epoch of at least one row."""
    model, guide = small()
    options: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match=f"{name} is at least 1, got 0"):
        fit(model, guide, data(), **options)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (torch.zeros(0, 3), "empty"),
        (torch.tensor([[0, torch.nan, 0], [0, 0, 0]]), "row 0, column 1"),
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
    with pytest.warns(UserWarning, match="columns are constant over 10 rows: 1"):
        fit(model, guide, y, num_epochs=1)


# When numbers fail


class Poison:
    """Leaves batches as they are until one, counted from 1; keeps the state before each step."""

    def __init__(self, step: int, *modules: nn.Module) -> None:
        self.step, self.modules, self.calls = step, modules, 0

    def __call__(self, y: Tensor) -> Tensor:
        """The batch, or one with nan in its first row."""
        self.calls += 1
        self.before = state(*self.modules)
        return y.index_fill(0, torch.tensor([0]), torch.nan) if self.is_due else y

    @property
    def is_due(self) -> bool:
        """Whether the step has come; the first call is a look at the graph, before any step."""
        return self.calls == self.step + 1


@pytest.mark.parametrize("likelihood", [pv.likelihoods.Bernoulli(), pv.likelihoods.Gaussian()])
@pytest.mark.parametrize("make_map", [pv.GlobalParameters, lambda: pv.LocalParameters(10)])
def test_nan_in_the_loss(likelihood: Any, make_map: Callable[[], pv.InferenceMap]) -> None:
    """Step, epoch, site and row are named, and everything is as it was before the step.

    A normal distribution refuses nan by an error of its own, a Bernoulli computes with them.
    """
    model, guide = small(likelihood, make_map())
    poison = Poison(5, model, guide)
    where = r"step 5 \(epoch 2, rows \[.*\]\): site 'y' of the model .* for rows \[\d\]"
    with pytest.raises(FloatingPointError, match=where):
        fit(model, guide, data(), batch_size=3, per_batch=poison)
    assert_same_state(state(model, guide), poison.before)


def test_nan_in_a_parameter() -> None:
    """It is named, even where the first step finds it."""
    model, guide = small()
    with torch.no_grad():
        model.decoder.bias[1] = torch.nan
    with pytest.raises(FloatingPointError, match=r"step 1 .*parameter 'model\.decoder\.bias'"):
        fit(model, guide, data())
    with pytest.raises(FloatingPointError, match="site 'y' of the model"):
        fit(model, guide, data(), train_model=False)


class NanGradient(nn.Module):
    """Adds nothing, whose gradient is nan when it is due: sqrt(|0 w|)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.poison: Poison | None = None

    def forward(self, output: Tensor) -> Tensor:
        """The output itself."""
        due = self.poison is not None and self.poison.is_due
        return output + ((0 * self.weight).abs().sqrt() if due else 0 * self.weight)


@pytest.mark.parametrize("make_map", [pv.GlobalParameters, lambda: pv.LocalParameters(10)])
def test_nan_in_a_gradient(make_map: Callable[[], pv.InferenceMap]) -> None:
    """The parameter is named, and everything is as before: rows of a table have not moved yet."""
    last = NanGradient()
    model = pv.models.VAE(nn.Sequential(nn.Linear(2, 3), last), pv.likelihoods.Gaussian(), 2)
    guide = pv.Guide(model, make_map())
    poison = last.poison = Poison(2, model, guide)
    poison_free = functools.partial(_counted, poison)
    message = (
        r"gradient of parameter 'model\.decoder\.1\.weight' is not finite, at step 2 \(epoch 1"
    )
    with pytest.raises(FloatingPointError, match=message):
        fit(model, guide, data(), batch_size=3, per_batch=poison_free)
    assert_same_state(state(model, guide), poison.before)
    assert all(parameter.grad is None for parameter in model.parameters())


def _counted(poison: Poison, y: Tensor) -> Tensor:
    """Tells the poison of a batch, and takes none of it."""
    poison(y)
    return y


def test_nan_in_the_gradient_of_a_row() -> None:
    """The row is named, and the model waits."""
    model, guide = small(map=pv.LocalParameters(10))
    assert isinstance(guide.map, pv.LocalParameters)
    guide.map.table[7] = torch.tensor([0, 0, 60.0, 0])  # exp(60)^2 is too much for float32
    before = state(model, guide)
    with pytest.raises(FloatingPointError, match=r"row 7|rows \[7\]"):
        fit(model, guide, data())
    assert_same_state(state(model, guide), before)


class Overshoots(torch.optim.SGD):
    """An optimizer whose second step ends at infinity."""

    steps = 0

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Moves one parameter out of bounds."""
        super().step(closure)
        self.steps += 1
        if self.steps == 2:
            self.param_groups[0]["params"][0].data.fill_(torch.inf)


def test_a_step_to_infinity() -> None:
    """Finite gradients can end there too; the last good state is put back."""
    model, guide = small()
    poison = Poison(99, model, guide)
    with pytest.raises(FloatingPointError, match=r"new value of parameter '.*' .* at step 2"):
        fit(model, guide, data(), batch_size=3, per_batch=poison,
            optimizer=functools.partial(Overshoots, lr=0.1))  # fmt: skip
    assert_same_state(state(model, guide), poison.before)


def test_other_errors_are_not_renamed() -> None:
    """A decoder whose output does not fit is a mistake of another kind."""
    model = pv.models.VAE(nn.Linear(2, 5), pv.likelihoods.Gaussian(), latent_dim=2)
    guide = pv.Guide(model, pv.Encoder(nn.Linear(3, 4)))
    with pytest.raises(ValueError, match="the decoder gives data of shape"):
        fit(model, guide, data())
    model, guide = small(map=pv.Encoder(nn.Linear(3, 5)))
    with pytest.raises(ValueError, match="encoder's net must give"):
        fit(model, guide, data())


def test_interruption() -> None:
    """Ctrl-C in the middle of the third epoch: two are recorded, and all is ready for use."""
    model, guide = small()
    model.eval()
    y = data()
    result = fit(model, guide, y, batch_size=5, per_batch=_stop_after(1 + 5))
    assert (result.stopped, len(result.history.epoch), result.best_epoch) == ("interrupted", 2, 2)
    assert not model.decoder.training
    assert guide.training
    assert pv.elbo(model, guide, y, 5).elbo.value.isfinite().all()
    early = fit(model, guide, y, per_batch=_stop_after(1))
    assert early.summary() == "interrupted before the end of the first epoch"
    assert fit(model, guide, y, num_epochs=1).stopped == "finished"


# What training touches


@pytest.mark.parametrize("name", MAPS)
def test_a_fixed_model_is_fixed(name: str) -> None:
    """Not a bit of it moves, the guide does, and later the model can be trained as before."""
    decoder = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    model = pv.models.VAE(decoder, pv.likelihoods.Gaussian(), latent_dim=2)
    guide = pv.Guide(model, MAPS[name]())
    before, guide_before, y = state(model), state(guide), data()
    result = fit(model, guide, y, num_epochs=2, train_model=False)
    assert_same_state(state(model), before)
    assert any(not torch.equal(value, guide_before[key]) for key, value in state(guide).items())
    assert all(name.startswith("guide.") for name in result.trained)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.training
    result = fit(model, guide, y, num_epochs=1)
    assert "model.decoder.0.weight" in result.trained
    assert not torch.equal(decoder.get_parameter("0.weight"), before["0.decoder.0.weight"])


def test_nothing_to_train() -> None:
    """Is said, not done."""
    with pytest.raises(ValueError, match="nothing to train"):
        fit(MODEL, prior_guide, FACTS_Y.repeat(2, 1) * torch.tensor([[1.0], [2.0]]))


def test_a_look_at_the_graph_is_not_a_step() -> None:
    """Running means of a BatchNorm have seen the steps and nothing else; no gradient is left."""
    norm = nn.BatchNorm1d(3)
    model = pv.models.VAE(nn.Sequential(nn.Linear(2, 3), norm), pv.likelihoods.Gaussian(), 2)
    guide = pv.Guide(model, pv.Encoder(nn.Linear(3, 4)))
    fit(model, guide, data(), num_epochs=3, batch_size=5, validation=data())
    best = int(norm.get_buffer("num_batches_tracked"))
    assert best in (2, 4, 6)  # of the epoch that was kept
    fit(model, guide, data(), num_epochs=3, batch_size=5)
    assert int(norm.get_buffer("num_batches_tracked")) == best + 6
    for module in (model, guide):
        assert all(parameter.grad is None for parameter in module.parameters())
        assert all(not parameter._backward_hooks for parameter in module.parameters())


def test_function_programs_train() -> None:
    """A guide of two networks that it closes over, alike in all their names, and a loose tensor."""
    model, _ = small()
    loc, log_scale, shift = nn.Linear(3, 2), nn.Linear(3, 2), torch.zeros(2, requires_grad=True)

    def guide(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            q = dist.Normal(loc(y) + shift, log_scale(y).exp())
            pyro.sample("z", q.to_event(1))

    parts = [*loc.parameters(), *log_scale.parameters(), shift, *model.parameters()]
    before = [part.detach().clone() for part in parts]
    result = fit(model, guide, data(), num_epochs=1)
    for part, old in zip(parts, before, strict=True):
        assert not torch.equal(part, old)
    assert set(result.trained) == {
        "guide[0].weight", "guide[0].bias", "guide[1].weight", "guide[1].bias",
        "model.decoder.weight", "model.decoder.bias",
        "unregistered tensor 0 of shape (2,)",
    }  # fmt: skip


def test_the_best_state_of_loose_tensors() -> None:
    """They are put back with the rest."""
    model, _ = small()
    shift = torch.zeros(2, requires_grad=True)

    def guide(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(shift.expand(len(y), 2), 1.0).to_event(1))

    y = data(20)
    result = fit(model, guide, y, num_epochs=2, validation=y, optimizer=walk(0.1, 3))
    assert result.best_epoch == 1
    assert shift.tolist() == pytest.approx([0.1, 0.1])


@pytest.mark.usefixtures("user_param_store")
def test_programs_with_parameters_in_the_store() -> None:
    """`pyro.param` keeps its own there, and trains, constrained or not."""
    model, _ = small()

    def guide(y: Tensor) -> None:
        loc = pyro.param("loc", lambda: torch.zeros(2))
        scale = pyro.param("scale", lambda: torch.ones(2), constraint=dist.constraints.positive)
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(loc.expand(len(y), 2), scale).to_event(1))

    result = fit(model, guide, data(), num_epochs=1, optimizer=adam(lr=0.1))
    assert {"param 'loc'", "param 'scale'"} < set(result.trained)
    store = pyro.get_param_store()
    assert set(store.keys()) == {"loc", "scale"}
    assert (store["loc"] != 0).all()
    assert (store["scale"] != 1).all()


class HandWritten(PyroModule):
    """Model and guide in one PyroModule, as in Pyro's tutorials."""

    def __init__(self) -> None:
        super().__init__()
        linear: Any = PyroModule[nn.Linear]
        self.decoder, self.encoder = linear(2, 3), linear(3, 2)
        self.scale: Any = PyroParam(torch.ones(2), constraint=dist.constraints.positive)

    @pyro_method
    def model(self, y: Tensor) -> None:
        """A linear decoder."""
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=y)

    @pyro_method
    def guide(self, y: Tensor) -> None:
        """A linear encoder, with one scale for all."""
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(self.encoder(y), self.scale).to_event(1))


def test_pyro_modules_train() -> None:
    """Methods of a PyroModule are programs; its parameters stay in it."""
    both = HandWritten()
    before = state(both)
    result = fit(both.model, both.guide, data(), num_epochs=1)
    assert all(not torch.equal(value, before[name]) for name, value in state(both).items())
    assert len(result.trained) == 5
    assert any(name.endswith("scale_unconstrained") for name in result.trained)


def test_two_models_side_by_side() -> None:
    """Training one does not move the other, and gives what it gives alone."""
    alone, beside = (small() for _ in range(2))
    for module, source in zip(beside, alone, strict=True):
        module.load_state_dict(source.state_dict())
    y, other = data(), small()
    fit(*alone, y, num_epochs=1)
    untouched = state(*beside)
    fit(*other, y, num_epochs=1)
    assert_same_state(state(*beside), untouched)
    fit(*beside, y, num_epochs=1)
    assert_same_state(state(*beside), state(*alone))
    assert not dict(pyro.get_param_store())


# The optima that it reaches


def best_global(y: Tensor) -> Tensor:
    """Parameters of the best single q for all data: the average of the means, 1 / P_ii."""
    loc = FACTS.posterior(y).loc.mean(dim=0)
    log_scale = -FACTS.posterior_precision.diagonal().log() / 2
    return torch.cat([loc, log_scale]).expand(len(y), -1)


def train_facts(map: pv.InferenceMap, y: Tensor, **options: Any) -> tuple[pv.Guide, Fit]:
    """Fits a guide of the factor analysis program, which has nothing to train."""
    guide = pv.Guide(MODEL, map, example=y)
    return guide, fit(MODEL, guide, y, batch_size=100, **options)


def shortfall(guide: pv.Guide, y: Tensor) -> float:
    """Exact mean distance from the mean-field optimum at each datum, in nats."""
    with torch.no_grad():
        return amortization_gap(FACTS, y, guide.parameters_of(y)).mean().item()


@pytest.mark.usefixtures("float64")
def test_an_encoder_reaches_the_optimum() -> None:
    """A linear one can be exact; the reported ELBO is the exact one, within its noise."""
    y = FACTS.sample(300)
    guide, result = train_facts(
        pv.Encoder(nn.Linear(4, 4)), y, num_epochs=80, optimizer=adam(lr=0.03)
    )
    assert 0 <= shortfall(guide, y) < 0.02
    best = (FACTS.log_evidence(y) - FACTS.mean_field_gap()).mean().item()
    assert result.history.elbo[-10:].mean() == pytest.approx(best, abs=0.1)


@pytest.mark.usefixtures("float64")
def test_one_q_for_all_reaches_the_optimum() -> None:
    """Its closed form: the average mean, and the posterior's own precisions, not the spread."""
    y = FACTS.sample(300)
    guide, _ = train_facts(pv.GlobalParameters(), y, num_epochs=60, optimizer=adam(lr=0.05))
    best = amortization_gap(FACTS, y, best_global(y)).mean().item()
    assert best <= shortfall(guide, y) < best + 0.02


@pytest.mark.usefixtures("float64")
def test_a_table_reaches_the_optimum() -> None:
    """Every row its own, by its own Adam."""
    y = FACTS.sample(100)
    guide, _ = train_facts(pv.LocalParameters(100), y, num_epochs=400)
    assert 0 <= shortfall(guide, y) < 0.05


@pytest.mark.usefixtures("float64", "user_param_store")
def test_a_loop_of_ones_own_reaches_the_optimum() -> None:
    """SVI with Pyro's Adam, under pv.minibatch: as good as fit, map by map."""
    y, num_steps = FACTS.sample(100), 400
    best = amortization_gap(FACTS, y, best_global(y)).mean().item()
    for map, size, objective, limit in (
        (pv.Encoder(nn.Linear(4, 4)), 50, Trace_ELBO(), 0.02),
        # Nobody lowers the step size of the rows here: less noise does instead.
        (pv.LocalParameters(100, lr=0.03), 100, Trace_ELBO(10, vectorize_particles=True), 0.05),
        (pv.GlobalParameters(), 50, Trace_ELBO(), best + 0.02),
    ):
        guide = pv.Guide(MODEL, map, example=y)
        optimizer = pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.01 ** (1 / num_steps)})
        svi = SVI(MODEL, guide, optimizer, objective)
        for rows in batches(100, size, num_steps):
            with pv.minibatch(rows, 100):
                svi.step(y[rows])
        assert shortfall(guide, y) < limit


def batches(num_data: int, size: int, steps: int) -> Iterable[Tensor]:
    """Rows of so many batches, every datum once an epoch."""
    for step in range(steps):
        if step % (num_data // size) == 0:
            order = torch.randperm(num_data).split(size)
        yield order[step % (num_data // size)]


# The squares: half the pictures all 0, half all 1


def train_squares(map: pv.InferenceMap, likelihood: Any) -> tuple[Any, pv.Guide, Tensor]:
    """Trains a model of the 28 x 28 squares with the defaults."""
    y = pv.data.squares().train
    model = pv.models.VAE(pv.nets.MLPDecoder(2, 784), likelihood, latent_dim=2)
    guide = pv.Guide(model, map)
    fit(model, guide, y, num_epochs=300)
    return model, guide, y


@pytest.mark.slow
def test_squares_under_one_q_for_all() -> None:
    """The average image, grey, and the prior: -784 log 2."""
    model, guide, y = train_squares(pv.GlobalParameters(), pv.likelihoods.Bernoulli())
    bound = pv.elbo(model, guide, y, 20)
    assert bound.mean.value.item() == pytest.approx(-543.427390, abs=1.0)
    assert bound.rate.value.mean() < 0.01
    assert (model.decode(guide.sample(y[:2], 100)) - 0.5).abs().max() < 0.01


@pytest.mark.slow
@pytest.mark.parametrize(
    "make_map",
    [lambda: pv.Encoder(pv.nets.MLPEncoder(784)), lambda: pv.LocalParameters(1_000)],
    ids=["encoder", "rows"],
)
def test_squares_under_a_q_for_each(make_map: Callable[[], pv.InferenceMap]) -> None:
    """The optimum is near -1.3, log p(y) -log 2 at best, and above the ELBO."""
    model, guide, y = train_squares(make_map(), pv.likelihoods.Bernoulli())
    bound, log_p = pv.evaluate(model, guide, y, pv.ImportanceSampling(1_000))
    assert bound.mean.value > -2.5
    assert log_p.mean.value > bound.mean.value


@pytest.mark.slow
@pytest.mark.parametrize("amortized", [False, True])
def test_squares_under_a_gaussian(*, amortized: bool) -> None:
    """With sigma = 1 grey has -818.448, a datum's own mean -720.45 less what z costs."""
    map = pv.Encoder(pv.nets.MLPEncoder(784)) if amortized else pv.GlobalParameters()
    model, guide, y = train_squares(map, pv.likelihoods.Gaussian(1.0))
    elbo = pv.elbo(model, guide, y, 20).mean.value.item()
    if amortized:
        assert elbo > -723.6
    else:
        assert elbo == pytest.approx(-818.448, abs=0.5)
