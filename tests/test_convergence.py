"""What further training promises: against curves that are known, and against the pPCA optimum."""

import copy
import functools
import inspect
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

import pyro_vae as pv
from pyro_vae.stats import Gain, convergence, remaining_gain
from pyro_vae.training import (
    Callback,
    Fit,
    History,
    StopWhenConverged,
    constant,
    probing,
    results,
)
from pyro_vae.training.results import gain_of
from tests.helpers.factor_analysis import prior_guide
from tests.helpers.training import OneParameter, adam, data, fit, small, walk


def rates(epochs: int) -> NDArray[np.float64]:
    """The default schedule: half of the epochs at the first step size, then down to zero."""
    return np.array([_factor(epoch, epochs) for epoch in range(epochs)])


def _factor(epoch: int, epochs: int) -> float:
    return float(0.5 * (1 + np.cos(np.pi * max(0.0, 2 * epoch / epochs - 1))))


def finished(elbo: NDArray[np.float64], step_sizes: NDArray[np.float64]) -> Fit:
    """A fit with such a history."""
    size = len(elbo)
    blank = np.full(size, np.nan)
    history = History(
        np.arange(size) + 1, elbo, -elbo, blank, blank, np.ones(size), step_sizes,
        np.arange(float(size)),
    )  # fmt: skip
    return Fit(history, "finished", size, 0, ())


CURVES = {"flat": (0.0, True), "an exponential": (1.0, False)}


@pytest.mark.parametrize("name", CURVES)
def test_curves_that_are_known(name: str, seed: int) -> None:
    """At a noise of 0.01 nats: right nearly always, and never wrong; with jitter, which is no gain.

    Each of 20 curves of 100 epochs has 1 nat left, or none. Of 1,000 curves of either kind none had
    the wrong verdict, so that one in 20 has a probability below 2%; two are asked for.
    """
    left, converged = CURVES[name]
    generator, steps = np.random.default_rng(seed), rates(100)
    time = np.cumsum(steps) - steps / 2
    curve = -10 - 0.3 * steps - left * np.exp((time[-1] - time) / 30)
    seen = Counter(
        finished(curve + 0.01 * generator.normal(size=100), steps).converged for _ in range(20)
    )
    assert seen[not converged] < 2
    assert seen[converged] >= 15
    words = {True: ": training has converged", False: "has not converged, so use more epochs"}
    assert words[converged] in finished(curve, steps).summary()
    naive = curve[-1] - curve[-2]  # a wrong twin: at the end of a schedule every curve is flat
    assert abs(naive) < 0.01


@pytest.mark.parametrize(("high", "word"), [(0.4, "probably converged"), (0.09, "converged")])
def test_a_wide_range_makes_it_probable(
    high: float, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gain of 0.4 with a probability of a fifth is not excluded, and the words say so."""
    gains, weights = np.array([0.0, high]), np.array([0.8, 0.2])
    gain = Gain(pv.Estimate(torch.tensor(0.0), torch.tensor(high)), 0.0, high, gains, weights)
    monkeypatch.setattr(results, "remaining_gain", lambda *_: gain)
    fit = finished(np.full(100, -3.0), rates(100))
    assert fit.converged is True
    assert fit.summary().endswith(f"promises 0 to {high} nats per datum: training has {word}")


def test_a_straight_line_promises_more() -> None:
    """As far again, at least: nothing says that it bends. Without noise, a limit is found."""
    epochs = np.arange(100)
    line = remaining_gain(-100 + 0.1 * epochs, np.ones(100))
    assert line is not None
    assert line.low > 10
    bent = remaining_gain(-3 - 2 * np.exp(-epochs / 30), np.ones(100))
    assert bent is not None
    assert bent.low < 2 * np.exp(-100 / 30) < bent.high
    still = remaining_gain(np.full(100, -3.0), rates(100))
    assert still is not None
    assert still.high < 1e-6


def spectrum(generator: np.random.Generator, time: NDArray[np.float64]) -> NDArray[np.float64]:
    """What is left of eight gains that come at unlike speeds: the sum has no single scale."""
    speeds = np.exp(generator.uniform(np.log(0.03), np.log(30), 8))
    return np.exp(-np.outer(time, speeds)) @ np.exp(generator.normal(size=8))


def arrival(generator: np.random.Generator, time: NDArray[np.float64]) -> NDArray[np.float64]:
    """What is left at a constant speed, as under Adam: a parabola that ends soon after the run."""
    end = np.exp(generator.uniform(np.log(1.2), np.log(3)))
    return 10 * np.maximum(0, 1 - time / end) ** 2


SHAPES = {"many speeds": (spectrum, 27), "a constant speed": (arrival, 19)}


def covered(shape: Any, seed: int) -> int:
    """How many of 40 intervals contain the gain that is left."""
    steps, seen = rates(100), 0
    time = (np.cumsum(steps) - steps / 2) / steps.sum()
    for number in range(40):
        generator = np.random.default_rng([seed, number])
        left = shape(generator, np.append(time, 1.0))
        noise = 0.02 * generator.normal(size=100)
        gain = remaining_gain(-10 - 0.3 * steps - left[:-1] + noise, steps)
        assert gain is not None
        seen += bool(gain.low < left[-1] < gain.high)
    return seen


@pytest.mark.parametrize("name", SHAPES)
def test_intervals_cover_curves_of_other_shapes(
    name: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shapes are none of those that are fitted, and were not used to choose their weights.

    85% of 480 intervals covered what was left at many speeds; at a constant speed, which ends
    sooner than training mostly does, 73% did. Fewer than asked for have a probability below 0.2%.
    """
    shape, least = SHAPES[name]
    assert covered(shape, seed) >= least
    monkeypatch.setattr(convergence, "_TEMPER", 1.0)  # a wrong twin: the best shape is believed
    monkeypatch.setattr(convergence, "_SPREAD", 0.0)
    assert covered(shape, seed) < least


def test_a_slow_tail_behind_a_fast_start(seed: int) -> None:
    """50 nats come at once and 0.2 are left, at a scale of one run: converged is never said.

    Of 1,000 such curves none was called converged, so a false alarm has a probability below 2%.
    """
    generator, steps = np.random.default_rng(seed), rates(100)
    time = (np.cumsum(steps) - steps / 2) / steps.sum()
    curve = -10 - 50 * np.exp(-time / 0.04) - 0.2 * np.exp(1 - time)
    noise = 0.01 * generator.normal(size=(20, 100))
    assert all(finished(curve + part, steps).converged is not True for part in noise)


def test_a_run_that_diverged_has_not_converged(seed: int) -> None:
    """The curve falls in the noise that came with it, as after a step size that was too large."""
    generator = np.random.default_rng(seed)
    curve = -60 + 0.1 * generator.normal(size=100)
    curve[50:] -= 1e4 * np.exp(generator.normal(size=50) - np.arange(50) / 20)
    assert finished(curve, rates(100)).converged is not True


def test_the_curve_of_the_loss_is_judged() -> None:
    """With a KL weight of 5 the ELBO may be level while the loss improves, and the other way round.

    A beta of 5 that was 1.7 nats short of the optimum, by water-filling, was called converged.
    """
    level = -10 - 0.01 * np.sin(17 * np.arange(100.0))
    rising = level + 0.05 * np.arange(100)
    full = finished(level, np.ones(100))
    assert full.converged is True
    assert "promises 0 to 0.0" in full.summary()
    for loss, elbo, converged in ((-rising, level, False), (-level, rising, True)):
        other = replace(full.history, loss=loss, elbo=elbo, kl_weight=np.full(100, 5.0))
        found = replace(full, history=other)
        assert found.converged is converged
        assert "nats per datum in the ELBO with KL weight 5: " in found.summary()
    bound = replace(full, history=replace(full.history, elbo=level - 1))  # of the IWAE, say
    assert "in the objective, which is not the ELBO: training has converged" in bound.summary()


def test_where_the_curve_leaves_the_verdict_open() -> None:
    """L-BFGS can only show that something is left."""
    time = (np.cumsum(rates(100)) - rates(100) / 2) / rates(100).sum()
    open_ = finished(-10 + 0.05 * np.log(time), rates(100))
    gain = gain_of(open_.history)
    assert gain is not None
    assert 0.25 < gain.below(0.1) < 0.75
    assert gain.below(0.0) == 0
    assert gain.below(np.inf) == pytest.approx(1)
    assert open_.converged is None
    for left, converged in ((0.0, None), (0.3, False)):
        found = pv.Estimate(torch.tensor(left), torch.tensor(0.01))
        assert replace(open_, left=found).converged is converged
    level = finished(-10 + 0.0 * time, rates(100))
    for left, verdict in ((0.0, True), (0.09, None), (0.3, False)):
        found = pv.Estimate(torch.tensor(left), torch.tensor(0.01))
        assert replace(level, left=found).converged is verdict


def test_steps_that_are_large_only_at_the_end(seed: int) -> None:
    """The last epochs count, even if one of them takes the training from a tenth to its end.

    No part of the curve is empty. Of 300 such curves none had an upper end below 0.19.
    """
    generator = np.random.default_rng(seed)
    gain = remaining_gain(-10 + generator.normal(size=50), np.append(np.ones(49), 500.0))
    assert gain is not None
    assert gain.high > 0.02


def test_only_epochs_at_the_last_weight_count() -> None:
    """The loss rises with the weight; what it was at another weight says nothing."""
    level = 10 + 0.01 * np.sin(17 * np.arange(100.0))
    weight = np.minimum(1, np.arange(100) / 50)
    full = finished(-level, np.ones(100))
    warm = replace(full.history, loss=level - 5 * (1 - weight), kl_weight=weight)
    assert replace(full, history=warm).converged is True
    program = replace(warm, kl_weight=np.ones(100))  # the program has the weight, not the objective
    assert replace(full, history=program).converged is True
    wave = replace(warm, kl_weight=np.where(np.arange(100) % 20 < 5, 0.5, 1.0))
    assert "too few epochs at the last KL weight, 1, to tell" in replace(full, history=wave).promise


def test_too_few_epochs_and_steps_of_no_size() -> None:
    """Nothing can be told."""
    assert remaining_gain(np.arange(19.0), np.ones(19)) is None
    assert remaining_gain(np.arange(50.0), np.zeros(50)) is None
    result = fit(*small(), data(10), num_epochs=3)
    assert result.remaining is None
    assert result.converged is None
    assert "too few epochs to tell" in result.summary()


def ppca(num_epochs: int, rate: float) -> tuple[Any, float]:
    """A fit of pPCA to 200 data from given weights, and how far it is from the closed form."""
    generator = torch.Generator().manual_seed(0)
    loadings = torch.arange(-4.0, 5.0)[None]
    y = torch.randn(200, 1, generator=generator) @ loadings
    y = y + 0.5 * torch.randn(200, 9, generator=generator)
    best = pv.models.LinearGaussian(1, 9).double()
    best.fit_closed_form(y.double())
    torch.manual_seed(1)
    model = pv.models.LinearGaussian(1, 9)
    guide = pv.Guide(model, pv.Encoder(torch.nn.Linear(9, 2)), pv.FullRankNormal(), example=y)
    result = fit(model, guide, y, num_epochs=num_epochs, optimizer=adam(lr=rate), compile=False)
    short = best.log_evidence(y.double()).mean() - pv.elbo(model, guide, y, 200).mean.value
    return result, float(short.detach())


def test_a_fit_that_is_short_of_the_optimum_says_so() -> None:
    """At the default step size and number of epochs: nats short, and "finished"."""
    result, short = ppca(50, 2e-3)
    assert short > 1
    assert result.stopped == "finished"
    assert result.converged is not True
    assert float(result.remaining.value) > 1
    gain = gain_of(result.history)
    assert gain is not None
    assert gain.low < short < gain.high
    said = (
        r"further training promises [\d.]+ to [\d.e+]+ nats per datum: training has not converged"
    )
    assert re.search(said, result.summary())


@pytest.mark.slow
@pytest.mark.parametrize(("num_epochs", "rate"), [(60, 0.02), (150, 0.02), (800, 0.02)])
def test_verdicts_against_the_closed_form(num_epochs: int, rate: float) -> None:
    """Never wrong; what is promised has the right size."""
    result, short = ppca(num_epochs, rate)
    assert result.converged in ({False, None} if short > 0.1 else {True, None})
    assert result.remaining is not None
    assert (result.left is None) == (float(result.remaining.value) > 0.3)
    gain = gain_of(result.history)
    assert gain is not None
    assert gain.low < short < gain.high
    assert abs(float(result.remaining.value) - short) < 3 * float(result.remaining.error) + 0.1


class Resting(torch.optim.SGD):
    """An optimizer that stays where it is: a curve without any gain."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Nothing."""


def resting(level: float, **settings: Any) -> tuple[Fit, OneParameter]:
    """A fit that stays at 0 and so has a level curve, while the optimum is at `level`."""
    model, y = OneParameter(), level * torch.ones(4, dtype=torch.float64)
    optimizer = functools.partial(Resting, lr=1.0)
    return fit(model, prior_guide, y, num_epochs=30, optimizer=optimizer, **settings), model


def test_a_level_curve_far_from_the_optimum() -> None:
    """L-BFGS finds the optimum, 10^2 / 2 nats away; nothing moves but the verdict."""
    result, model = resting(10.0)
    assert result.converged is False
    assert result.remaining is result.left is not None
    assert float(result.left.value) == pytest.approx(50, abs=1e-6)
    assert "L-BFGS gains another 50.0" in result.summary()
    assert "not converged" in result.summary()
    assert [part.item() for part in model.parameters()] == [0.0]
    there, _ = resting(0.0)
    assert there.left is not None
    assert float(there.left.value) == 0
    assert there.converged is True
    assert resting(10.0, shards=2)[0].left is None


class Groups(torch.nn.Module):
    """Two groups around the middle, with an idle z."""

    def __init__(self) -> None:
        super().__init__()
        self.middle = torch.nn.Linear(1, 1)

    def forward(self, y: Tensor) -> None:
        """The program."""
        with pyro.plate("data", len(y)):
            group = pyro.sample("group", dist.Categorical(torch.ones(2)))
            pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            middle = self.middle(torch.ones(1))
            pyro.sample("y", dist.Normal(middle + group - 0.5, 1.0), obs=y)


def test_what_is_left_of_a_program_with_discrete_sites() -> None:
    """The sum over groups is tested like any loss: data are around 6, the groups around 0 or so.

    Low-precision products are measured, too.
    """
    model, y = Groups(), 6 + torch.linspace(-1, 1, 50)
    optimizer = functools.partial(Resting, lr=1.0)
    precision = pv.BFloat16Products()
    result = fit(
        model, idle_guide, y, num_epochs=30, optimizer=optimizer, precision=precision, compile=False
    )
    assert result.left is not None
    assert float(result.left.value) > 5
    assert result.converged is False
    assert result.rounding is not None


def idle_guide(y: Tensor) -> None:
    """Draws z from its prior."""
    with pyro.plate("data", len(y)):
        pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))


def test_what_is_left_counts_the_choice_of_rows(seed: int) -> None:
    """Of 6,000 rows L-BFGS sees every sixth, whose mean it finds; the gain is known for all rows.

    Off by five errors in less than one of 1,000 runs (Student's t, 9 degrees of freedom). The loss
    has no noise, so draws alone give an error of 0.
    """
    generator = torch.Generator().manual_seed(seed)
    y = 0.4 + 3 * torch.randn(6000, dtype=torch.float64, generator=generator)
    optimizer = functools.partial(Resting, lr=1.0)
    result = fit(
        OneParameter(), prior_guide, y, num_epochs=30, batch_size=1000, optimizer=optimizer
    )
    found = y[::6].mean()
    gain = float(found * y.mean() - found**2 / 2)
    assert result.left is not None
    assert abs(float(result.left.value) - gain) < 5 * float(result.left.error)
    assert float(result.left.error) < 0.1


def test_what_is_left_is_not_always_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not if the program refuses larger batches, nor if it would take as long as training.

    The fit is as it was without.
    """

    class OfFour(OneParameter):
        def forward(self, y: Tensor) -> None:
            """Takes four rows at most."""
            assert len(y) <= 4
            super().forward(y)

    y, optimizer = 10 * torch.ones(4, dtype=torch.float64), functools.partial(Resting, lr=1.0)
    model = OfFour()
    picky = fit(model, prior_guide, y, num_epochs=30, optimizer=optimizer)
    assert picky.left is None
    assert picky.converged is True
    assert [part.item() for part in model.parameters()] == [0.0]
    assert all(part.grad is None for part in model.parameters())
    monkeypatch.setattr(probing, "_CHEAP", 0)
    assert resting(10.0)[0].left is None


def test_a_valley_that_the_curve_does_not_show() -> None:
    """An encoder of data near 30, off by 0.4 in its slope: Adam is slow there, and noise hides it.

    z ~ N(0, 1) / 2 + 30 and y | z ~ N(z, 1 / 2), so that q(z | y) = N(15 + y / 2, 1 / 4) is exact.
    Half of the gain at least is found, and not more than there is but for five errors, which
    chance exceeds in less than one of 2,000 runs (Student's t, 9 degrees of freedom). Adam gains
    a tenth of it at most in 20 epochs.
    """
    torch.manual_seed(0)
    y = 30 + torch.randn(100, 1)

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(torch.full((1,), 30.0), 0.5**0.5).to_event(1))
            pyro.sample("y", dist.Normal(z, 0.5**0.5).to_event(1), obs=y)

    guide = pv.Guide(model, pv.Encoder(torch.nn.Linear(1, 2)), example=y)
    with torch.no_grad():
        weight, bias = guide.map.parameters()
        weight.copy_(torch.tensor([[0.9], [0.0]]))
        bias.copy_(torch.tensor([3.0, np.log(0.5)]))
    result = fit(
        model, guide, y, num_epochs=20, batch_size=100, objective=pv.BetaELBO(1.0, 50),
        optimizer=functools.partial(Resting, lr=1.0),
    )  # fmt: skip
    # KL(q || p) = (0.4 (y - 30))^2 / (2 / 4)
    short = float((0.4 * (y - 30)).square().mean() * 2)
    assert result.left is not None
    value, error = float(result.left.value), float(result.left.error)
    assert short / 2 < value < short + 5 * error
    assert result.converged is False
    fit(model, guide, y, num_epochs=20, batch_size=100)
    moved = float((0.5 - weight[0, 0].detach()) ** 2 / 0.4**2)
    assert moved > 0.9  # of the shortfall


def test_training_ends_when_it_has_converged(tmp_path: Path) -> None:
    """The step size falls over as many epochs as there were; so does that of a resumed run."""
    model, y = OneParameter(), torch.zeros(4, dtype=torch.float64)
    given: dict[str, Any] = {
        "num_epochs": 200, "optimizer": functools.partial(Resting, lr=1.0),
        "checkpoint": tmp_path, "callbacks": [StopWhenConverged(every=15)],
    }  # fmt: skip
    result = fit(model, prior_guide, y, **given)
    assert (result.stopped, len(result.history.epoch)) == ("converged", 60)
    assert (result.history.learning_rate[:30] == 1).all()
    assert result.history.learning_rate[45] == pytest.approx(0.5)
    again = fit(model, prior_guide, y, **given)
    assert (again.stopped, len(again.history.epoch)) == ("converged", 60)
    at_once = fit(model, prior_guide, y, **given | {"checkpoint": None, "scheduler": constant})
    assert (at_once.stopped, len(at_once.history.epoch)) == ("early", 30)


@pytest.mark.parametrize("slope", [0.0, 0.3])
def test_a_level_curve_ends_training_in_spite_of_noise(slope: float, seed: int) -> None:
    """At a noise of 0.02 nats per epoch: of 300 curves of either kind, none was judged wrongly.

    Two of ten are allowed to be.
    """
    generator, trend = np.random.default_rng(seed), slope * np.log(np.arange(1, 101) / 100)
    right = 0
    for _ in range(10):
        curve = -10 + trend + 0.02 * generator.normal(size=100)
        run = mock.Mock(epoch=100, history=finished(curve, np.ones(100)).history)
        inspect.unwrap(StopWhenConverged.on_epoch)(StopWhenConverged(), run)  # no real `Run`
        right += run.settle.called is (slope == 0)
    assert right >= 8


def test_a_budget_that_nobody_named() -> None:
    """At least 50 epochs and 3,000 steps, and no more than it takes to converge."""
    model, y = OneParameter(), torch.zeros(4, dtype=torch.float64)
    result = fit(model, prior_guide, y, optimizer=functools.partial(Resting, lr=1.0))
    assert (result.stopped, len(result.history.epoch)) == ("converged", 40)
    asked = fit(model, prior_guide, y, num_epochs=50, optimizer=functools.partial(Resting, lr=1.0))
    assert (asked.stopped, len(asked.history.epoch)) == ("finished", 50)  # as it was told
    stop = StopAt(1)
    fit(model, prior_guide, y, callbacks=stop)
    fit(model, prior_guide, y, batch_size=1, callbacks=stop)
    fit(model, prior_guide, y.repeat(100), batch_size=1, callbacks=stop)
    assert stop.budgets == [3000, 750, 50]


class StopAt(Callback):
    """Stops after so many steps, and notes the budgets."""

    def __init__(self, steps: int) -> None:
        self.steps, self.budgets = steps, list[int]()

    def on_step(self, run: Any) -> None:
        """Stops."""
        if run.steps == self.steps:
            self.budgets.append(run.num_epochs)
            run.stop()


def test_training_goes_on_while_there_is_something_to_gain() -> None:
    """A parameter on a straight way to the optimum is not stopped."""
    model, y = OneParameter(), 10 * torch.ones(4, dtype=torch.float64)
    result = fit(
        model, prior_guide, y, num_epochs=100, optimizer=walk(*np.linspace(0, 5, 100)),
        callbacks=StopWhenConverged(),
    )  # fmt: skip
    assert result.stopped == "finished"
    for bad in ({"tolerance": 0.0}, {"every": 0}):
        with pytest.raises(ValueError, match=f"`{next(iter(bad))}` must be"):
            StopWhenConverged(**bad)


def test_data_of_a_size_that_no_network_expects() -> None:
    """The column and its size are named where the first step fails."""
    model, guide = small(map=pv.Encoder(torch.nn.Linear(3, 4)))
    y = torch.randn(20, 3)
    y[:, 1] = 1e3 * y[:, 1] + 1e4
    with torch.no_grad():
        next(guide.parameters()).fill_(1.0)
    with pytest.raises(
        FloatingPointError, match=r"Column 1 of the data has a scale of .* standardize"
    ):
        fit(model, guide, y)
    model, guide = small(map=pv.GlobalParameters())
    result = fit(model, guide, y, num_epochs=20)
    assert result.converged is not True
    assert re.search(r"Column 1 of the data .*\(mean .*, sd .*standardize", result.summary())
    assert "Column" not in fit(model, guide, torch.randn(20, 3), num_epochs=20).summary()


def counted(largest: float) -> tuple[Tensor, pv.models.VAE]:
    """Counts of three rates, far apart, and a VAE of them."""
    torch.manual_seed(0)
    rates = largest * torch.rand(3, 20)
    y = torch.poisson(rates[torch.arange(120) % 3])
    decoder = pv.nets.MLPDecoder(2, 20, hidden=(16,))
    likelihood = pv.likelihoods.Poisson()
    pv.likelihoods.start_from(decoder, likelihood.start(y))
    return y, pv.models.VAE(decoder, likelihood, latent_dim=2)


def own_trunk() -> torch.nn.Module:
    """A user's network, which sees the data as they are."""
    net: Any = torch.nn.Sequential(torch.nn.Linear(20, 32), torch.nn.ELU())
    net.num_features = 32
    return net


def test_raw_counts_do_not_throw_training_far_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """From every start the first epoch ends below 30 nats per count; a random head's does not."""
    y, model = counted(60.0)

    def worst() -> float:
        elbos = []
        for seed in range(4):
            torch.manual_seed(seed)
            guide = pv.Guide(model, pv.Encoder(own_trunk()))
            copied = copy.deepcopy(model)
            elbos.append(float(fit(copied, guide, y, num_epochs=1).history.elbo[0]))
        return min(elbos)

    assert worst() > -600
    monkeypatch.setattr(pv.Encoder, "start_from", pv.InferenceMap.start_from)
    assert worst() < -6000


def test_only_a_fresh_head_on_large_data_is_shrunk() -> None:
    """The largest root mean square is then about 1; other weights keep their bits."""
    _, model = counted(5.0)
    guide = pv.Guide(model, pv.Encoder(own_trunk()))
    encoder = guide.map
    assert isinstance(encoder, pv.Encoder)
    fresh = copy.deepcopy(encoder.state_dict())
    small, large = torch.randn(50, 20), 1e3 * torch.rand(50, 20)

    encoder.start_from(small)
    assert all(map(torch.equal, encoder.state_dict().values(), fresh.values()))
    trained = copy.deepcopy(encoder)
    trained.load_state_dict({name: value + 0.1 for name, value in fresh.items()})
    trained.start_from(large)
    found = trained.state_dict()
    assert all(torch.equal(found[name], value + 0.1) for name, value in fresh.items())

    pv.Refined(encoder).start_from(large)
    largest = encoder((large,), None).square().mean(0).sqrt().max()
    assert float(largest.detach()) == pytest.approx(1.0, abs=0.3)  # the bias is left


def test_the_remedy_for_large_counts_trains() -> None:
    """It is named where training fails, and followed as it is written."""
    y, model = counted(400.0)
    guide = pv.Guide(model, pv.Encoder(own_trunk()))
    advice = fit(copy.deepcopy(model), guide, y, num_epochs=1).advice
    assert "pv.nets.ColumnInputs(net, [0] * columns, counts=range(columns))" in advice
    net = pv.nets.MLPEncoder(2 * 20, hidden=(32,))
    seen = pv.nets.ColumnInputs(net, [0] * 20, counts=range(20))
    result = fit(model, pv.Guide(model, pv.Encoder(seen)), y, num_epochs=30)
    assert result.history.elbo[-1] > -20 * 30
