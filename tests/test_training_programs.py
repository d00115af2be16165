"""Training: which programs train, and what it touches."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.infer.autoguide.initialization import init_to_value
from pyro.nn import PyroModule, PyroParam, pyro_method
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.programs import Program, evaluating
from tests.helpers.cases import scalar
from tests.helpers.factor_analysis import (
    model_of,
    prior_guide,
)
from tests.helpers.idioms import IDIOMS, clusters
from tests.helpers.statistics import FACTS, FACTS_Y
from tests.helpers.training import (
    MAPS,
    adam,
    assert_same_state,
    data,
    fit,
    small,
    state,
    walk,
)

MODEL = model_of(FACTS)


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


# Programs that subsample, and programs with discrete sites


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ["subsamples", "indexes"])
def test_both_idioms_train_alike(name: str) -> None:
    """A plate that subsamples by itself holds the batch: the same result, to the last bit."""
    y = torch.randn(50, 1)
    guides = []
    for program in (scalar, IDIOMS[name].program):
        torch.manual_seed(0)

        def model(y: Tensor, program: Any = program) -> None:
            program(y[:, 0])

        guide = pv.Guide(model, pv.Encoder(nn.Linear(1, 2)), example=y)
        fit(model, guide, y, num_epochs=2, batch_size=20)
        guides.append(guide)
    assert_same_state(state(guides[1]), state(guides[0]))


ENUMERATED = ("clusters", "switches", "words")


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ENUMERATED)
def test_losses_of_programs_with_discrete_sites(name: str) -> None:
    """What is trained is the sum of log weights with the discrete sites summed out exactly."""
    case = IDIOMS[name]
    batch = case.data()
    guide = pv.Guide(case.program, pv.GlobalParameters(), example=batch)
    structure = guide.program.structure
    objective = TraceEnum_ELBO(max_plate_nesting=structure.nesting)
    with evaluating(guide):
        pyro.set_rng_seed(3)
        loss = objective.loss(guide.program.enumerating(case.program), guide, *batch)
        pyro.set_rng_seed(3)
        nodes: Any = poutine.trace(guide).get_trace(*batch).nodes
        values = {site.name: nodes[site.name]["value"] for site in guide.program.latent_sites}
        z = guide.program.flatten(values)[0][None]
        log_q = guide.posterior(*batch).log_prob(z)
        log_weights = Program(case.program, *batch).log_joint(z, *batch) - log_q
        by_hand = case.density(z, *batch) - log_q
    assert loss == pytest.approx(-log_weights.sum().item(), rel=1e-10)
    assert loss == pytest.approx(-by_hand.sum().item(), rel=1e-10)


@pytest.mark.parametrize("name", ENUMERATED)
def test_programs_with_discrete_sites_train(name: str) -> None:
    """By an objective that sums them out, which `fit` takes by itself."""
    case = IDIOMS[name]
    batch = case.data()
    guide = pv.Guide(case.program, pv.LocalParameters(len(batch[0])), example=batch)
    before = state(guide)
    result = fit(case.program, guide, batch[0], num_epochs=3)
    assert all(torch.isfinite(torch.as_tensor(result.history.elbo)))
    assert not torch.equal(state(guide)["0.map.table"], before["0.map.table"])


@pytest.mark.usefixtures("user_param_store")
@pytest.mark.parametrize("dim", [None, -2])
def test_a_guide_in_other_plates_than_the_model_is_named(dim: int | None) -> None:
    """Without the plate, or with it at another dimension; at the model's it trains."""

    def guide(y: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.4))
        if dim is None:
            pyro.sample("z", dist.Normal(slope * y, 0.8))
            return
        with pyro.plate("data", len(y), dim=dim):
            pyro.sample("z", dist.Normal(slope * y[:, None], 0.8))

    def remedy(y: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.4))
        with pyro.plate("data", len(y), dim=-1):
            pyro.sample("z", dist.Normal(slope * y, 0.8))

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    with pytest.raises(ValueError, match=r"site 'z' must have the same plates .* `dim`"):
        fit(model, guide, torch.randn(6), num_epochs=1)
    fit(model, remedy, torch.randn(6), num_epochs=1)


def test_an_objective_that_would_draw_discrete_sites() -> None:
    """Is refused: it would draw them from the prior, which is another bound, in silence."""
    y = torch.randn(10)
    guide = pv.Guide(clusters, pv.GlobalParameters(), example=y)
    with pytest.raises(ValueError, match=r"Trace_ELBO would draw .* \['label'\] .* TraceEnum_ELBO"):
        fit(clusters, guide, y, objective=Trace_ELBO())


@pytest.mark.usefixtures("user_param_store")
@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_fixed_decoder_of_torch_script() -> None:
    """It takes no hooks, by which other modules of a fixed model are found."""
    decoder = torch.jit.script(nn.Linear(1, 3))

    def model(y: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(decoder(z), 1.0).to_event(1), obs=y)

    y, before = data(), state(decoder)
    guide = pv.Guide(model, pv.Encoder(nn.Linear(3, 2)), example=y)
    result = fit(model, guide, y, num_epochs=1, train_model=False)
    assert_same_state(state(decoder), before)
    assert result.trained == ("guide.map.net.weight", "guide.map.net.bias")


@pytest.mark.usefixtures("user_param_store")
def test_the_mean_field_elbo_of_an_automatic_guide() -> None:
    """Its Jacobians count: Pyro's loss left out their mean, which is the mean of log z here."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.LogNormal(3.0, 0.1))
            pyro.sample("y", dist.Normal(z, 5.0), obs=y)

    y = torch.full((4,), 20.0)
    guide = AutoNormal(model, init_loc_fn=init_to_value(values={"z": torch.full((4,), 20.0)}))
    history = fit(
        model, guide, y, num_epochs=1, batch_size=4, optimizer=adam(lr=1e-9),
        objective=TraceMeanField_ELBO(num_particles=20),
    ).history  # fmt: skip
    bound = pv.elbo(model, guide, y, 1000).mean
    assert (
        abs(history.elbo[0] - bound.value) < 0.5
    )  # log z is 3.0, and its standard error below .01
