"""Guides of every map in minibatches and in training loops of one's own, with Pyro's SVI."""

import copy
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam  # type: ignore[attr-defined]
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae._types import ProgramLike
from pyro_vae.guides import InferenceMap
from pyro_vae.programs import evaluating
from tests.helpers.cases import (
    NUM_DATA,
)
from tests.helpers.guides import Certain, Net, vae

float64 = pytest.mark.usefixtures("float64")


def certain(model: ProgramLike, y: Tensor) -> pv.Guide:
    """A guide without noise."""
    net = Net.of((y,), y[0].numel() + 1)
    return pv.Guide(model, pv.Encoder(net), family=Certain(), example=y)


def identity(y: Tensor) -> None:
    """A model with as many latents as features."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(z, 0.5).to_event(1), obs=y)


def identity_subsampled(y: Tensor) -> None:
    """The same with a plate that knows how many data there are."""
    with pyro.plate("data", 12, subsample_size=len(y)):
        z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(z, 0.5).to_event(1), obs=y)


@float64
@pytest.mark.parametrize("model", [identity, identity_subsampled])
@pytest.mark.parametrize("sizes", [[4, 4, 4], [5, 5, 2], [11, 1]])
def test_minibatch_losses_average_to_the_whole(model: ProgramLike, sizes: list[int]) -> None:
    """Each batch estimates the loss of all data; weighed by their sizes they give it exactly."""
    y = torch.randn(12, 4)
    guide = certain(model, y)
    with evaluating(guide):
        whole = Trace_ELBO().loss(model, guide, y)
        losses = []
        for rows in torch.randperm(12).split(sizes):
            with pv.minibatch(rows, num_data=12):
                losses.append(len(rows) / 12 * Trace_ELBO().loss(model, guide, y[rows]))
    assert sum(losses) == pytest.approx(whole, rel=1e-12)


@float64
def test_a_plate_that_subsamples_scales_the_guide_too() -> None:
    """Without a minibatch block the model's plate alone weighs p and q by the same N / B."""
    y = torch.randn(4, 4)
    guide, whole = certain(identity_subsampled, y), certain(identity, y)
    whole.load_state_dict(guide.state_dict())
    with evaluating(guide, whole):
        expected = 12 / 4 * Trace_ELBO().loss(identity, whole, y)
        assert Trace_ELBO().loss(identity_subsampled, guide, y) == pytest.approx(expected)


MAPS: dict[str, Callable[[], InferenceMap]] = {
    "encoder": lambda: pv.Encoder(pv.nets.MLPEncoder(3, hidden=(5,))),
    "local": lambda: pv.LocalParameters(20),
    "global": pv.GlobalParameters,
}


def train(model: ProgramLike, guide: ProgramLike, y: Tensor, steps: int = 20) -> list[float]:
    """A loop as users write it."""
    svi = SVI(model, guide, Adam({"lr": 0.01}), Trace_ELBO())
    losses = []
    for _ in range(steps):
        rows = torch.randperm(len(y))[:10]
        with pv.minibatch(rows, num_data=len(y)):
            losses.append(svi.step(y[rows]))
    return losses


def tensors_of(*modules: nn.Module) -> dict[str, Tensor]:
    """Copies of all that may be trained."""
    names = {
        f"{index}.{name}": value.detach().clone()
        for index, module in enumerate(modules)
        for name, value in [*module.named_parameters(), *module.named_buffers()]
        if value.numel() > 0 and not name.endswith(("zero", "visits", "moment", "square"))
    }
    assert names
    return names


@pytest.mark.usefixtures("user_param_store")
@pytest.mark.parametrize("name", MAPS)
def test_svi_trains_everything(name: str) -> None:
    """Every weight of the decoder and of the guide moves, and evaluation sees it."""
    model, y = vae(), torch.randn(20, 3)
    guide = pv.Guide(model, MAPS[name]())
    before = tensors_of(model, guide)
    train(model, guide, y)
    for key, value in tensors_of(model, guide).items():
        assert (value != before[key]).all(), key
    torch.testing.assert_close(model.decode(torch.ones(1, 2)), model.decoder(torch.ones(1, 2)))


@pytest.mark.usefixtures("user_param_store")
@pytest.mark.parametrize("name", MAPS)
def test_a_second_pair_starts_fresh(name: str) -> None:
    """Pyro's store keeps parameters by name: a second model and guide must have other names."""
    y = torch.randn(20, 3)
    model = vae()
    guide = pv.Guide(model, MAPS[name]())
    train(model, guide, y)
    trained = tensors_of(model, guide)
    second = vae()
    second_guide = pv.Guide(second, MAPS[name]())
    before = tensors_of(second, second_guide)
    with pv.minibatch(torch.arange(20), 20):
        second_guide(y)  # Pyro would put the first one's values in here
    second(y)
    for key, value in tensors_of(second, second_guide).items():
        assert torch.equal(value, before[key]), key
    train(second, second_guide, y)
    for key, value in tensors_of(second, second_guide).items():
        assert not torch.equal(value, before[key]), key
    for key, value in tensors_of(model, guide).items():
        assert torch.equal(value, trained[key]), key


@pytest.mark.usefixtures("user_param_store")
def test_copies_are_trained_apart() -> None:
    """A deep copy, also of a pair that was trained, has a name and weights of its own."""
    y = torch.randn(20, 3)
    model = vae()
    guide = pv.Guide(model, MAPS["encoder"]())
    train(model, guide, y)
    copied, copied_guide = copy.deepcopy((model, guide))
    assert len({part._pyro_name for part in (model, guide, copied, copied_guide)}) == 4
    assert copied_guide.model is copied
    before = tensors_of(model, guide)
    for key, value in tensors_of(copied, copied_guide).items():
        assert torch.equal(value, before[key]), key
    train(copied, copied_guide, y)
    for key, value in tensors_of(model, guide).items():
        assert torch.equal(value, before[key]), key
    for key, value in tensors_of(copied, copied_guide).items():
        assert not torch.equal(value, before[key]), key


def test_evaluation_leaves_the_store_alone() -> None:
    """Nothing of ours puts parameters there; the fixture of every test looks."""
    model, y = vae(), torch.randn(NUM_DATA, 3)
    guide = pv.Guide(model, MAPS["encoder"]())
    guide.sample(y)
    model.sample(2)
    pv.log_joint(model, guide.sample(y), y)
    assert not list(pyro.get_param_store().keys())
