"""Exported programs answer as the model and the guide do, for any number of rows, without us."""

import itertools
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.exporting import _cholesky, _cholesky_solve, _functions, _solve_triangular
from pyro_vae.guides.reparameterization import reparameterize
from pyro_vae.likelihoods import Bernoulli, Gaussian
from pyro_vae.models import VAE, ConditionalVAE
from pyro_vae.nets import Concatenated, MLPDecoder, MLPEncoder
from pyro_vae.programs import evaluating

SIZES = (1, 2, 17, 1000)
# Exported files are loaded and run by a process that cannot import this library.
ALONE = """
import sys
sys.modules["pyro_vae"] = sys.modules["pyro"] = None
import torch
folder = sys.argv[1]
inputs = torch.load(folder + "/inputs.pt")
programs = {name: torch.export.load(f"{folder}/exported/{name}.pt2").module() for name in inputs}
answers = {name: [programs[name](*i) for i in inputs[name]] for name in inputs}
torch.save(answers, folder + "/answers.pt")
"""


def conditional() -> tuple[ConditionalVAE, pv.Guide]:
    """A model with covariates, float64, and a guide with correlations."""
    decoder = Concatenated(MLPDecoder(2 + 4, 3, hidden=(5,)))
    model = ConditionalVAE(decoder, Gaussian(), 2, 4).double()
    encoder = pv.Encoder(Concatenated(MLPEncoder(3 + 4, hidden=(5,))))
    return model, pv.Guide(model, encoder, pv.FullRankNormal()).double()


def weighed(guide: pv.Guide, noise: Tensor, *rows: Tensor) -> tuple[Tensor, Tensor]:
    """Log weights, by the library's own densities, of the draws that some noise becomes."""
    with evaluating(guide, guide.model), torch.no_grad():
        z = reparameterize(guide.family(guide.parameters_of(*rows)), noise[None])
        log_q = guide.posterior(*rows).log_prob(z.clone())  # at a point, not of the last draw
        return (guide.program.log_joint(z, *rows) - log_q)[0], z[0]


def terms_of(guide: pv.Guide, noise: Tensor, *rows: Tensor) -> Tensor:
    """The size of the terms of each log weight: abs(log p) + abs(log q)."""
    log_weights, z = weighed(guide, noise, *rows)
    with evaluating(guide, guide.model), torch.no_grad():
        log_q = guide.posterior(*rows).log_prob(z[None].clone())[0]
    return log_q.abs() + (log_weights + log_q).abs()


@pytest.mark.slow
def test_answers_of_another_process_are_ours(tmp_path: Path) -> None:
    """Fresh data, 1 to 1,000 rows: to 1e-6 (here float64: 1e-12), with no pyro_vae to import."""
    model, guide = conditional()
    data = torch.randn(4, 3).double(), torch.ones(4, 4).double()
    pv.export(tmp_path / "exported", model, guide, data, programs=["decoder", "log_weights"])
    fresh = [[torch.randn(size, width).double() for width in (2, 3, 4)] for size in SIZES]
    inputs = {"decoder": [(z, x) for z, _, x in fresh], "log_weights": fresh}
    torch.save(inputs, tmp_path / "inputs.pt")
    subprocess.run([sys.executable, "-c", ALONE, tmp_path], check=True, cwd=tmp_path)
    answers = torch.load(tmp_path / "answers.pt")
    for (noise, y, x), decoded, weights in zip(fresh, *answers.values(), strict=True):
        torch.testing.assert_close(decoded[0], model.decode(noise, x), rtol=0, atol=1e-12)
        torch.testing.assert_close(weights, weighed(guide, noise, y, x), rtol=0, atol=1e-10)
    told = json.loads((tmp_path / "exported" / "export.json").read_text())["programs"]
    assert told["log_weights"]["outputs"] == {
        "log_weights": "float64 (batch)",
        "z": "float64 (batch, 2)",
    }


def branching(y: Tensor) -> None:
    """A program that is another one for more than a hundred rows."""
    loc = 1.0 if len(y) > 100 else 0.0
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(z.sum(-1, keepdim=True) + loc, 1.0).to_event(1), obs=y)


class Noisy(torch.nn.Module):
    """A decoder that draws random numbers, in evaluation mode too."""

    def forward(self, z: Tensor) -> Tensor:
        return z + torch.randn_like(z)


def test_what_cannot_be_right_is_refused(tmp_path: Path) -> None:
    """By its name, with what can be exported; nothing is left behind."""
    y, out = torch.randn(4, 2), tmp_path / "exported"
    model = VAE(torch.nn.Linear(2, 2), Gaussian(), 2)
    table = pv.Guide(model, pv.LocalParameters(4))
    with pytest.raises(ValueError, match=r"it was trained on, and no encoder.*pv.Encoder"):
        pv.export(out, model, table, y)
    with pytest.raises(TypeError, match=r"written by hand.*pv.Guide"):
        pv.export(out, model, lambda y: None, y)
    guide = pv.Guide(branching, pv.Encoder(torch.nn.Linear(1, 4)), example=y[:, :1])
    with pytest.raises(
        ValueError, match=r"cannot export the log_weights: on a batch of 1000 rows.*'encoder'"
    ):
        pv.export(out, branching, guide, y[:, :1], programs=["log_weights"])
    noisy = VAE(Noisy(), Gaussian(), 2)
    guide = pv.Guide(noisy, pv.Encoder(torch.nn.Linear(2, 4)))
    with pytest.raises(
        ValueError, match=r"cannot export the decoder: the program draws random numbers"
    ):
        pv.export(out, noisy, guide, y)
    with pytest.raises(ValueError, match="`programs` must name at least one"):
        pv.export(out, noisy, guide, y, programs=[])
    assert not list(tmp_path.iterdir())


def test_example_inputs_are_made_where_the_model_is() -> None:
    """Not on the default device, where torch itself cannot load a program."""
    model = pv.models.VAE(pv.nets.MLPDecoder(2, 3), pv.likelihoods.Gaussian(0.5), latent_dim=2)
    guide, y = pv.Guide(model, pv.Encoder(pv.nets.MLPEncoder(3))), torch.randn(4, 3)
    with torch.device("meta"):
        found = _functions(model, guide, (y,))
    assert set(found) == {"decoder", "encoder", "mean", "log_weights"}
    places = {part.device for function in found.values() for part in function.inputs.values()}
    assert places == {y.device}


def test_onnx_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is computed."""
    monkeypatch.setitem(sys.modules, "onnx", None)
    model = VAE(torch.nn.Linear(2, 2), Gaussian(), 2)
    with pytest.raises(ImportError, match=r"pip install 'pyro-vae\[onnx\]'"):
        pv.export(tmp_path / "e", model, lambda y: None, torch.ones(2, 2), formats=[pv.ONNX()])


@pytest.mark.slow
@pytest.mark.skipif(find_spec("onnxruntime") is None, reason="needs pyro-vae[onnx]")
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-7)], ids=str
)
def test_onnx_answers_are_ours(tmp_path: Path, dtype: torch.dtype, tolerance: float) -> None:
    """Mixed columns with holes, further tensors and discrete data, 1 to 1,000 rows, to rounding.

    A log weight is log p - log q, and rounded as its terms are, so that the tolerance is a share of
    them; our own float32 is as far from float64. ONNX keeps plain numbers in float32 there.
    """
    import onnxruntime

    frame = {
        "number": [0.5, None, 2.5, -1.3, 0.0, 3.0] * 5,
        "word": ["a", "b", "c", "a", None, "b"] * 5,
        "count": [0, 3, 2, 9, 1, 4] * 5,
    }
    vae = pv.TableVAE.of(pv.data.from_frame(frame))
    rows = vae.rows(frame).to(dtype)
    vae.model.to(dtype)
    vae.guide.to(dtype)
    pv.export(tmp_path / "e", vae.model, vae.guide, rows, formats=[pv.ONNX()])
    for size in SIZES:
        y, noise = (
            rows[torch.randint(30, (size,))],
            torch.randn(size, vae.model.latent_dim).to(dtype),
        )
        answers = {}
        for name, given in {"mean": (y,), "decoder": (noise,), "log_weights": (noise, y)}.items():
            session = onnxruntime.InferenceSession(tmp_path / "e" / f"{name}.onnx")
            names = [part.name for part in session.get_inputs()]
            inputs = {n: part.numpy() for n, part in zip(names, given, strict=True)}
            answers[name] = [torch.from_numpy(part) for part in session.run(None, inputs)]
        expected = {
            "mean": (vae.guide.mean(y),),
            "decoder": (vae.model.decode(noise),),
            "log_weights": weighed(vae.guide, noise, y),
        }
        terms: Tensor = terms_of(vae.guide, noise, y)
        for name, parts in expected.items():
            for found, part in zip(answers[name], parts, strict=True):
                is_weight = name == "log_weights" and part.dim() == 1
                bound = tolerance * (1 + (terms if is_weight else part.abs()))
                assert bool(((found - part).abs() <= bound).all()), name


def test_binary_data_and_a_prototype_of_one_row(tmp_path: Path) -> None:
    """Discrete outputs: the decoder gives means, the weights densities of zeros and ones."""
    model = VAE(MLPDecoder(2, 3, hidden=(4,)), Bernoulli(), 2)
    guide = pv.Guide(model, pv.Encoder(MLPEncoder(3, hidden=(4,))))
    pv.export(tmp_path / "e", model, guide, torch.ones(1, 3), programs=["log_weights"])
    program = torch.export.load(tmp_path / "e" / "log_weights.pt2").module()
    y, noise = torch.bernoulli(torch.full((9, 3), 0.5)), torch.randn(9, 2)
    torch.testing.assert_close(program(noise, y), weighed(guide, noise, y), rtol=0, atol=1e-6)


def test_factorizations_for_onnx_are_those_of_torch() -> None:
    """Cholesky factors, and solutions with all kinds of triangular matrices; not of another one."""
    a, b = torch.randn(7, 5, 5).double(), torch.randn(7, 5, 3).double()
    a = a @ a.mT + torch.eye(5)
    factor = torch.linalg.cholesky(a)
    torch.testing.assert_close(_cholesky(a)[0], factor)
    torch.testing.assert_close(_cholesky(a, upper=True)[0], factor.mT)
    for upper, left, unit in itertools.product([False, True], repeat=3):
        triangle, y = factor.mT if upper else factor, b if left else b.mT
        how = {"upper": upper, "left": left, "unitriangular": unit}
        expected = torch.linalg.solve_triangular(triangle, y, **how)
        torch.testing.assert_close(_solve_triangular(triangle, y, **how), expected)
        twin = _solve_triangular(triangle, y, **how | {"unitriangular": not unit})
        assert float((twin - expected).abs().max()) > 0.01
    solution = torch.linalg.solve(a, b)
    torch.testing.assert_close(_cholesky_solve(b, factor), solution)
    torch.testing.assert_close(_cholesky_solve(b, factor.mT, upper=True), solution)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a full device is one of Linux")
def test_a_full_disk_is_an_error_and_not_the_end() -> None:
    """Torch's own writer ends the whole process there."""
    with pyro.settings.context(**pyro.settings.get()):  # torch 2.4 leaves its validation off
        program = torch.export.export(torch.nn.Linear(2, 2), (torch.ones(3, 2),))
    with pytest.raises(OSError, match="No space left"):
        pv.TorchExport().write(program, Path("/dev/full"))
