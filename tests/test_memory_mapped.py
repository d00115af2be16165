"""Rows on disk: trained on as rows in memory are, checked, and never all in memory at once."""

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.data import OnDisk, RowReader
from pyro_vae.data.streams import chunks

ROWS = torch.arange(200.0).reshape(100, 2) / 100


def on_disk(path: Path, values: np.ndarray) -> np.ndarray:
    """An array that was written to a file and mapped from it."""
    np.save(path, values)
    mapped: np.ndarray = np.load(path, mmap_mode="r")
    return mapped


def trained(data: object, make_map: object = None) -> tuple[Tensor, float]:
    """The decoder's last weights and the last ELBO after three epochs on these data."""
    torch.manual_seed(0)
    model = pv.models.VAE(pv.nets.MLPDecoder(1, 2, (4,)), pv.likelihoods.Gaussian(), 1)
    guide = pv.Guide(model, pv.Encoder(pv.nets.MLPEncoder(2, (4,))))
    result = pv.fit(model, guide, data, num_epochs=3, batch_size=32, progress=False)  # type: ignore[arg-type]
    weights = torch.cat([part.detach().flatten() for part in model.parameters()])
    return weights, float(result.history.elbo[-1])


class Squares:
    """A reader that somebody wrote: rows that are made up when they are asked for."""

    def __len__(self) -> int:
        return len(ROWS)

    def read(self, rows: Tensor) -> tuple[Tensor, ...]:
        return (ROWS[rows],)


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8"])
def test_a_memory_map_trains_as_the_tensor_does(tmp_path: Path, dtype: str) -> None:
    """The same numbers to the last bit, whatever dtype and byte order they are stored in."""
    expected, elbo = trained(ROWS)
    mapped = on_disk(tmp_path / "y.npy", ROWS.numpy().astype(dtype))
    weights, mapped_elbo = trained(mapped)
    assert torch.equal(weights, expected)
    assert mapped_elbo == elbo


def test_other_readers_train_as_the_tensor_does(tmp_path: Path) -> None:
    """A dataset of h5py, which takes increasing positions only, and a reader of one's own."""
    expected, _ = trained(ROWS)
    with h5py.File(tmp_path / "y.h5", "w") as file:
        dataset = file.create_dataset("y", data=ROWS.numpy())
        weights, _ = trained(OnDisk(dataset))
    assert torch.equal(weights, expected)
    assert isinstance(Squares(), RowReader)
    assert torch.equal(trained(Squares())[0], expected)


def test_rows_come_in_the_order_asked_for(tmp_path: Path) -> None:
    """Of every array the same rows; bytes become floats, labels stay whole numbers."""
    pixels = on_disk(tmp_path / "y.npy", np.arange(20, dtype=np.uint8).reshape(10, 2))
    labels = on_disk(tmp_path / "labels.npy", np.arange(10, dtype=np.uint16))
    rows = torch.tensor([7, 2, 9])
    y, classes = OnDisk(pixels, labels, transform=lambda y: y / 2).read(rows)
    assert torch.equal(y, torch.tensor([[7.0, 7.5], [2.0, 2.5], [9.0, 9.5]]))
    assert torch.equal(classes, rows)


def test_chunks_are_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row once, in order; and evidence by chunk is evidence of the whole."""
    monkeypatch.setattr("pyro_vae.data.streams.CHUNK", 60)
    pieces = [y for (y,) in chunks(OnDisk(ROWS.numpy()))]
    assert [len(piece) for piece in pieces] == [30, 30, 30, 10]
    assert torch.equal(torch.cat(pieces), ROWS)


def test_bad_rows_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The piece, and the place in it."""
    monkeypatch.setattr("pyro_vae.data.streams.CHUNK", 60)
    values = ROWS.numpy().copy()
    values[64, 1] = np.inf
    where = r"in rows 60 to 89 \(add 60 to the row numbers below\)"
    message = rf"{where}: .* 1 inf among .* at row 4, column 1"
    with pytest.raises(ValueError, match=message):
        trained(on_disk(tmp_path / "y.npy", values))


def test_a_constant_piece_is_no_news(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A column that is constant over a piece only: nothing is said (warnings are errors here)."""
    monkeypatch.setattr("pyro_vae.data.streams.CHUNK", 60)
    values = ROWS.numpy().copy()
    values[:30] = 1.0
    trained(on_disk(tmp_path / "y.npy", values))


@pytest.mark.parametrize(
    ("arrays", "error", "message"),
    [
        ((np.zeros((3, 2)), np.zeros(4)), ValueError, r"same number of rows.* got \[3, 4\]"),
        ((np.zeros((0, 2)),), ValueError, r"at least one; got \[0\]"),
        ((), ValueError, r"at least one; got \[\]"),
        ((np.array(["a"]),), TypeError, "array 0 must hold real numbers; got dtype <U1"),
    ],
)
def test_arrays_that_are_refused(
    arrays: tuple[np.ndarray, ...], error: type[Exception], message: str
) -> None:
    """With what was expected and what came."""
    with pytest.raises(error, match=message):
        OnDisk(*arrays)


@pytest.mark.parametrize("rows", [[[1.0, 2.0], [3.0, 4.0]], torch.tensor([[1.0, 2.0], [3.0, 4.0]])])
def test_rows_that_are_no_array_are_converted_as_the_refusal_says(
    rows: list[list[float]] | torch.Tensor,
) -> None:
    """A list had no dtype, and NumPy does not know the dtype of a tensor."""
    with pytest.raises(TypeError, match=r"array 0 must be an array of NumPy.* as in np\.asarray\("):
        OnDisk(rows)
    (y,) = OnDisk(np.asarray(rows)).read(torch.tensor([1]))
    assert y.tolist() == [[3.0, 4.0]]


def test_free_parameters_need_rows_in_memory(tmp_path: Path) -> None:
    """A table belongs to rows by their content."""
    model = pv.models.VAE(pv.nets.MLPDecoder(1, 2, (4,)), pv.likelihoods.Gaussian(), 1)
    guide = pv.Guide(model, pv.LocalParameters(100))
    mapped = on_disk(tmp_path / "y.npy", ROWS.numpy())
    with pytest.raises(ValueError, match="must be in memory: pass tensors, or"):
        pv.fit(model, guide, mapped, progress=False)


SCRIPT = """
import resource, sys
import numpy as np, torch
import pyro_vae as pv

path, how = sys.argv[1:]
torch.set_num_threads(1)
model = pv.models.VAE(pv.nets.MLPDecoder(1, 1024, (4,)), pv.likelihoods.Gaussian(), 1)
guide = pv.Guide(model, pv.Encoder(pv.nets.MLPEncoder(1024, (4,))))
used = next(int(line.split()[1]) for line in open("/proc/self/status") if "VmData" in line)
limit = 1024 * used + 160 * 2**20  # what a process may have besides files that it only maps
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
data = np.load(path, mmap_mode="r")
if how == "memory":
    data = torch.from_numpy(np.array(data))
pv.fit(model, guide, data, num_epochs=1, batch_size=512, progress=False)
print("trained on", data.nbytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is one of Linux")
@pytest.mark.parametrize("how", ["disk", "memory"])
@pytest.mark.slow
def test_larger_than_memory(tmp_path: Path, how: str) -> None:
    """With room for 160 MiB, 256 MiB on disk are trained on; in memory they are too many."""
    path = tmp_path / "y.npy"
    out, error = outcome(SCRIPT, path, (2**16, 1024), how)
    if how == "disk":
        assert f"trained on {2**28}" in out, error
    else:
        assert "MemoryError" in error


def outcome(script: str, path: Path, shape: tuple[int, int], how: str) -> tuple[str, str]:
    """What a process says that is given a file of zeros, of which nothing is stored."""
    np.lib.format.open_memmap(path, "w+", np.float32, shape)
    done = subprocess.run(
        [sys.executable, "-c", script, str(path), how], capture_output=True, text=True, check=False
    )
    return done.stdout, done.stderr


QUESTIONS = """
import functools, resource, sys, warnings
import numpy as np, pyro, torch
import pyro_vae as pv

warnings.simplefilter("ignore")  # few draws are not to be trusted
path, how = sys.argv[1:]
torch.set_num_threads(1)

class Regression(pyro.nn.PyroModule):
    def forward(self, y, x):
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", pyro.distributions.Normal(0.0, 1.0))
            mean = z[..., None] + x[..., :2]
            pyro.sample("y", pyro.distributions.Normal(mean, 1.0).to_event(1), obs=y)

model, x, y = Regression(), np.load(path, mmap_mode="r"), torch.randn(256, 2)
guide = pv.Guide(model, pv.GlobalParameters(), example=(y[:2], torch.zeros(2, 2)))
draws = functools.partial(pv.ImportanceSampling, 4, memory=16, compile=False)
pv.gaps.ImportanceSampling = lambda number: draws()  # budgets that suit a file of this size
fitted = pv.evidence.fitted
fitted.rows_at_once = functools.partial(fitted.rows_at_once, memory=16.0)
few = pv.FitRows(num_particles=4, max_steps=3, max_rows=8, compile=False)
asked = functools.partial(pv.inference_gap, estimator=draws(), fitting=few, num_samples=4)
small = asked(model, guide, (y[:4], x[:4]))  # imports take memory too
used = next(int(line.split()[1]) for line in open("/proc/self/status") if "VmData" in line)
limit = 1024 * used + 200 * 2**20
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
data = (y, torch.from_numpy(np.array(x)) if how == "memory" else x)
pv.evaluate(model, guide, data, draws())
gap = asked(model, guide, data)
assert len(gap) == 256 and torch.allclose(gap.elbo.value[:4], small.elbo.value)
print("asked of", x.nbytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is one of Linux")
@pytest.mark.parametrize("how", ["disk", "memory"])
@pytest.mark.slow
def test_questions_of_what_is_larger_than_memory(tmp_path: Path, how: str) -> None:
    """With room for 200 MiB, 256 MiB on disk are evaluated and get gaps, row by row as alone."""
    out, error = outcome(QUESTIONS, tmp_path / "x.npy", (256, 2**18), how)
    if how == "disk":
        assert f"asked of {2**28}" in out, error
    else:
        assert "MemoryError" in error
