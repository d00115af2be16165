"""Rate and distortion against the closed form of a linear model, and bounds that must hold."""

import math
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, kl_divergence

import pyro_vae as pv
from pyro_vae import diagnostics, training
from pyro_vae._types import Estimate, ProgramLike
from pyro_vae.diagnostics.rates import RateDistortion, TradeOff, rate_distortion
from tests.helpers.factor_analysis import WEAK, model_of
from tests.helpers.statistics import FACTS, FactorAnalysis
from tests.helpers.training import assert_same_state, state

pytestmark = pytest.mark.usefixtures("float64")

BETAS = (0.3, 1.0, 3.0)


def at(beta: float | Tensor, facts: FactorAnalysis, y: Tensor) -> MultivariateNormal:
    r"""The best q for a fixed linear decoder, :math:`q \propto p(z) p(y | z)^{1 / \beta}`.

    A power of a Gaussian likelihood is one with the noise variance times beta, so the precision is
    :math:`I + W^\top \Psi^{-1} W / \beta`, and what is known of the posterior serves.
    """
    return replace(facts, noise_variance=facts.noise_variance * beta).posterior(y)


def parts(q: MultivariateNormal, facts: FactorAnalysis, y: Tensor) -> tuple[Tensor, Tensor]:
    """Rate and distortion of normals, exactly, in nats per datum."""
    latents = facts.loadings.shape[1]
    prior = MultivariateNormal(torch.zeros(latents), torch.eye(latents))
    off = y - facts.mean - q.loc @ facts.loadings.T
    spread = (facts.loadings @ q.covariance_matrix @ facts.loadings.T).diagonal(dim1=-2, dim2=-1)
    scaled = (off.square() + spread) / facts.noise_variance
    distortion = (scaled + (2 * math.pi * facts.noise_variance).log()).sum(-1) / 2
    return kl_divergence(q, prior).mean(), distortion.mean()


def encoder(model: ProgramLike, y: Tensor) -> pv.Guide:
    """A linear one, which can hold every optimum."""
    net = nn.Linear(y.shape[1], 5)
    nn.init.zeros_(net.weight)
    nn.init.zeros_(net.bias)
    return pv.Guide(model, pv.Encoder(net), pv.FullRankNormal(), example=y[:1])


def fast(parameters: list[Tensor]) -> torch.optim.Optimizer:
    """Adam with large steps, for few parameters."""
    return torch.optim.Adam(parameters, lr=0.05)


def binary(rows: int = 8, features: int = 3) -> tuple[pv.models.VAE, pv.Guide, Tensor]:
    """A small VAE of bits, and data: every pattern of bits that there is, some of them twice."""
    patterns = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * features)
    y = torch.cat([patterns, patterns[: rows - len(patterns)]]) if rows > 8 else patterns[:rows]
    model = pv.models.VAE(nn.Linear(features, features), pv.likelihoods.Bernoulli(), features)
    return model, pv.Guide(model, pv.Encoder(nn.Linear(features, 2 * features))), y


def normals(guide: pv.Guide, y: Tensor) -> MultivariateNormal:
    """What a trained guide says."""
    with torch.no_grad():
        posterior = guide.posterior(y)
        q: Any = posterior.family(posterior.parameters)
    return MultivariateNormal(q.mean, q.covariance_matrix)


def assert_on(estimate: Estimate, exact: Tensor, slack: float = 0.0) -> None:
    """Within six errors, and what training may leave."""
    off = (estimate.value - exact).abs() - 6 * estimate.error
    assert bool((off < slack).all()), f"{estimate} is not {exact}"


def test_closed_curve() -> None:
    """Slope -beta, falling rate, rising distortion, and at last no rate at all; no noise."""
    y = FACTS.sample(50)
    betas = torch.logspace(-2, 3, 21)
    curve = []
    for value in betas:
        beta = value.clone().requires_grad_()
        by_beta = [
            torch.autograd.grad(part, beta, retain_graph=True)[0]
            for part in parts(at(beta, FACTS, y), FACTS, y)
        ]
        torch.testing.assert_close(by_beta[1] / by_beta[0], -value, rtol=1e-6, atol=0.0)
        curve.append(parts(at(value, FACTS, y), FACTS, y))
    rate, distortion = (torch.stack(column) for column in zip(*curve, strict=True))
    assert bool((rate.diff() < 0).all())
    assert bool((distortion.diff() > 0).all())
    assert parts(at(1e9, FACTS, y), FACTS, y)[0] < 1e-12


@cache
def trained() -> tuple[RateDistortion, Tensor]:
    """A linear encoder trained for each beta, with the decoder fixed, and the data."""
    y = FACTS.sample(300)
    model = model_of(FACTS)
    guide = encoder(model, y)
    before = state(guide)
    result = rate_distortion(
        model, guide, y, BETAS[::-1], train_model=False, num_epochs=150, batch_size=300,
        optimizer=fast, num_samples=30, progress=False,
    )  # fmt: skip
    assert_same_state(state(guide), before)
    return result, y


@pytest.mark.slow
def test_trained_curve_is_the_closed_one() -> None:
    """In three betas, in the order of their size; and the ELBO is at full weight."""
    result, y = trained()
    assert result.train.beta.tolist() == list(BETAS)
    assert list(result.models) == list(result.guides) == list(BETAS)
    best = [parts(at(beta, FACTS, y), FACTS, y) for beta in BETAS]
    found = [parts(normals(guide, y), FACTS, y) for guide in result.guides.values()]
    rate, distortion = (torch.stack(column) for column in zip(*found, strict=True))
    assert_on(result.train.rate, rate)
    assert_on(result.train.distortion, distortion)
    assert_on(result.train.elbo, -rate - distortion)
    with pytest.raises(AssertionError, match="is not"):  # the ELBO at the weight it was trained
        assert_on(result.train.elbo, -result.train.beta * rate - distortion)
    off = torch.tensor(found) - torch.tensor(best)  # (betas, 2)
    assert off.abs().max() < 0.06  # the noise of a gradient moves along the curve
    excess = off[:, 1] + result.train.beta * off[:, 0]
    assert (excess > 0).all()  # or it was not the best
    assert excess.max() < 0.03
    assert result.violations == ()
    assert result.beaten == ()
    assert result.entropy is None  # a density
    assert "greatest at beta 1" in result.verdict
    assert "entropy of the data is not known" in result.summary()


def test_large_beta_collapses() -> None:
    """The guide becomes the prior, and says so; the held-out curve says the same."""
    y, others = WEAK.sample(40), WEAK.sample(30)
    model = model_of(WEAK)
    result = rate_distortion(
        model, encoder(model, y), y, (1e4,), held_out=others, train_model=False,
        num_epochs=120, batch_size=40, optimizer=fast, num_samples=50, progress=False,
    )  # fmt: skip
    assert result.held_out is not None
    for curve in (result.train, result.held_out):
        assert_on(curve.rate, torch.zeros(1), 1e-3)
        assert_on(curve.information, torch.zeros(1), 1e-3)
    assert result.violations == ()
    assert "from beta 10000 on, z carries no information about the data" in result.verdict


@pytest.mark.slow
def test_bounds_of_bits() -> None:
    """With probabilities H - D <= I <= R, and tight at a small beta; H is that of the rows.

    Rows that come twice lower it: with log N in its place the bound breaks.
    """
    model, guide, y = binary(12)
    result = rate_distortion(
        model, guide, y, (0.02,), num_epochs=300, batch_size=12, optimizer=fast,
        num_samples=200, progress=False,
    )  # fmt: skip
    entropy = 4 / 12 * math.log(12) + 8 / 12 * math.log(6)
    assert result.entropy == pytest.approx(entropy)
    assert result.violations == ()
    smallest = result.points[0].train
    assert float(smallest.distortion.value) < 0.05
    assert float(smallest.information.value) > entropy - 0.05
    wrong = replace(result, entropy=math.log(12))
    assert {broken.bound for broken in wrong.violations} >= {"H - distortion <= information"}
    assert (
        "BROKEN: for the training data and beta 0.02, the bound H - distortion" in wrong.summary()
    )


def test_the_entropy_needs_whole_discrete_data() -> None:
    """Known for probabilities of the data tensor itself, and for nothing else."""

    class Odd(pyro.nn.PyroModule):
        def __init__(self, what: str) -> None:
            super().__init__()
            self.what, self.net = what, nn.Linear(1, 3)

        def forward(self, y: Tensor, *others: Tensor) -> None:
            with pyro.plate("data", len(y)):
                z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
                likelihood: Any = dist.Bernoulli(logits=self.net(z)).to_event(1)
                if self.what == "masked":
                    likelihood = likelihood.mask(y[:, 0] > 0)
                if self.what == "factor":
                    pyro.factor("more", z[:, 0])
                pyro.sample("y", likelihood, obs=1 - y if self.what == "turned" else y)

    class First(nn.Linear):
        def forward(self, y: Tensor, *others: Tensor) -> Tensor:
            return super().forward(y)

    # The last two rows are equal: rounding a small negative number gives -0.0.
    y = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0], [1.0, -0.0, 0.0]])
    for what, known in {"whole": True, "masked": False, "factor": False, "turned": False}.items():
        model = Odd(what)
        guide = pv.Guide(model, pv.Encoder(nn.Linear(3, 2)), example=y)
        result = rate_distortion(model, guide, y, (1,), num_epochs=1, progress=False)
        assert (result.entropy is not None) == known, what
        if known:
            assert result.entropy == pytest.approx(math.log(3) - 2 / 3 * math.log(2))
    guide = pv.Guide(Odd("whole"), pv.Encoder(First(3, 2)), example=(y, y))
    result = rate_distortion(
        guide.model, guide, (y, y), (1,), num_epochs=1, train_model=False, progress=False
    )
    assert result.entropy is None


def test_the_entropy_needs_whole_rows() -> None:
    """Which entries are missing has an entropy that log p does not contain: a bound would break."""
    y = torch.zeros(8, 3).masked_fill(
        torch.tensor([[n & 1, n & 2, n & 4] for n in range(8)]) > 0, torch.nan
    )
    y = torch.cat([torch.zeros(2, 3), y[1:7]])  # the first rows are whole
    decoder = nn.Linear(1, 3)
    nn.init.constant_(decoder.bias, -9.0)
    model = pv.models.VAE(decoder, pv.likelihoods.Bernoulli(), latent_dim=1)
    guide = pv.Guide(model, pv.Encoder(pv.nets.MissingIndicator(nn.Linear(6, 2))))
    result = rate_distortion(model, guide, y, (1,), num_epochs=1, progress=False)
    assert result.entropy is None
    assert not result.violations


@pytest.fixture(scope="module")
def short() -> RateDistortion:
    """Two betas, hardly trained."""
    with torch.random.fork_rng():
        model, guide, y = binary()
        y = y.to(next(model.parameters()).dtype)
        return rate_distortion(model, guide, y, (0.5, 2), num_epochs=2, progress=False)


def changed(result: RateDistortion, **values: Tensor) -> RateDistortion:
    """The same with other numbers in its second point."""
    first, second = result.points
    estimates = {name: Estimate(value, value.new_tensor(0.01)) for name, value in values.items()}
    train = replace(second.train, **estimates)  # type: ignore[arg-type]
    return replace(result, points=(first, replace(second, train=train)))


def test_wrong_numbers_are_caught(short: RateDistortion) -> None:
    """A KL weight in the reported ELBO; the mini-batch mistake; a likelihood above one."""
    assert short.violations == ()
    train = short.points[1].train
    rate, distortion = train.rate.value, train.distortion.value
    clearly = 1 + 6 * train.mismatch.error  # a violation counts from five errors on
    wrong = {
        "ELBO = - distortion - rate": {"elbo": -distortion - 2 * rate - 0.1},
        "information <= rate": {"information": rate + clearly},
        "information <= log N": {"information": torch.tensor(5.0)},
        "0 <= information": {"information": torch.tensor(-0.2)},
        "H - distortion <= information": {"distortion": torch.tensor(0.1)},
        "ELBO <= - H": {"elbo": torch.tensor(-1.0)},
    }
    for bound, values in wrong.items():
        found = changed(short, **values).violations
        assert bound in {broken.bound for broken in found}
        assert {(broken.beta, broken.data) for broken in found} == {(2.0, "training data")}


def test_held_out_data_have_an_entropy_of_their_own(short: RateDistortion) -> None:
    """Bounds of either data are held against the entropy of those very rows."""
    points = tuple(replace(point, held_out=point.train) for point in short.points)
    both = replace(short, points=points, held_out_entropy=short.entropy)
    assert both.violations == ()
    wrong = {"held-out data": {"held_out_entropy": 50.0}, "training data": {"entropy": 50.0}}
    for data, entropy in wrong.items():
        broken = replace(both, **entropy).violations  # type: ignore[arg-type]
        assert {violation.data for violation in broken} == {data}
        assert {violation.beta for violation in broken} == {0.5, 2.0}
    model, guide, y = binary()
    result = rate_distortion(
        model, guide, y, (1,), held_out=y[[0, 1, 1, 1]], num_epochs=1, progress=False
    )
    assert result.entropy == pytest.approx(math.log(8))
    assert result.held_out_entropy == pytest.approx(0.5623351446)  # of 1/4 and 3/4


@pytest.mark.slow
def test_a_leak_of_the_weight_is_caught_at_every_other_beta() -> None:
    """The wrong twin of the ELBO is -D - beta R: right at 1, wrong elsewhere."""
    result, _ = trained()
    assert [str(broken.bound) for broken in with_leak(result).violations] == [
        "ELBO = - distortion - rate"
    ] * 2
    assert [broken.beta for broken in with_leak(result).violations] == [0.3, 3.0]


def with_leak(result: RateDistortion) -> RateDistortion:
    """The same, with the weight of training in the ELBO."""

    def leaked(point: TradeOff) -> TradeOff:
        train = point.train
        elbo = -train.distortion.value - point.beta * train.rate.value
        return replace(point, train=replace(train, elbo=Estimate(elbo, train.elbo.error)))

    return replace(result, points=tuple(leaked(point) for point in result.points))


@pytest.mark.slow
def test_a_beta_that_another_beats() -> None:
    """Solutions swapped between two betas are each better at the other's."""
    result, _ = trained()
    first, middle, last = result.points
    swapped = replace(result, points=(replace(last, beta=0.3), middle, replace(first, beta=3.0)))
    assert [(pair.beta, pair.by) for pair in swapped.beaten] == [(0.3, 3.0), (3.0, 0.3)]
    assert "not converged: at beta 0.3, distortion + 0.3 * rate is " in swapped.summary()


class StopsAt(torch.optim.SGD):
    """Ctrl-C at a step, counted over all betas."""

    def __init__(self, parameters: list[Tensor], steps: list[int]) -> None:
        super().__init__(parameters, lr=0.1)
        self.steps = steps

    def step(self, closure: Any = None) -> Any:
        """Counts down."""
        self.steps[0] -= 1
        if self.steps[0] < 0:
            raise KeyboardInterrupt
        return super().step(closure)


def test_ctrl_c_returns_what_there_is() -> None:
    """The beta at which it came is evaluated as it is; later ones are not there."""
    model, guide, y = binary()
    before, random = state(model, guide), torch.get_rng_state()
    result = rate_distortion(
        model, guide, y, (0.5, 1, 2), num_epochs=3, batch_size=8, progress=False,
        optimizer=partial(StopsAt, steps=[4]),
    )  # fmt: skip
    assert_same_state(state(model, guide), before)
    assert torch.equal(torch.get_rng_state(), random)
    assert [point.fit.stopped for point in result.points] == ["finished", "interrupted"]
    assert result.verdict.endswith("training was interrupted at beta 1")


def test_ctrl_c_while_evaluating(monkeypatch: pytest.MonkeyPatch) -> None:
    """The betas before are returned; where there are none it is Ctrl-C."""

    def stopping(calls: int) -> None:
        count = iter(range(calls))

        def surgery(*arguments: Any, **options: Any) -> Any:
            if next(count, None) is None:
                raise KeyboardInterrupt
            return original(*arguments, **options)

        monkeypatch.setattr("pyro_vae.diagnostics.rates.surgery", surgery)

    original = diagnostics.surgery
    model, guide, y = binary()
    stopping(2)  # one before training
    result = rate_distortion(model, guide, y, (0.5, 1, 2), num_epochs=1, progress=False)
    assert list(result.models) == [0.5]
    stopping(1)
    with pytest.raises(KeyboardInterrupt):
        rate_distortion(model, guide, y, (0.5, 1, 2), num_epochs=1, progress=False)


def test_every_copy_starts_from_the_one_before() -> None:
    """With a step size of nothing all are the model that was given, and the same number."""
    model, guide, y = binary()
    result = rate_distortion(
        model, guide, y, (1, 2), num_epochs=1, progress=False,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.0),
    )  # fmt: skip
    for point in result.points:
        assert_same_state(state(point.model, point.guide), state(model, guide))
        assert point.guide.model is point.model
    assert result.train.elbo.value[0] == result.train.elbo.value[1]


def test_guides_of_other_kinds() -> None:
    """Free rows, and a program written by hand."""

    class ByHand(pyro.nn.PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(4, 2)

        def forward(self, y: Tensor) -> None:
            with pyro.plate("data", len(y)):
                pyro.sample("z", dist.Normal(self.net(y), 0.5).to_event(1))

    y = WEAK.sample(10)
    model = model_of(WEAK)
    tied = pv.Guide(model, pv.LocalParameters(len(y)), example=y[:1])
    for guide in (tied, ByHand()):
        result = rate_distortion(
            model, guide, y, (1, 4), train_model=False, num_epochs=3, progress=False
        )
        assert len(result.points) == 2
        assert result.violations == ()
    with pytest.raises(ValueError, match="this guide has no parameters for held-out data"):
        rate_distortion(model, tied, y, held_out=y, train_model=False)


def test_a_model_with_a_learned_transform_is_copied() -> None:
    """Pyro's flows keep results of their last call, which `copy.deepcopy` refuses."""

    class Learned(pyro.nn.PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.flow = dist.transforms.spline(1, count_bins=4)

        def forward(self, y: Tensor) -> None:
            with pyro.plate("data", len(y)):
                base = dist.Normal(torch.zeros(len(y), 1), 1.0).to_event(1)
                z = pyro.sample("z", dist.TransformedDistribution(base, [self.flow]))
                pyro.sample("y", dist.Normal(z, 1.0).to_event(1), obs=y)

    y, model = torch.tensor([[0.1], [-1.0], [0.5], [2.0]]), Learned()
    guide = pv.Guide(model, pv.Encoder(nn.Linear(1, 2)), example=y)
    model.flow.log_abs_det_jacobian(*[model.flow(torch.ones(1, 1)) for _ in range(2)])
    before = [parameter.clone() for parameter in model.parameters()]
    result = rate_distortion(model, guide, y, (1,), num_epochs=1, progress=False)
    copied = result.points[0].model.parameters()
    assert all(map(torch.equal, model.parameters(), before))
    assert not all(map(torch.equal, copied, before))


@pytest.mark.parametrize("betas", [(), (0.0, 1.0), (1.0, 1.0), (math.nan,), (math.inf,)])
def test_other_betas_are_refused(betas: tuple[float, ...]) -> None:
    """With what came."""
    with pytest.raises(ValueError, match="`betas` must be"):
        rate_distortion(*binary(), betas)


def test_what_cannot_be_copied_is_refused() -> None:
    """And a prior that depends on the datum before anything is trained."""
    y = WEAK.sample(5)
    model = model_of(WEAK)
    with pytest.raises(
        TypeError, match=r"`model` must be an nn.Module.* or pass `train_model=False`"
    ):
        rate_distortion(model, encoder(model, y), y)

    def guide(y: Tensor) -> None:
        """Has nothing to copy."""

    with pytest.raises(TypeError, match="copy with its own weights is trained for every beta"):
        rate_distortion(model, guide, y, train_model=False)

    def tilted(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(y[:, :1], 1.0).to_event(1))
            pyro.sample("y", dist.Normal(z, 1.0).to_event(1), obs=y)

    of_tilted = pv.Guide(tilted, pv.Encoder(nn.Linear(4, 2)), example=y[:1])
    with pytest.raises(ValueError, match="prior of this program depends on covariates"):
        rate_distortion(tilted, of_tilted, y, train_model=False, num_epochs=10**9)


@pytest.mark.parametrize(("slope", "expected"), [(0.0, ()), (1.0, (0.5,))])
def test_a_beta_that_was_still_rising_is_named(slope: float, expected: tuple[float, ...]) -> None:
    """An ELBO that rises by a nat per epoch has not converged; a level one has."""
    epochs = np.arange(1.0, 41.0)
    elbo = slope * epochs + 0.01 * np.sin(17 * epochs)
    one_each = np.ones(40)
    history = training.History(
        epochs, elbo, -elbo, one_each, one_each, one_each, 1e-3 * one_each, epochs
    )
    fit = training.Fit(history, "finished", 40, 0, ("w",))
    one = Estimate(torch.tensor(1.0), torch.tensor(0.0))
    surgery = diagnostics.Surgery(one, one, one, one, one, 2.5, 10)
    point = TradeOff(0.5, surgery, None, None, None, fit)
    result = RateDistortion((point,), None)
    assert result.unconverged == expected
    assert ("training may not have converged" in result.verdict) == bool(expected)
