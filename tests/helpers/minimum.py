"""The minimum in an environment that has the wheel alone: import, fit, evaluate, save, load.

Run as a script by `make release`; an argument says which extras are there. Then every optional
package is missing in turn: what needs it says so, with the line that installs its extra. Some come
with ArviZ 0.23, also without extras, so a package that is there is hidden from Python's imports.
"""

import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

import pyro_vae as pv
from pyro_vae._types import EXTRAS, install_line
from pyro_vae.comparisons import Comparison

Call = Callable[[Path, Comparison], object]


def works() -> Comparison:
    """What needs no extra; a comparison, for calls that need one."""
    y = torch.randn(40, 3)
    model = pv.models.VAE(pv.nets.MLPDecoder(2, 3), pv.likelihoods.Gaussian(), latent_dim=2)
    guide = pv.Guide(model, pv.Encoder(pv.nets.MLPEncoder(3)))
    pv.fit(model, guide, y, num_epochs=1, progress=False)
    before = pv.log_marginal_likelihood(model, guide, y[:5], pv.Quadrature(), progress=False)
    with tempfile.TemporaryDirectory() as folder:
        pv.save(f"{folder}/vae", model=model, guide=guide)
        model, guide = pv.load(f"{folder}/vae")
    after = pv.log_marginal_likelihood(model, guide, y[:5], pv.Quadrature(), progress=False)
    assert torch.equal(before.value, after.value)
    print(after.summary())
    maps = {"amortized": pv.Encoder(pv.nets.MLPEncoder(3)), "global": pv.GlobalParameters()}
    table = pv.compare(model, maps, y, y[:5], num_epochs=1, progress=False)
    print(table.verdict)
    return table


def _export(folder: Path, table: Comparison) -> None:
    result = table.results["amortized"]
    pv.export(
        folder / "exported", result.model, result.guide, torch.randn(4, 3), programs=["mean"],
        formats=[pv.ONNX()],
    )  # fmt: skip


def _read_parquet(folder: Path, _: Comparison) -> None:
    path = folder / "y.parquet"
    path.touch()
    if find_spec("pyarrow"):
        import pandas as pd

        pd.DataFrame({"a": [1.0, 2.0]}).to_parquet(path)
    pv.data.read_table(path)


def _read_h5ad(folder: Path, _: Comparison) -> None:
    path = folder / "y.h5ad"
    path.touch()
    if find_spec("h5py"):
        import h5py

        with h5py.File(path, "w") as file:
            file["X"] = [[1.0], [2.0]]
            file["var/name"] = ["a"]
            file["var"].attrs["_index"] = "name"
    pv.data.read_table(path)


CALLS: dict[str, Call] = {
    "matplotlib": lambda _, table: table.plot(),
    "h5netcdf": lambda folder, table: table.save(folder / "results"),
    "pandas": lambda _, table: table.to_dataframe(),
    "pyarrow": _read_parquet,
    "h5py": _read_h5ad,
    "sklearn": lambda *_: pv.data.digits(),
    **dict.fromkeys(("onnx", "onnxruntime", "onnxscript"), _export),
}
"""A call that needs each optional package."""


@contextmanager
def missing(package: str) -> Iterator[None]:
    """Makes every import of a package fail, as if it was not installed."""
    hidden = {name for name in sys.modules if f"{name}.".startswith(f"{package}.")}
    kept = {name: sys.modules.pop(name) for name in hidden}
    blocked: dict[str, Any] = sys.modules
    blocked[package] = None
    try:
        yield
    finally:
        del blocked[package]
        sys.modules.update(kept)


def said_by(call: Call, table: Comparison) -> str:
    """What a call says of a package that is missing, as an error or a warning."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            call(Path(folder), table)
        except ImportError as error:
            return str(error)
    return " ".join(str(one.message) for one in warned if "pip install" in str(one.message))


def check(package: str, table: Comparison) -> None:
    """Asserts that without a package the line that installs it is named."""
    with missing(package):
        said = said_by(CALLS[package], table)
    print(f"without {package}: {said or 'nothing is said'}")
    assert install_line(package) in said


def main() -> None:
    """Tries what works, and then every package: missing, and, with all extras, there."""
    assert set(CALLS) == set(EXTRAS)
    table = works()
    for package in CALLS:
        check(package, table)
        if "[all,onnx]" in sys.argv:
            assert said_by(CALLS[package], table) == "", f"{package} is there, and yet missing"


if __name__ == "__main__":
    main()
