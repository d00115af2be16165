"""`pyro.param` and `pyro.module` statements in models and guides of every form, under every map."""

import math
from collections.abc import Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.contrib.easyguide import EasyGuide
from pyro.nn import PyroModule
from pyro.optim import PyroOptim
from torch import Tensor, nn

import pyro_vae as pv

POSITIVE = dist.constraints.positive
Y = torch.tensor([[-1.0], [0.5], [2.0]])


@pytest.fixture(autouse=True)
def _own_store() -> Iterator[None]:
    with pyro.get_param_store().scope():
        yield


def body(module: Any, use: str, y: Tensor) -> None:
    """Y ~ N(net(z), sigma), z ~ N(0, 1), with a statement of Pyro's or none."""
    if use == "pyro.module":
        pyro.module("net", module.net)
    sigma: Any = 2.0
    if use == "pyro.param":
        sigma = pyro.param("sigma", torch.tensor(2.0), constraint=POSITIVE)
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(module.net(z), sigma).to_event(1), obs=y)


class InForward(PyroModule):
    """The statement stands in the `forward` of a PyroModule."""

    def __init__(self, use: str) -> None:
        super().__init__()
        self.net, self.use = nn.Linear(1, 1), use

    def forward(self, y: Tensor) -> None:
        body(self, self.use, y)


class Owner(nn.Module):
    """The statement stands in a method, as in Pyro's VAE."""

    def __init__(self, use: str) -> None:
        super().__init__()
        self.net, self.use = nn.Linear(1, 1), use

    def model(self, y: Tensor) -> None:
        body(self, self.use, y)


class GuideInForward(PyroModule):
    """A guide whose `forward` has a statement."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(1, 1)
        nn.init.zeros_(self.net.weight)

    def forward(self, y: Tensor) -> None:
        pyro.module("encoder", self.net)
        scale = pyro.param("scale", torch.tensor(1.5), constraint=POSITIVE)
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(self.net(y), scale).to_event(1))


class Easy(EasyGuide):
    """An EasyGuide with a parameter that all data share."""

    def guide(self, y: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.2))
        with self.plate("data", len(y)):
            pyro.sample("z", dist.Normal(slope * y, 1.5).to_event(1))


USES = ["nothing", "pyro.param", "pyro.module"]
FORMS: dict[str, Any] = {"forward": InForward, "method": lambda use: Owner(use).model}
MAPS: dict[str, Any] = {
    "encoder": lambda: pv.Encoder(nn.Linear(1, 2)),
    "global": pv.GlobalParameters,
    "local": lambda: pv.LocalParameters(len(Y)),
    "refined": lambda: pv.Refined(pv.Encoder(nn.Linear(1, 2)), steps=2),
}


def exact(model: Any, sigma: float) -> Tensor:
    """Log p(y) of a linear Gaussian model, in closed form."""
    net = getattr(model, "__self__", model).net
    variance = net.weight.item() ** 2 + sigma**2
    return dist.Normal(net.bias.item(), math.sqrt(variance)).log_prob(Y[:, 0]).double()


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("map", MAPS)
def test_models(map: str, form: str, use: str) -> None:
    """One epoch of training, and then the evidence at the parameters that it has found."""
    model = FORMS[form](use)
    guide = pv.Guide(model, MAPS[map](), example=Y)
    result = pv.fit(model, guide, Y, num_epochs=1, progress=False)
    sigma = pyro.param("sigma").item() if use == "pyro.param" else 2.0
    assert any("sigma" in name for name in result.trained) == (use == "pyro.param")
    assert (sigma != 2.0) == (use == "pyro.param")
    lml = pv.log_marginal_likelihood(model, guide, Y, pv.Quadrature())
    torch.testing.assert_close(lml.value, exact(model, sigma), rtol=0, atol=1e-4)


@pytest.mark.parametrize("make", [lambda model: GuideInForward(), Easy])
def test_guides(make: Any) -> None:
    """A guide's own statements are trained, and its evidence is that of the model."""
    torch.manual_seed(0)
    model = InForward("nothing")
    guide = make(model)
    result = pv.fit(model, guide, Y, num_epochs=1, progress=False)
    assert any("scale" in name or "slope" in name for name in result.trained)
    lml = pv.log_marginal_likelihood(model, guide, Y, pv.ImportanceSampling(4000))
    assert bool(((lml.value - exact(model, 2.0)).abs() < 6 * lml.error + 1e-4).all())


def test_a_users_own_training_is_what_is_evaluated() -> None:
    """A parameter that a loop of one's own has trained is the one that evidence sees."""
    model = InForward("pyro.param")
    guide = GuideInForward()
    svi = pyro.infer.SVI(
        model, guide, PyroOptim(torch.optim.Adam, {"lr": 0.1}), pyro.infer.Trace_ELBO()
    )
    for _ in range(3):
        svi.step(Y)
    sigma = pyro.param("sigma").item()
    assert sigma != 2.0
    lml = pv.log_marginal_likelihood(model, guide, Y, pv.Quadrature())
    torch.testing.assert_close(lml.value, exact(model, sigma), rtol=0, atol=1e-4)
    wrong = exact(model, 2.0)  # the twin: the parameter as it was before training
    assert bool(((lml.value - wrong).abs() > 1e-3).any())


def test_pyro_is_left_as_it_was() -> None:
    """After a call Pyro's scopes are its own again."""
    pv.log_joint(InForward("pyro.param"), torch.zeros(1, 3, 1), Y)
    store = pyro.get_param_store()
    with store.scope(state={"params": {}, "constraints": {}}):
        pyro.param("inside", torch.tensor(1.0))
    assert "inside" not in store
