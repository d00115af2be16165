"""In a comparison no guide shares a parameter with another one, however programs are written."""

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.comparisons import Comparison
from pyro_vae.programs.copies import Copies
from pyro_vae.programs.traces import leaves_of, run
from tests.helpers.ways import FEATURES, WAYS, ByEncoder, Model, Pair, generate

FAST = ("params", "closures")
EVERY_WAY = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in WAYS]
ORDER = ("author", "encoder", "global")


def data() -> Tensor:
    """Twelve rows to train on and eight held out."""
    return 2 * torch.randn(20, FEATURES, generator=torch.Generator().manual_seed(0))


def compared(pair: Pair, order: Sequence[str] = ORDER, **options: Any) -> Comparison:
    """Two epochs under three guides."""
    linear = nn.Linear(FEATURES, 2)
    nn.init.constant_(linear.weight, 0.1)
    nn.init.zeros_(linear.bias)
    maps = {"author": pair.guide, "encoder": pv.Encoder(linear), "global": pv.GlobalParameters()}
    y = data()
    return pv.compare(
        pair.model, {name: maps[name] for name in order}, y[:12], y[12:], num_epochs=2,
        batch_size=6, evaluation=pv.ImportanceSampling(40), estimator=pv.ImportanceSampling(40),
        optimizer=lambda tensors: torch.optim.Adam(tensors, lr=0.05), progress=False, **options,
    )  # fmt: skip


def numbers(table: Comparison) -> dict[str, Tensor]:
    """What every guide came to, by its name."""
    rows = {row.guide: row for row in table.rows()}
    return {
        name: torch.tensor([rows[name].number(key) for key in ("train_elbo", "elbo", "log_p")])
        for name in sorted(rows)
    }


def state(pair: Pair) -> dict[int, Tensor]:
    """Every tensor that the programs train, and all that Pyro's store holds, copied."""
    sites = [site for part in pair for site in run(part, (data(),)).sites.values()]
    total = torch.stack([(site.log_prob.sum() + site.value.sum()) for site in sites]).sum()
    return {id(leaf): leaf.detach().clone() for leaf in leaves_of(total)}


def require_equal(one: dict[Any, Tensor], other: dict[Any, Tensor]) -> None:
    """The same keys and the same numbers, up to rounding in float32."""
    assert list(one) == list(other)
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def reference() -> dict[str, Tensor]:
    """The numbers when both programs are modules, whose parameters are nobody else's."""
    return numbers(compared(WAYS["modules"]()))


@pytest.fixture(autouse=True)
def empty_store() -> Iterator[None]:
    """Nothing in Pyro's store, before and after."""
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


@pytest.mark.parametrize("way", EVERY_WAY)
def test_every_guide_trains_its_own_copy(way: str, reference: dict[str, Tensor]) -> None:
    """The same numbers however the programs are written and the guides are ordered.

    What was given has not moved, and the results still say what the table does.
    """
    pair = WAYS[way]()
    before = state(pair)
    stored = set(pyro.get_param_store().keys())
    table = compared(pair, ORDER[::-1])
    require_equal(numbers(table), reference)
    assert set(pyro.get_param_store().keys()) == stored
    require_equal(state(pair), before)
    for result in table.results.values():
        again = pv.elbo(result.model, result.guide, data()[:12], 100)
        torch.testing.assert_close(again.value, result.train_bound.elbo.value)
    assert set(pyro.get_param_store().keys()) == stored


@pytest.mark.parametrize("way", EVERY_WAY)
def test_a_fixed_model_does_not_move(way: str) -> None:
    """Log p of every row is that of the untouched program, under every guide."""
    pair = WAYS[way]()
    before, y = state(pair), data()[12:]
    table = compared(pair, train_model=False, seed=1)
    guide = pv.Guide(pair.model, pv.GlobalParameters(), example=y)
    truth = pv.log_marginal_likelihood(pair.model, guide, y, pv.Quadrature()).value
    for result in table.results.values():
        exact = pv.log_marginal_likelihood(result.model, result.guide, y, pv.Quadrature()).value
        torch.testing.assert_close(exact, truth, rtol=0, atol=1e-6)
        assert not result.gap.log_marginal.value.requires_grad
    require_equal(state(pair), before)


@pytest.mark.parametrize("way", EVERY_WAY)
def test_fit_is_the_same_in_every_way(way: str) -> None:
    """Training sees the same parameters, and the same ELBO after every epoch."""
    elbos = []
    for name in ("modules", way):
        pyro.clear_param_store()
        pair = WAYS[name]()
        result = pv.fit(*pair, data(), num_epochs=2, batch_size=6, progress=False)
        elbos.append((result.history.elbo, len(result.trained)))
    assert elbos[0][0] == pytest.approx(elbos[1][0], rel=1e-5)
    assert elbos[0][1] == elbos[1][1] == 5 or way == "methods"


def test_programs_that_were_not_copied_are_caught(
    monkeypatch: pytest.MonkeyPatch, reference: dict[str, Tensor]
) -> None:
    """The wrong twin: one model for all guides gives other numbers."""
    monkeypatch.setattr(Copies, "of_program", lambda _, program, **__: program)
    with pytest.raises(AssertionError):
        require_equal(numbers(compared(WAYS["params"]())), reference)


def test_a_method_and_its_owner_are_copied_together() -> None:
    """An encoder that the model's owner holds is the one that is trained, within the copy."""
    pair = WAYS["methods"]()
    owner = pair.model.__self__
    map = pv.Encoder(owner.encoder)
    table = pv.compare(
        pair.model, {"a": map, "b": pair.guide}, data()[:12], data()[12:], num_epochs=1,
        evaluation=pv.ImportanceSampling(40), progress=False,
    )  # fmt: skip
    result = table.results["a"]
    inside = result.model.__self__
    assert inside is not owner
    assert result.guide.map.net is inside.encoder
    assert not torch.equal(inside.encoder.weight, owner.encoder.weight)


def test_a_guide_with_nothing_to_train_is_evaluated_as_it_is() -> None:
    """Under a fixed model; next to one that is trained."""

    def prior(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            pyro.sample("z", pyro.distributions.Normal(torch.zeros(1), 1.0).to_event(1))

    table = compared(Pair(WAYS["params"]().model, prior), train_model=False)
    assert table.results["author"].fit.trained == ()
    assert table.results["global"].fit.trained != ()


class Batched(nn.Module):
    """A model whose decoder has running averages and drops units."""

    def __init__(self) -> None:
        super().__init__()
        parts = [nn.Linear(1, 4), nn.BatchNorm1d(4, affine=False), nn.Dropout(0.5)]
        self.decoder = nn.Sequential(*parts, nn.Linear(4, FEATURES))
        self.encoder = nn.Sequential(nn.Linear(FEATURES, 2), nn.BatchNorm1d(2))

    def model(self, y: Tensor) -> None:
        pyro.module("both", self)
        generate(y, self.decoder, 1.0)

    def guide(self, y: Tensor) -> None:
        ByEncoder.forward(self, y)  # type: ignore[arg-type]


def test_running_averages_of_a_fixed_model_stay() -> None:
    """Although the owner of model and guide is in training mode; the guide's own averages move."""
    owner = Batched()
    before = {name: value.clone() for name, value in owner.state_dict().items()}
    pv.fit(owner.model, owner.guide, data(), num_epochs=1, train_model=False, progress=False)
    moved = {name for name, value in owner.state_dict().items() if not value.equal(before[name])}
    assert "encoder.1.running_mean" in moved
    assert {name.partition(".")[0] for name in moved} == {"encoder"}
    assert all(module.training for module in owner.modules())


def test_what_cannot_be_copied_is_refused() -> None:
    """A network in an object that nobody can look into would be trained by all guides in turn."""

    class Box:
        pass

    box = Box()
    box.net = Model().decoder  # type: ignore[attr-defined]
    pair = Pair(lambda y: generate(y, box.net, 1.0), ByEncoder())  # type: ignore[attr-defined]
    with pytest.raises(
        TypeError, match=r"must not share .* 2 shared tensors.*make them parameters"
    ):
        compared(pair)
    fixed = compared(pair, train_model=False)
    assert torch.isfinite(numbers(fixed)["author"]).all()


def test_a_parameter_starts_from_the_store() -> None:
    """Copies start where the caller's own training has left off, and leave it there."""
    pyro.get_param_store().setdefault(
        "scale", torch.tensor(0.5), torch.distributions.constraints.positive
    )
    copies = Copies((data(),))
    pair = WAYS["closures"]()
    model, guide = (copies.of_program(part) for part in pair)
    assert isinstance(model, nn.Module)
    assert isinstance(guide, nn.Module)
    scales = [value for name, value in model.named_parameters() if "scale" in name]
    assert float(scales[0].detach().exp()) == pytest.approx(0.5)
    assert set(pyro.get_param_store().keys()) == {"scale"}
    assert not set(model.parameters()) & set(guide.parameters())


def test_copies_of_transforms_that_keep_their_last_call() -> None:
    """Pyro's flows keep results with a history, which `copy.deepcopy` refuses."""
    flow = pyro.distributions.transforms.spline(1, count_bins=4)

    def model(y: Tensor) -> None:
        pyro.module("flow", flow)
        with pyro.plate("data", len(y)):
            base = pyro.distributions.Normal(torch.zeros(len(y), 1), 1.0).to_event(1)
            z = pyro.sample("z", pyro.distributions.TransformedDistribution(base, [flow]))
            pyro.sample("y", pyro.distributions.Normal(z[:, 0], 1.0), obs=y)

    y = torch.tensor([0.1, -1.0])
    flow.log_abs_det_jacobian(*[flow(torch.ones(1, 1)) for _ in range(2)])
    copied = Copies((y,)).of_program(model)
    found = [pv.log_joint(program, torch.ones(1, 2, 1), y) for program in (model, copied)]
    torch.testing.assert_close(*found)
    assert not set(map(id, flow.parameters())) & set(map(id, copied.parameters()))  # type: ignore[attr-defined]


class Guarded(nn.Module):
    """A network behind a lock, which `copy.deepcopy` refuses; `inside` is held with the lock."""

    def __init__(self, net: nn.Module, inside: object = None) -> None:
        super().__init__()
        self.net, self.lock = net, {"lock": threading.Lock(), "inside": inside}

    def forward(self, z: Tensor) -> Tensor:
        """Decodes under the lock."""
        return self.net(z)


def written(net: nn.Module) -> dict[str, Callable[[], nn.Module]]:
    """Networks that torch copies in ways of its own, or not at all."""
    return {
        "torch.jit.script": lambda: torch.jit.script(net),
        "torch.jit.trace": lambda: torch.jit.trace(net, torch.zeros(3, 1)),
        "lock": lambda: Guarded(net),
        "part of a module": lambda: nn.Sequential(torch.jit.script(net)),
    }


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("train_model", [True, False])
@pytest.mark.parametrize("kind", written(nn.Identity()))
def test_copies_of_networks_that_torch_does_not_copy(kind: str, *, train_model: bool) -> None:
    """Guides have the numbers that they have under the same decoder of plain torch."""
    found = []
    for make in (lambda net: net, lambda net: written(net)[kind]()):
        torch.manual_seed(0)
        decoder = make(nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, FEATURES)))
        model = pv.models.VAE(decoder, pv.likelihoods.Gaussian(), latent_dim=1)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        net = nn.Linear(FEATURES, 2)
        table = pv.compare(
            model, {"encoder": pv.Encoder(net), "global": pv.GlobalParameters()}, data()[:12],
            data()[12:], num_epochs=1, batch_size=6, evaluation=pv.ImportanceSampling(40),
            estimator=pv.ImportanceSampling(40), train_model=train_model, progress=False,
        )  # fmt: skip
        found.append(numbers(table))
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    require_equal(*found)


class Copyable(Guarded):
    """Follows the remedy."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "Copyable":
        return Copyable(copy.deepcopy(self.net, memo), copy.deepcopy(self.lock["inside"], memo))


def test_networks_beside_what_cannot_be_copied_are_not_shared() -> None:
    """The error names the class, and what to write into it."""
    nets = nn.Linear(1, FEATURES), nn.Linear(1, 1)
    with pytest.raises(TypeError, match=r"Guarded cannot be copied .*lock.* method __deepcopy__"):
        Copies((data(),)).of(Guarded(*nets))
    made = Copies((data(),)).of(Copyable(*nets))
    assert not {id(net) for net in (made.net, made.lock["inside"])} & set(map(id, nets))
