"""Training: what is held out decides, what stops it, and what it leaves then."""

import copy
import functools
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyro_vae as pv
from tests.helpers.factor_analysis import (
    model_of,
    prior_guide,
)
from tests.helpers.statistics import FACTS
from tests.helpers.training import (
    MAPS,
    OneParameter,
    OverTheBatch,
    assert_same_state,
    data,
    fit,
    sgd,
    small,
    state,
    stop_after,
    walk,
)

MODEL = model_of(FACTS)


def test_rows_that_are_mixed() -> None:
    """A batch's loss is then no part of the data's: refused before a step, weights untouched."""
    for change, mixes in ((lambda out: out - out.mean(dim=0), True), (torch.tanh, False)):
        model = pv.models.VAE(OverTheBatch(change), pv.likelihoods.Gaussian(), 2)
        guide = pv.Guide(model, pv.GlobalParameters())
        before, modes = state(model), model.training
        with pytest.raises(ValueError, match="the program mixes rows") if mixes else nullcontext():
            pv.fit(model, guide, torch.randn(5, 3), num_epochs=1, progress=False)
        assert model.training == modes
        if mixes:
            assert_same_state(state(model), before)


def test_a_table_of_other_rows() -> None:
    """It has a row for each row of the data: one of more would train some of them by nothing."""
    for rows in (50, 11):
        model = pv.models.VAE(nn.Linear(2, 3), pv.likelihoods.Gaussian(), 2)
        guide = pv.Guide(model, pv.LocalParameters(rows))
        with pytest.raises(ValueError, match=rf"has {rows} rows, .* have 12 rows: .*num_data=12"):
            pv.fit(model, guide, torch.randn(12, 3), num_epochs=1, progress=False)


# Validation and early stopping


def test_early_stopping_waits_for_the_warmup() -> None:
    """At a step size of 0 the first epoch after the warm-up is the best; then patience runs out."""
    model, guide = small()
    result = fit(
        model, guide, data(), num_epochs=50, validation=data(), patience=3,
        objective=pv.BetaELBO(pv.LinearWarmup(4)),
        optimizer=sgd(lr=0.0),
    )  # fmt: skip
    assert (result.stopped, result.best_epoch, len(result.history.epoch)) == ("early", 5, 8)
    assert len(set(result.history.validation_elbo)) == 1  # the same draws every epoch
    assert result.summary().startswith("stopped early after 8 epochs")


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
        model, prior_guide, y + 1, num_epochs=5, validation=y, patience=2,
        objective=pv.BetaELBO(pv.LinearWarmup(2)),
        optimizer=walk(0, 1, 3, 2, 4),
    )  # fmt: skip
    assert result.history.validation_elbo.argmax() == 0
    assert result.best_epoch == 4
    assert model.theta.item() == 2


@pytest.mark.parametrize(
    ("path", "kept"), [((9, 9), "the last values"), ((1, 9), "of epoch 1, the best")]
)
def test_nan_in_the_validation(path: tuple[int, int], kept: str) -> None:
    """Weights that are too much for held-out data: the best ones so far are put back, if any."""
    theta = torch.zeros((), requires_grad=True)

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            loc = torch.where((y < 0) & (theta > 5), torch.nan, theta)
            pyro.sample("y", dist.Normal(loc, 1.0), obs=y)

    y = torch.arange(4.0)
    message = f"validation data after epoch . failed: log_likelihood is nan.*{kept}"
    with pytest.raises(FloatingPointError, match=message):
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
    with pytest.raises(ValueError, match="pass `validation`"):
        fit(model, guide, data(), patience=3)


# When numbers fail


class Poison:
    """Leaves batches as they are until one, counted from 1; keeps the state before each step."""

    def __init__(self, step: int, *modules: nn.Module) -> None:
        self.step, self.modules, self.calls = step, modules, 0

    def __call__(self, y: Tensor) -> Tensor:
        """The batch, or one with inf in its first row."""
        self.calls += 1
        self.before = state(*self.modules)
        return y.index_fill(0, torch.tensor([0]), torch.inf) if self.is_due else y

    @property
    def is_due(self) -> bool:
        """Whether the step has come; the first call is a look at the graph, before any step."""
        return self.calls == self.step + 1


@pytest.mark.parametrize("likelihood", [pv.likelihoods.Bernoulli(), pv.likelihoods.Gaussian()])
@pytest.mark.parametrize("make_map", [pv.GlobalParameters, lambda: pv.LocalParameters(10)])
def test_a_loss_that_is_not_finite(
    likelihood: Any, make_map: Callable[[], pv.InferenceMap]
) -> None:
    """Step, epoch, site and row are named, and everything is as it was before the step."""
    model, guide = small(likelihood, make_map())
    poison = Poison(5, model, guide)
    where = r"step 5 \(epoch 2, rows \[.*\]\): site 'y' of the model .* for rows \[\d\]"
    with pytest.raises(FloatingPointError, match=where):
        fit(model, guide, data(), batch_size=3, augment=poison)
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
        fit(model, guide, data(), batch_size=3, augment=poison_free)
    assert_same_state(state(model, guide), poison.before)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(("scale", "remedy"), [(1.0, "smaller step size"), (1e3, "standardize")])
def test_a_gradient_that_is_not_finite_has_the_remedy_of_the_data(
    scale: float, remedy: str
) -> None:
    """Columns far from unit scale are named where they are the likely cause, as for the loss."""
    last = NanGradient()
    model = pv.models.VAE(nn.Sequential(nn.Linear(2, 3), last), pv.likelihoods.Gaussian(scale), 2)
    guide = pv.Guide(model, pv.GlobalParameters())
    poison = last.poison = Poison(1, model, guide)
    with pytest.raises(FloatingPointError, match=rf"gradient of parameter .* {remedy}"):
        fit(model, guide, scale * (data() - 0.3), augment=functools.partial(_counted, poison))


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
        fit(model, guide, data(), batch_size=3, augment=poison,
            optimizer=functools.partial(Overshoots, lr=0.1))  # fmt: skip
    assert_same_state(state(model, guide), poison.before)


def test_other_errors_are_not_renamed() -> None:
    """A decoder whose output does not fit is a mistake of another kind."""
    model = pv.models.VAE(nn.Linear(2, 5), pv.likelihoods.Gaussian(), latent_dim=2)
    guide = pv.Guide(model, pv.Encoder(nn.Linear(3, 4)))
    with pytest.raises(ValueError, match="the shape that the decoder gives"):
        fit(model, guide, data())
    model, guide = small(map=pv.Encoder(nn.Linear(3, 5)))
    with pytest.raises(ValueError, match="encoder's net must return"):
        fit(model, guide, data())


def test_interruption() -> None:
    """Ctrl-C in the middle of the third epoch: two are recorded, and all is ready for use."""
    model, guide = small()
    model.eval()
    y = data()
    result = fit(model, guide, y, batch_size=5, augment=stop_after(1 + 5))
    assert (result.stopped, len(result.history.epoch), result.best_epoch) == ("interrupted", 2, 2)
    assert not model.decoder.training
    assert guide.training
    assert pv.elbo(model, guide, y, 5).elbo.value.isfinite().all()
    early = fit(model, guide, y, augment=stop_after(1))
    assert early.summary() == "interrupted before the end of the first epoch"
    assert fit(model, guide, y, num_epochs=1).stopped == "finished"


def test_a_compile_cache_that_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is compiled then, and the result says why; the numbers are those of eager steps."""
    (tmp_path / "file").write_text("")
    y, programs = data(), small()
    again = copy.deepcopy(programs)
    eager = fit(*programs, y, num_epochs=2, compile=False)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.warns(
        UserWarning, match="training runs eagerly, not compiled: the compiler failed"
    ):
        result = fit(*again, y, num_epochs=2, compile=True)
    assert "TORCHINDUCTOR_CACHE_DIR" in result.compiled
    np.testing.assert_array_equal(result.history.elbo, eager.history.elbo)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "new" / "cache"))
    assert fit(*small(), data(), num_epochs=1).stopped == "finished"


COMPILED = """
import os, sys
os.environ.update(dict([sys.argv[1].split("=")]))
import torch, pyro_vae as pv

torch.manual_seed(0)
y = torch.randn(20, 3)
model = pv.models.VAE(pv.nets.MLPDecoder(2, 3, hidden=(4,)), pv.likelihoods.Gaussian(), 2)
guide = pv.Guide(model, pv.Encoder(pv.nets.MLPEncoder(3, hidden=(4,))))
compile = sys.argv[2] == "compiled"
first = pv.log_marginal_likelihood(model, guide, y, pv.ImportanceSampling(9, compile=compile))
rows = guide.fit_rows(y[:5], pv.FitRows(compile=compile, max_steps=5)).row_fit.elbo
run = pv.fit(model, guide, y, num_epochs=2, compile=compile, progress=False)
print(first.value.tolist(), rows.tolist(), run.history.elbo.tolist(), flush=True)
"""


@pytest.mark.parametrize(
    "setting",
    ["TORCHINDUCTOR_CACHE_DIR=/proc/none/x", "TORCHINDUCTOR_CACHE_DIR=/proc", "PATH=/none"],
)
@pytest.mark.slow
def test_processes_that_cannot_compile(setting: str, tmp_path: Path) -> None:
    """Without a place for the cache, or a compiler, the answers are those of eager programs."""
    out = {}
    for how in ("compiled", "eager"):
        done = subprocess.run(
            [sys.executable, "-c", COMPILED, setting, how],
            env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        out[how] = done.stdout
        assert ("not compiled" in done.stderr) == (how == "compiled"), done.stderr
    assert out["compiled"] == out["eager"]
