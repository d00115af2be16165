"""Semi-amortized inference: better than the map it starts from, each gradient in its place."""

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam  # type: ignore[attr-defined]
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.guides.closed_form import ExactPosterior
from pyro_vae.guides.families import FullRankNormal
from pyro_vae.guides.flows import NormalizingFlow
from pyro_vae.guides.refined import Refined
from pyro_vae.programs.modes import local_parameters
from pyro_vae.registry import arguments_of
from tests.helpers.cases import factor_analysis
from tests.helpers.factor_analysis import amortization_gap, mean_field_net
from tests.helpers.statistics import FACTS

float64 = pytest.mark.usefixtures("float64")

# In float64; sums of tens of terms of size one.
assert_exact = functools.partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)


class Plain:
    """The mean-field family without its closed form, so that every step is a gradient's."""

    normal = pv.DiagonalNormal()

    def num_parameters(self, latent_dim: int) -> int:
        """As that family."""
        return self.normal.num_parameters(latent_dim)

    def initial(self, loc: Tensor, scale: float = 1.0) -> Tensor:
        """As that family."""
        return self.normal.initial(loc, scale)

    def __call__(self, parameters: Tensor) -> Any:
        """As that family."""
        return self.normal(parameters)


def wrong_net() -> nn.Linear:
    """A linear encoder of factor analysis that is off the best one, in means and in widths."""
    net = mean_field_net(FACTS)
    with torch.no_grad():
        net.weight.add_(0.3 * torch.randn_like(net.weight))
        net.bias.add_(0.5 * torch.rand_like(net.bias) + 0.3)
    return net


def vae(latent_dim: int = 2, features: int = 3) -> pv.models.VAE:
    """A model with a nonlinear decoder."""
    decoder = nn.Sequential(nn.Linear(latent_dim, 5), nn.Tanh(), nn.Linear(5, features))
    return pv.models.VAE(decoder, pv.likelihoods.Gaussian(sigma=0.5), latent_dim=latent_dim)


def flat(gradients: Sequence[Tensor]) -> Tensor:
    """Gradients laid end to end."""
    return torch.cat([gradient.flatten() for gradient in gradients])


def loss_of(model: Any, guide: pv.Guide, y: Tensor, **options: Any) -> Any:
    """Pyro's loss, with parameters in modules."""
    with local_parameters(model, guide):
        return Trace_ELBO(max_plate_nesting=1, **options).differentiable_loss(model, guide, y)


# ---------------------------------------------------------------------- better than the map


@float64
@pytest.mark.parametrize("family", [pv.DiagonalNormal(), Plain()], ids=["diagonal", "plain"])
def test_every_datum_gains(family: pv.guides.Family) -> None:
    """The exact ELBO lies between the map's and the optimum; no more steps make it worse."""
    y, net = FACTS.sample(6), wrong_net()
    gaps = [amortization_gap(FACTS, y, net(y))]
    for steps in (1, 4, 12, 40):
        guide = pv.Guide(
            factor_analysis, Refined(pv.Encoder(copy.deepcopy(net)), steps), family, example=y
        )
        gaps.append(amortization_gap(FACTS, y, guide.eval().parameters_of(y)))
    falls = torch.stack(gaps).diff(dim=0)
    assert (falls < 1e-9).all()
    assert (falls[:2].sum(dim=0) < -1e-3).all()  # a first trial may be too long, and taken back
    assert (gaps[-1] >= -1e-12).all()  # nothing is above the optimum
    assert (gaps[-1] < 1e-4).all()


@float64
def test_rows_are_on_their_own() -> None:
    """In any order, and in a batch of one; whatever the random stream."""
    model, y = vae(), torch.randn(5, 3)
    guide = pv.Guide(model, Refined(pv.Encoder(nn.Linear(3, 4)), steps=4)).eval()
    parameters = guide.parameters_of(y)
    same = functools.partial(torch.testing.assert_close, rtol=1e-6, atol=1e-6)
    same(guide.parameters_of(y.flip(0)).flip(0), parameters)
    same(torch.cat([guide.parameters_of(row[None]) for row in y]), parameters)
    same(guide.parameters_of(y.repeat(2000, 1))[-5:], parameters)  # more than one piece


def test_evaluation_changes_nothing() -> None:
    """Not a weight, a running mean, a mode, a gradient or the random stream; and it has no grad."""
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    decoder = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
    model = pv.models.VAE(decoder, pv.likelihoods.Gaussian(sigma=0.5), latent_dim=2)
    guide, y = pv.Guide(model, Refined(pv.Encoder(net), steps=3)), torch.randn(6, 3)
    before = copy.deepcopy((model.state_dict(), guide.state_dict()))
    stream = torch.get_rng_state()
    first = guide.mean(y)
    assert torch.equal(first, guide.mean(y))
    assert not guide.eval().parameters_of(y).requires_grad
    assert torch.equal(torch.get_rng_state(), stream)
    assert model.training
    for module, state in zip((model, guide), before, strict=True):
        for name, value in module.state_dict().items():
            assert torch.equal(value, state[name]), name
        assert all(value.grad is None for value in module.parameters())


# ---------------------------------------------------------------------- each gradient in its place

INNER: dict[str, Callable[[], pv.InferenceMap]] = {
    "encoder": lambda: pv.Encoder(wrong_net()),
    "global": pv.GlobalParameters,
}


def inner_gradient(guide: pv.Guide, total: Tensor) -> Tensor:
    """Of something in the parameters of the guide's map, flat."""
    return flat(torch.autograd.grad(total, list(guide.map.parameters()), retain_graph=True))


@float64
@pytest.mark.parametrize("name", INNER)
def test_the_map_has_its_own_gradient(name: str, seed: int) -> None:
    """That of Pyro's loss without the steps, at the same draw; not that at the refined answer."""
    y, inner = FACTS.sample(6), INNER[name]()
    plain = pv.Guide(factor_analysis, copy.deepcopy(inner), example=y)
    refined = pv.Guide(factor_analysis, Refined(inner, num_particles=1), example=y)
    pyro.set_rng_seed(seed)
    expected = inner_gradient(plain, -loss_of(factor_analysis, plain, y))
    pyro.set_rng_seed(seed)
    answer = refined.parameters_of(y)
    surrogate = refined.map.surrogate()
    assert surrogate is not None
    assert_exact(surrogate, torch.zeros(6))
    assert not answer.requires_grad
    assert_exact(inner_gradient(refined, surrogate.sum()), expected)
    assert refined.map.surrogate() is None  # it belongs to one call
    # The wrong twin: the gradient there, carried through the inner map.
    there = answer.clone().requires_grad_()
    pyro.set_rng_seed(seed)
    q = pv.DiagonalNormal()(there)
    z = q.rsample(torch.Size((1,)))
    (wrong,) = torch.autograd.grad((refined.program.log_joint(z, y) - q.log_prob(z)).sum(), there)
    assert isinstance(refined.map, Refined)
    twin = inner_gradient(refined, (wrong * refined.map.map((y,), None)).sum())
    with pytest.raises(AssertionError, match="not close"):
        assert_exact(twin, expected)


@float64
@pytest.mark.parametrize("options", [{}, {"num_particles": 3, "vectorize_particles": True}])
def test_the_loss_carries_it(options: dict[str, Any], seed: int) -> None:
    """Pyro's loss under `minibatch` has that gradient times N / B, with the sign of a loss."""
    y, rows = FACTS.sample(6), torch.tensor([1, 4, 5])
    guide = pv.Guide(factor_analysis, Refined(pv.Encoder(wrong_net())), example=y)
    pyro.set_rng_seed(seed)
    guide.parameters_of(y[rows])
    surrogate = guide.map.surrogate()
    assert surrogate is not None
    pyro.set_rng_seed(seed)
    with pv.minibatch(rows, num_data=6):
        loss = loss_of(factor_analysis, guide, y[rows], **options)
    assert_exact(inner_gradient(guide, loss), -2 * inner_gradient(guide, surrogate.sum()))


@float64
def test_the_model_has_the_gradient_at_the_refined_answer(seed: int) -> None:
    """At the same draw; not that at the inner map's answer."""
    model, y = vae(), torch.randn(6, 3)
    refined = pv.Guide(model, Refined(pv.Encoder(nn.Linear(3, 4))))
    for value in refined.parameters():
        value.requires_grad = False  # so that no draw is spent on the encoder's gradient
    weights = list(model.parameters())
    pyro.set_rng_seed(seed)
    gradient = flat(torch.autograd.grad(-loss_of(model, refined, y), weights))

    def expected(parameters: Tensor) -> Tensor:
        pyro.set_rng_seed(seed)
        z = refined.family(parameters).rsample(torch.Size((1,)))
        with local_parameters(model):
            total = refined.program.log_joint(z, y).sum()
        return flat(torch.autograd.grad(total, weights))

    assert_exact(gradient, expected(refined.parameters_of(y)))
    assert isinstance(refined.map, Refined)
    with pytest.raises(AssertionError, match="not close"):
        assert_exact(gradient, expected(refined.map.map((y,), None)))


@float64
def test_the_nets_of_a_family_are_trained() -> None:
    """A flow's shared nets have the gradient of the ELBO at the refined answer."""
    model, y = vae(), torch.randn(4, 3)
    encoder = pv.Encoder(pv.nets.MLPEncoder(3, hidden=(4,)))
    guide = pv.Guide(model, Refined(encoder, steps=2), NormalizingFlow())
    loss_of(model, guide, y).backward()
    for name, value in [*model.named_parameters(), *guide.named_parameters()]:
        assert value.grad is not None, name
        assert value.grad.isfinite().all(), name


# ---------------------------------------------------------------------- training


def exact_elbo(guide: pv.Guide, y: Tensor) -> float:
    """The mean ELBO of a mean-field guide of factor analysis, in nats per datum."""
    with torch.no_grad():
        gap = FACTS.mean_field_gap() + amortization_gap(FACTS, y, guide.eval().parameters_of(y))
    return (FACTS.log_evidence(y) - gap).mean().item()


@float64
@pytest.mark.parametrize("in_training", [True, False])
def test_training_improves_on_the_encoder(in_training: bool) -> None:  # noqa: FBT001
    """Held-out data, after the same short training; the encoder under the steps learns as well."""
    y, held_out, net = FACTS.sample(60), FACTS.sample(40), wrong_net()
    maps: list[pv.InferenceMap] = [
        pv.Encoder(copy.deepcopy(net)),
        Refined(pv.Encoder(copy.deepcopy(net)), steps=2, in_training=in_training),
    ]
    plain, refined = (pv.Guide(factor_analysis, map, example=y) for map in maps)
    start = exact_elbo(plain, held_out)
    for guide in (plain, refined):
        pv.fit(
            factor_analysis, guide.train(), y, num_epochs=8, batch_size=20, progress=False,
            optimizer=functools.partial(torch.optim.Adam, lr=0.02),
        )  # fmt: skip
    assert isinstance(refined.map, Refined)
    inner = pv.Guide(factor_analysis, copy_of(refined.map.map), example=y)
    assert start + 0.05 < exact_elbo(inner, held_out)  # it has learned
    assert exact_elbo(plain, held_out) + 0.01 < exact_elbo(refined, held_out)


def copy_of(map: pv.InferenceMap) -> pv.InferenceMap:
    """A map for another guide."""
    assert isinstance(map, pv.Encoder)
    return pv.Encoder(copy.deepcopy(map.net))


@float64
def test_at_test_time_only() -> None:
    """Training sees the encoder's own answer, with its gradient; evaluation the refined one."""
    y = FACTS.sample(6)
    refined = Refined(pv.Encoder(wrong_net()), in_training=False)
    guide = pv.Guide(factor_analysis, refined, example=y)
    answer = guide.parameters_of(y)
    assert torch.equal(answer, refined.map((y,), None))
    assert answer.requires_grad
    assert refined.surrogate() is None
    assert not torch.equal(guide.eval().parameters_of(y), answer)


@float64
@pytest.mark.usefixtures("user_param_store")
def test_a_loop_of_ones_own() -> None:
    """Pyro's SVI under its default settings trains the model and the encoder."""
    model, y = vae(), torch.randn(30, 3)
    guide = pv.Guide(model, Refined(pv.Encoder(nn.Linear(3, 4)), steps=2))
    before = copy.deepcopy([*model.parameters(), *guide.parameters()])
    svi = SVI(model, guide, Adam({"lr": 0.01}), Trace_ELBO())
    for rows in [*torch.arange(30).split(10)] * 2:
        with pv.minibatch(rows, num_data=30):
            svi.step(y[rows])
    for old, new in zip(before, [*model.parameters(), *guide.parameters()], strict=True):
        assert not torch.equal(old, new)


@float64
def test_rows_of_a_table_are_refined() -> None:
    """The table's rows in the batch move, and no others; it still knows whose rows they are."""
    model, y = vae(), torch.randn(8, 3)
    table = pv.LocalParameters(8)
    guide = pv.Guide(model, Refined(table, steps=2))
    assert guide.map.per_row
    rows, before = torch.tensor([2, 5]), table.table.clone()
    with pv.minibatch(rows, num_data=8):
        loss_of(model, guide, y[rows]).backward()
    moved = (table.table != before).any(dim=-1)
    assert moved.nonzero().squeeze(-1).tolist() == [2, 5]
    result = pv.fit(model, guide, y, num_epochs=2, batch_size=4, progress=False)
    assert not any("table" in name for name in result.trained)
    assert table.visits.tolist() == [2, 2, 3, 2, 2, 3, 2, 2]
    assert guide.mean(y).shape == (8, 2)
    with pytest.raises(ValueError, match="must be those that LocalParameters was trained on"):
        guide.mean(y + 1)
    assert guide.fit_rows(y[:3]).mean(y[:3]).shape == (3, 2)


def test_maps_without_parameters_have_no_surrogate() -> None:
    """Nothing is drawn for them; and a map may be refined twice."""
    y = FACTS.sample(4).float()
    exact = pv.Guide(factor_analysis, Refined(ExactPosterior()), FullRankNormal(), example=y)
    exact.parameters_of(y)
    assert exact.map.surrogate() is None
    twice = Refined(Refined(pv.Encoder(nn.Linear(4, 4)), steps=2), steps=2)
    guide = pv.Guide(factor_analysis, twice, example=y)
    guide.parameters_of(y)
    surrogate = guide.map.surrogate()
    assert surrogate is not None
    assert surrogate.requires_grad


# ---------------------------------------------------------------------- as an object


def test_copies_and_files(tmp_path: Any) -> None:
    """A copy in the middle of training is trained apart; the state is the inner map's."""
    model, y = vae(), torch.randn(5, 3)
    guide = pv.Guide(model, Refined(pv.Encoder(nn.Linear(3, 4)), steps=2))
    guide.parameters_of(y)  # its surrogate is in flight
    copied = copy.deepcopy(guide)
    assert torch.equal(copied.mean(y), guide.mean(y))
    with torch.no_grad():
        next(copied.parameters()).add_(1)
    assert not torch.equal(copied.mean(y), guide.mean(y))
    torch.save(copied.state_dict(), tmp_path / "guide.pt")
    guide.load_state_dict(torch.load(tmp_path / "guide.pt"))
    assert torch.equal(copied.mean(y), guide.mean(y))
    config = arguments_of(guide.map)
    assert isinstance(config.pop("map"), pv.Encoder)
    assert config == {"steps": 2, "num_particles": 16, "in_training": True}


def test_a_trained_encoder_is_refined() -> None:
    """Its head is kept, and shared with the guide it was trained in; another family is refused."""
    model, y = vae(), torch.randn(5, 3)
    trained = pv.Guide(model, pv.Encoder(pv.nets.MLPEncoder(3, hidden=(4,))))
    guide = pv.Guide(model, Refined(trained.map))
    guide.train()
    before = trained.eval().parameters_of(y)
    assert isinstance(guide.map, Refined)
    assert torch.equal(guide.map.map((y,), None), before)
    other = pv.Guide(model, Refined(trained.map), FullRankNormal())
    with pytest.raises(ValueError, match=r"needs 5 parameters per datum, but .* gives 4"):
        other.mean(y)
    fresh = pv.Encoder(nn.Linear(3, 4))
    pv.Guide(model, Refined(fresh))
    with pytest.raises(ValueError, match="already belongs to a guide"):
        pv.Guide(model, fresh)


def test_a_shared_map_keeps_the_family_of_its_guide() -> None:
    """Refining it with another family is refused; the family must not reach the first guide."""
    model, y = vae(), torch.randn(5, 3)
    net = pv.nets.ColumnInputs(pv.nets.MLPEncoder(6, hidden=(4,)), [0, 0, 0])
    trained = pv.Guide(model, pv.guides.ProductOfExperts(net, 2))
    before = trained.mean(y)
    other = pv.Guide(model, Refined(trained.map), FullRankNormal())
    with pytest.raises(ValueError, match=r"needs 5 parameters per datum, but .* gives 4"):
        other.mean(y)
    assert torch.equal(trained.mean(y), before)


def test_arguments_out_of_range() -> None:
    """No steps, or no draws."""
    with pytest.raises(
        ValueError, match=r"must be at least 1; got steps=0 and num_particles=16: for no steps, use"
    ):
        Refined(pv.GlobalParameters(), steps=0)
    with pytest.raises(ValueError, match="must be at least 1; got steps=10 and num_particles=0"):
        Refined(pv.GlobalParameters(), num_particles=0)


def test_a_row_is_named_by_its_place_in_the_data() -> None:
    """Rows are refined a thousand at a time; the message counted from the first of those."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)
            pyro.factor("nan", torch.where(y > 5, torch.nan, 0.0))

    y = torch.zeros(1100)
    y[1098] = 9.0
    guide = pv.Guide(model, Refined(pv.GlobalParameters(), steps=1), example=y)
    with pytest.raises(FloatingPointError, match=r"first in row 1098 "):
        guide.mean(y)


@pytest.mark.usefixtures("float64")
def test_particles_of_a_refined_guide() -> None:
    """As many as asked for: the steps are those of the map with that number, and of no other."""
    model, y = vae(), torch.randn(5, 3, dtype=torch.float64)
    net = nn.Linear(3, 4)
    few, more = (
        pv.Guide(model, pv.Encoder(net)).refined(2, num_particles=number).mean(y)
        for number in (4, 64)
    )
    assert not torch.allclose(few, more)
    for number, found in [(4, few), (64, more)]:
        expected = pv.Guide(model, Refined(pv.Encoder(net), 2, number)).eval().mean(y)
        assert torch.equal(found, expected)
