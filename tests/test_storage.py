"""Saved models come back to the last bit, be they made of our classes or of a user's."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer import SVI, Trace_ELBO
from pyro.nn import PyroModule
from pyro.optim import Adam  # type: ignore[attr-defined] # made when it is imported
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.likelihoods import (
    Bernoulli,
    DecodedSigma,
    FixedSigma,
    Gaussian,
    LearnedSigma,
    Likelihood,
)
from pyro_vae.models import VAE
from pyro_vae.nets import ConvDecoder, ConvEncoder, MLPDecoder, MLPEncoder
from pyro_vae.storage import load, save
from pyro_vae.storage.folders import read_about
from tests.helpers.saving import (
    LATENTS,
    NUM_DATA,
    SHAPE,
    assert_same,
    assert_same_state,
    images,
    perturb,
    plain_guide,
    plain_model,
)

DECODERS: dict[str, Callable[[int], nn.Module]] = {
    "MLP": lambda outputs: MLPDecoder(LATENTS, SHAPE, (4,), outputs=outputs, activation=nn.Tanh),
    "conv": lambda outputs: ConvDecoder(LATENTS, SHAPE, (4, 3), outputs=outputs),
    "layers": lambda outputs: nn.Sequential(
        nn.Linear(LATENTS, 8, bias=False),
        nn.LayerNorm(8, eps=1e-3),
        nn.LeakyReLU(0.2),
        nn.Unflatten(1, (2, 2, 2)),
        nn.ConvTranspose2d(2, outputs, kernel_size=(3, 3), stride=2),
    ),
}
LIKELIHOODS: dict[str, Callable[[], Likelihood]] = {
    "Bernoulli": Bernoulli,
    "fixed sigma": lambda: Gaussian(FixedSigma(0.3)),
    "one learned sigma": lambda: Gaussian(LearnedSigma(initial=0.5, floor=0.03)),
    "a sigma a pixel": lambda: Gaussian(LearnedSigma(SHAPE)),
    "decoded sigma": lambda: Gaussian(DecodedSigma(floor=0.2)),
}
MAPS: dict[str, Callable[[], pv.InferenceMap]] = {
    "encoder": lambda: pv.Encoder(MLPEncoder(25, hidden=(4, 3), activation=nn.ReLU)),
    "conv encoder": lambda: pv.Encoder(ConvEncoder(SHAPE, (2,), 3)),
    "layers": lambda: pv.Encoder(
        nn.Sequential(
            nn.Conv2d(1, 2, 3, padding=1),
            nn.BatchNorm2d(2),
            nn.Softplus(beta=2.0),
            nn.Flatten(),
            nn.Sequential(nn.Dropout(0.3), nn.Linear(50, 2 * LATENTS)),
        )
    ),
    "per-datum": lambda: pv.LocalParameters(NUM_DATA, lr=0.07),
    "global": lambda: pv.GlobalParameters(),
}


@pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS)
@pytest.mark.parametrize("likelihood", LIKELIHOODS.values(), ids=LIKELIHOODS)
def test_models_come_back(
    tmp_path: Path, decoder: Callable[[int], nn.Module], likelihood: Callable[[], Likelihood]
) -> None:
    """Every decoder under every likelihood, without an object to fill."""
    chosen = likelihood()
    model = VAE(decoder(chosen.outputs), chosen, LATENTS)
    perturb(model)
    save(tmp_path / "save", model=model)
    again, guide = load(tmp_path / "save")
    assert guide is None
    assert_same_state(model, again)
    z = torch.randn(3, LATENTS)
    assert torch.equal(model.decode(z), again.decode(z))
    assert torch.equal(model.sample(4, seed=1), again.sample(4, seed=1))


@pytest.mark.parametrize("kind", MAPS.values(), ids=MAPS)
def test_guides_come_back_after_training(tmp_path: Path, kind: Callable[[], Any]) -> None:
    """A few steps of training, then the same answers from what was loaded."""
    model, y = plain_model(), images()
    guide = pv.Guide(model, kind())
    pv.fit(model, guide, y, num_epochs=2, batch_size=4, progress=False)
    save(tmp_path / "save", model=model, guide=guide)
    loaded = load(tmp_path / "save")
    assert loaded.guide.model is loaded.model
    assert_same((model, guide), loaded, y)
    pv.fit(*loaded, y, num_epochs=1, progress=False)
    assert not torch.equal(loaded.guide.mean(y), guide.mean(y)), "what is loaded can be trained"


def test_a_table_knows_its_data_and_its_optimizer(tmp_path: Path) -> None:
    """After loading, other data are refused, and the next step is the one it would have been."""
    model, y = plain_model(), images()
    guide = pv.Guide(model, pv.LocalParameters(NUM_DATA, lr=0.07))
    pv.fit(model, guide, y, num_epochs=2, progress=False)
    save(tmp_path / "save", model=model, guide=guide)
    again = load(tmp_path / "save").guide
    with pytest.raises(ValueError, match="must be those that LocalParameters was trained on"):
        again.mean(1 - y)
    assert isinstance(guide.map, pv.LocalParameters)
    assert again.map.lr == guide.map.lr
    assert int(again.map.visits.sum()) == 2 * NUM_DATA
    guide.map.scale_steps(1.0)
    rows, gradient = torch.tensor([1, 4]), torch.randn(2, 2 * LATENTS)
    for table in (guide.map, again.map):
        table.update(rows, gradient)
    assert torch.equal(guide.map.table, again.map.table)


@pytest.mark.usefixtures("float64")
def test_float64_stays_in_a_float32_process(tmp_path: Path) -> None:
    """Tensors come back with the dtype they were saved with, whatever the default is now."""
    model, y = plain_model(), images()
    guide = plain_guide(model)
    save(tmp_path / "save", model=model, guide=guide)
    torch.set_default_dtype(torch.float32)
    loaded = load(tmp_path / "save")
    assert_same((model, guide), loaded, y)
    assert loaded.guide.mean(y).dtype == torch.float64


def test_half_of_a_model_in_another_dtype(tmp_path: Path) -> None:
    """Each tensor has its own dtype: bfloat16 beside float32, int64 counts, empty tensors."""
    counted = nn.BatchNorm1d(3)
    model = VAE(nn.Sequential(nn.Linear(LATENTS, 3), counted), Gaussian(), LATENTS)
    table = pv.LocalParameters(NUM_DATA)
    guide = pv.Guide(model, table)
    table.anchor.data = table.anchor.data.bfloat16()
    counted.register_buffer("num_batches_tracked", torch.tensor(2**40))
    save(tmp_path / "save", model=model, guide=guide)
    again, guide_again = load(tmp_path / "save")
    assert_same_state(model, again)
    assert_same_state(guide, guide_again)
    state = guide_again.state_dict()
    assert state["map.anchor"].dtype == torch.bfloat16
    assert state["map.digests"].shape == (0,)
    assert int(again.decoder[1].num_batches_tracked) == 2**40


def test_modes_and_frozen_parameters_come_back(tmp_path: Path) -> None:
    """What a user froze stays frozen; what was in evaluation mode stays so."""
    model = plain_model()
    guide = plain_guide(model)
    model.decoder.requires_grad_(requires_grad=False)
    guide.map.eval()
    save(tmp_path / "save", model=model, guide=guide)
    again = load(tmp_path / "save")
    assert not any(parameter.requires_grad for parameter in again.model.parameters())
    assert all(parameter.requires_grad for parameter in again.guide.parameters())
    assert_same_state(guide, again.guide)
    assert again.guide.training
    assert not again.guide.map.training


def test_a_loaded_model_is_a_pyro_program(tmp_path: Path, user_param_store: None) -> None:
    """A user's own SVI loop trains what was loaded, every parameter of it."""
    model = plain_model()
    save(tmp_path / "save", model=model, guide=plain_guide(model))
    model, guide = load(tmp_path / "save")
    before = [parameter.clone() for parameter in (*model.parameters(), *guide.parameters())]
    svi = SVI(model, guide, Adam({"lr": 0.1}), Trace_ELBO())
    for _ in range(3):
        svi.step(images())
    after = [*model.parameters(), *guide.parameters()]
    assert all(not torch.equal(old, new) for old, new in zip(before, after, strict=True))


def unchecked(function: Any) -> Any:
    """A public function without the check of its arguments."""
    return function.__wrapped__


def test_the_device_is_the_one_asked_for(tmp_path: Path) -> None:
    """The meta device stands for an accelerator, which a test cannot count on."""
    model = plain_model()
    save(tmp_path / "save", model=model)
    assert {value.device.type for value in load(tmp_path / "save").model.buffers()} == {"cpu"}
    with pytest.raises(ValueError, match=r"device of this machine.*'cpu'"):
        load(tmp_path / "save", device="meta")  # it holds no numbers
    elsewhere = unchecked(load)(tmp_path / "save", device="meta").model
    assert {value.device.type for value in elsewhere.state_dict().values()} == {"meta"}


def test_loading_draws_nothing_from_the_callers_stream(tmp_path: Path) -> None:
    """Neither saving nor loading moves the random stream, though networks are made."""
    model = plain_model()
    guide = plain_guide(model)
    state = torch.get_rng_state()
    save(tmp_path / "save", model=model, guide=guide)
    load(tmp_path / "save")
    assert torch.equal(torch.get_rng_state(), state)


def test_about_and_versions(tmp_path: Path) -> None:
    """What the user noted, and what wrote the file."""
    about: dict[str, Any] = {
        "data": "digits",
        "rows": [1, 2],
        "seed": 0,
        "nested": {"lr": 1e-3},
        "none": None,
    }
    model = plain_model()
    bound = pv.elbo(model, plain_guide(model), torch.zeros(2, 1, 5, 5), 2)
    save(tmp_path / "save", model=model, about={**about, "bound": bound})
    assert read_about(tmp_path / "save") == {**about, "bound": bound.summary()}
    header = json.loads((tmp_path / "save" / "pyro_vae.json").read_text())
    assert (header["format_version"], header["library_version"]) == (1, pv.__version__)


@pytest.mark.parametrize("value", [torch.zeros(2), float("nan"), {1, 2}, object(), "\ud800"])
def test_about_that_is_no_json(tmp_path: Path, value: Any) -> None:
    """The entry is named, and nothing is written."""
    with pytest.raises(ValueError, match=r"cannot write `about\['odd'\]` as JSON"):
        save(tmp_path / "save", model=plain_model(), about={"fine": 1, "odd": value})
    assert not list(tmp_path.iterdir())


# Programs of the user's own: their tensors are saved, their code is not.


class HandDecoder(nn.Module):
    """A network of the user's own."""

    def __init__(self, width: int = 4, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.linear = nn.Linear(LATENTS, width, dtype=dtype)
        self.register_buffer("scale", torch.full((), 3.0, dtype=dtype))

    def forward(self, z: Tensor) -> Tensor:
        """Something that no table of layers has."""
        output: Tensor = self.linear(z).sin() * self.scale
        return output


class HandGuide(PyroModule):
    """A guide of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 2 * LATENTS)

    def forward(self, y: Tensor) -> None:
        """Mean-field, amortized."""
        loc, log_scale = self.net(y).chunk(2, dim=-1)
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def hand_model() -> VAE:
    """A VAE with a network of the user's own."""
    return VAE(HandDecoder(), Gaussian(), LATENTS)


def test_a_hand_written_decoder_and_guide_are_filled(tmp_path: Path) -> None:
    """The same objects, built anew and passed, take the saved tensors."""
    model, guide, y = hand_model(), HandGuide(), torch.randn(5, 4)
    perturb(model, guide)
    save(tmp_path / "save", model=model, guide=guide)
    fresh = (hand_model(), HandGuide())
    loaded = load(tmp_path / "save", model=fresh[0], guide=fresh[1])
    assert loaded.model is fresh[0]
    assert loaded.guide is fresh[1]
    assert_same_state(model, loaded.model)
    assert torch.equal(model.decode(torch.ones(1, LATENTS)), fresh[0].decode(torch.ones(1, 2)))
    assert torch.equal(*(pv.log_weights(*pair, y, num_samples=2) for pair in (fresh, loaded)))
    assert torch.equal(
        pv.log_weights(model, guide, y, num_samples=2),
        pv.log_weights(*loaded, y, num_samples=2),
    )


def test_what_cannot_be_rebuilt_is_named_with_the_remedy(tmp_path: Path) -> None:
    """Which part, why, and how to load it nevertheless."""
    save(tmp_path / "decoder", model=hand_model())
    with pytest.raises(
        ValueError, match=r"model.decoder is a `tests.*HandDecoder`.*load\(folder, m"
    ):
        load(tmp_path / "decoder")
    model = VAE(nn.Linear(LATENTS, 4), Gaussian(), LATENTS)
    save(tmp_path / "guide", model=model, guide=HandGuide())
    with pytest.raises(
        ValueError, match=r"the program is a `tests.*HandGuide`.*load\(folder, guide=guide\)"
    ):
        load(tmp_path / "guide")
    assert_same_state(model, load(tmp_path / "guide", guide=HandGuide()).model)


def test_our_guide_for_a_hand_written_model_is_rebuilt_for_it(tmp_path: Path) -> None:
    """The guide's map and family are in the file; the model is given."""
    model, y = hand_model(), torch.randn(NUM_DATA, 4)
    guide = pv.Guide(model, pv.Encoder(MLPEncoder(4)))
    save(tmp_path / "save", model=model, guide=guide)
    fresh = hand_model()
    loaded = load(tmp_path / "save", model=fresh)
    assert loaded.guide.model is fresh
    assert_same((model, guide), loaded, y)


def function_model(decoder: nn.Module) -> Callable[[Tensor], None]:
    """A program that is a function, and closes over its network."""

    def model(y: Tensor) -> None:
        with pyro.plate("rows", len(y)):
            z = pyro.sample("z", dist.Normal(torch.zeros(LATENTS), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(decoder(z), 1.0).to_event(1), obs=y)

    return model


def test_a_function_is_filled_through_the_modules_it_closes_over(tmp_path: Path) -> None:
    """A Pyro program need not be a module; a guide for it brings the model along."""
    decoders, y = (HandDecoder(), HandDecoder()), torch.randn(NUM_DATA, 4)
    models = [function_model(decoder) for decoder in decoders]
    guides = [pv.Guide(m, pv.LocalParameters(NUM_DATA), example=y[:1]) for m in models]
    pv.fit(models[0], guides[0], y, num_epochs=1, progress=False)
    save(tmp_path / "save", model=models[0], guide=guides[0])
    with pytest.raises(ValueError, match=r"the function `tests.test_storage.function_model"):
        load(tmp_path / "save")
    with pytest.raises(ValueError, match=r"example=y\[:2\]\); or build the guide yourself"):
        load(tmp_path / "save", model=models[1])
    loaded = load(tmp_path / "save", guide=guides[1])
    assert loaded.model is models[1]
    assert_same_state(*decoders)
    assert torch.equal(guides[0].mean(y), guides[1].mean(y))


def by_store(y: Tensor) -> None:
    """A model without parameters."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def scaled_by(constraint: constraints.Constraint) -> Callable[[Tensor], None]:
    """A guide with a vector of two numbers in Pyro's store; their mean is a scale."""

    def guide(y: Tensor) -> None:
        scale = pyro.param("scale", torch.tensor([0.3, 0.7]), constraint=constraint)
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(0.4 * y, scale.mean()))

    return guide


CONSTRAINTS = {
    "real": constraints.real,
    "positive": constraints.positive,
    "simplex": constraints.simplex,
    "bounds": constraints.interval(0.1, 0.9),
    "one bound": constraints.greater_than(-1.0),
    "dependent numbers": constraints.independent(constraints.less_than(2.0), 1),
}


@pytest.mark.usefixtures("user_param_store")
@pytest.mark.parametrize("constraint", CONSTRAINTS.values(), ids=CONSTRAINTS)
def test_parameters_of_the_store_are_saved(
    constraint: constraints.Constraint, tmp_path: Path
) -> None:
    """They come back to the last bit, also over initial values, and keep their constraint."""
    guide, y = scaled_by(constraint), torch.tensor([1.0, -2.0])
    guide(y)
    unconstrained = dict(pyro.get_param_store().named_parameters())["scale"]
    with torch.no_grad():
        unconstrained.add_(0.1)
    before = pv.elbo(by_store, guide, y).elbo.value
    save(tmp_path / "m", model=by_store, guide=guide)
    pyro.clear_param_store()
    guide(y)  # as a program does that is run before it is loaded
    again = load(tmp_path / "m", model=by_store, guide=guide)
    assert torch.equal(pv.elbo(again.model, again.guide, y).elbo.value, before)
    store = pyro.get_param_store()
    assert torch.equal(dict(store.named_parameters())["scale"], unconstrained)
    assert str(store.get_state()["constraints"]["scale"]) == str(constraint)


@pytest.mark.usefixtures("user_param_store")
def test_a_parameter_with_an_unknown_constraint_is_saved_by_pyro(tmp_path: Path) -> None:
    """The remedy of the warning brings it back."""
    parts = [constraints.positive, constraints.real]
    guide, y = scaled_by(constraints.stack(parts, dim=0)), torch.tensor([1.0, -2.0])
    guide(y)
    with torch.no_grad():
        dict(pyro.get_param_store().named_parameters())["scale"].add_(0.1)
    before = pv.elbo(by_store, guide, y).elbo.value
    with pytest.warns(UserWarning, match=r"^'scale' in Pyro's store cannot be saved.*\.save\("):
        save(tmp_path / "m", model=by_store, guide=guide)
    pyro.get_param_store().save(str(tmp_path / "parameters.pt"))
    pyro.clear_param_store()
    again = load(tmp_path / "m", model=by_store, guide=guide)
    pyro.get_param_store().load(str(tmp_path / "parameters.pt"))
    assert torch.equal(pv.elbo(again.model, again.guide, y).elbo.value, before)


@pytest.mark.usefixtures("user_param_store")
@pytest.mark.parametrize(
    "rule", [None, {"name": "os"}, {"name": "interval", "bounds": [0.0]}, {"name": "independent"}]
)
def test_a_damaged_constraint_is_refused(rule: Any, tmp_path: Path) -> None:
    """Before anything is filled in."""
    guide = scaled_by(constraints.positive)
    guide(torch.zeros(2))
    save(tmp_path / "m", model=by_store, guide=guide)
    header = json.loads((tmp_path / "m" / "pyro_vae.json").read_text())
    header["store"]["constraints"]["scale"] = rule
    (tmp_path / "m" / "pyro_vae.json").write_text(json.dumps(header))
    with pytest.raises(ValueError, match=r'entry "store" of .* is damaged \(.*no constraint'):
        load(tmp_path / "m", model=by_store, guide=guide)


@pytest.mark.usefixtures("user_param_store")
def test_the_store_of_others_is_not_saved(tmp_path: Path) -> None:
    """Programs of the library keep all parameters in modules."""
    pyro.param("others", torch.zeros(1))
    save(tmp_path / "m", model=plain_model())
    assert not (tmp_path / "m" / "store.safetensors").exists()


def test_a_function_with_a_loose_parameter_is_refused(tmp_path: Path) -> None:
    """`fit` would train such a tensor; a save without it would be silently wrong."""
    weight = torch.ones(LATENTS, requires_grad=True)

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z * weight.sum(), 1.0), obs=y)

    with pytest.raises(
        ValueError, match=r"uses trainable tensors outside of modules, \['weight'\]"
    ):
        save(tmp_path / "save", model=model)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda: VAE(HandDecoder(5), Gaussian(), LATENTS), r"weight \(\(4, 2\) float32 in the fil"),
        (lambda: VAE(HandDecoder(4, torch.float64), Gaussian(), LATENTS), r"float64 here\)"),
        (
            lambda: VAE(nn.Linear(LATENTS, 4), Gaussian(), LATENTS),
            "missing from the file: decoder.w",
        ),
        (
            lambda: VAE(nn.Linear(LATENTS, 4), Gaussian(), LATENTS),
            r"unexpected .*: decoder\.linear\.bias, decoder\.linear\.weight, decoder\.scale\)",
        ),
    ],
)
def test_an_object_that_does_not_fit(
    tmp_path: Path, given: Callable[[], VAE], message: str
) -> None:
    """Missing, unexpected and mismatched tensors are listed; the object is left as it was."""
    save(tmp_path / "save", model=hand_model())
    target = given()
    before = {name: value.clone() for name, value in target.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "save", model=target)
    assert all(torch.equal(before[name], value) for name, value in target.state_dict().items())


def test_a_guide_that_was_not_saved_or_not_for_this_model(tmp_path: Path) -> None:
    """Pairs that do not belong together are refused on either side."""
    model = plain_model()
    save(tmp_path / "save", model=model)
    with pytest.raises(ValueError, match="holds a model but no guide"):
        load(tmp_path / "save", guide=plain_guide(model))
    with pytest.raises(ValueError, match=r"pass model=guide\.model"):
        save(tmp_path / "other", model=plain_model(), guide=plain_guide(model))


def changed_layer() -> nn.Module:
    """A ready-made network, one of whose activations was exchanged."""
    decoder = MLPDecoder(LATENTS, SHAPE, hidden=(4,))
    decoder.layers[1] = nn.ReLU()
    return decoder


def parametrized_layer() -> nn.Module:
    """A ready-made network with an added parametrization."""
    decoder = MLPDecoder(LATENTS, SHAPE, hidden=(4,))
    nn.utils.parametrizations.weight_norm(decoder.layers[0])
    return decoder


def tied_layers() -> nn.Module:
    """A layer that stands twice in a network."""
    layer = nn.Linear(LATENTS, LATENTS)
    return nn.Sequential(layer, nn.Tanh(), layer)


def unlisted_activation() -> nn.Module:
    """A ready-made network with an activation that is not in the table."""
    return MLPDecoder(LATENTS, SHAPE, activation=nn.Mish)


@pytest.mark.parametrize(
    ("decoder", "reason"),
    [
        (changed_layer, "but its layers or tensors were changed later"),
        (parametrized_layer, "but its layers or tensors were changed later"),
        (tied_layers, r"'model.decoder.2.weight' is shared with 'model.decoder.0.weight'"),
        (unlisted_activation, "model.decoder.activation is the class `torch.*Mish`"),
    ],
)
def test_a_network_that_is_not_what_its_record_says(
    tmp_path: Path, decoder: Callable[[], nn.Module], reason: str
) -> None:
    """It would come back as another network: it is not rebuilt, but can be filled."""
    model = VAE(decoder(), Bernoulli(), LATENTS)
    perturb(model)
    save(tmp_path / "save", model=model)
    with pytest.raises(ValueError, match=reason):
        load(tmp_path / "save")
    filled = load(tmp_path / "save", model=VAE(decoder(), Bernoulli(), LATENTS)).model
    z = torch.ones(1, LATENTS)
    assert torch.equal(model.decode(z), filled.decode(z))


def test_subclasses_are_not_taken_for_their_base(tmp_path: Path) -> None:
    """A user's subclass may answer otherwise: its code is not in the file."""

    class Mine(VAE):
        """A model of the user's own."""

    save(tmp_path / "save", model=Mine(nn.Linear(LATENTS, 3), Bernoulli(), LATENTS))
    with pytest.raises(ValueError, match=r"model is a `tests.*Mine`"):
        load(tmp_path / "save")


def test_the_card_says_what_the_model_is_for_people(tmp_path: Path) -> None:
    """Columns with their scales, how training went, and notes; no name of a column is markup."""
    frame = {"<b>age|y</b>": [31.5, 47.0, None, 22.0, 60.5], "sex": ["f", "m", "m", "f", "f"]}
    vae = pv.TableVAE.of(pv.data.from_frame(frame))
    vae.fit(num_epochs=1, progress=False)
    vae.save(tmp_path / "save", {"ethics": "simulated,\nnobody is in it"})
    text = (tmp_path / "save" / "README.md").read_text()
    column = vae.units.to_json()["columns"][0]
    numbers = f"{column['center']:.6g} | {column['scale']:.6g}"
    assert text.startswith(
        f"# VAE\n\nSaved by pyro_vae {pv.__version__}; load the folder with `pv.TableVAE"
    )
    assert f"| &lt;b&gt;age\\|y&lt;/b&gt; | Real | {numbers} |  |" in text
    assert "| sex | Binary |  |  | f, m |" in text
    assert "The encoder has seen missing entries." in text
    assert "- **likelihood**: Mixed, of Gaussian (1), Bernoulli (1)\n" in text
    assert "- **map**: ProductOfExperts\n- **family**: FullRankNormal\n" in text
    assert f"- **converged**: {vae.history.promise}" in text if vae.history else False
    assert "- **ethics**: simulated, nobody is in it\n" in text
    assert "digests" not in text  # of rows: no reader wants them
    again = pv.TableVAE.load(tmp_path / "save")
    pd.testing.assert_frame_equal(again.embed(frame), vae.embed(frame))


def test_a_card_changes_nothing_that_is_loaded(tmp_path: Path) -> None:
    """It is for people: a save without one, or with another text there, loads the same."""
    model = plain_model()
    save(tmp_path / "save", model=model)
    (tmp_path / "save" / "README.md").write_text("another text")
    one = load(tmp_path / "save").model.state_dict()
    (tmp_path / "save" / "README.md").unlink()
    other = load(tmp_path / "save").model.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in model.state_dict())
    save(tmp_path / "save", model=model)  # replaced, as any save of ours
