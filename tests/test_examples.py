"""Every example runs, at small size, and draws its figure; every benchmark runs."""

import runpy
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SCRIPT = ROOT / "examples" / "quickstart.py"  # run as a process of its own
BENCHMARKS = sorted(set((ROOT / "benchmarks").glob("*.py")) - {ROOT / "benchmarks" / "run.py"})


def test_there_are_examples() -> None:
    """An empty list below would pass in silence."""
    assert EXAMPLES
    assert BENCHMARKS


@pytest.fixture
def default_dtype() -> Iterator[None]:
    """An example may choose the dtype for its process, which is that of all other tests here."""
    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)


@pytest.mark.usefixtures("default_dtype", "user_param_store")
@pytest.mark.parametrize(
    "example", sorted(set(EXAMPLES) - {SCRIPT}), ids=lambda example: example.stem
)
def test_example(example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends well and leaves a picture in the folder; run here, which saves 5 s of imports."""
    monkeypatch.chdir(tmp_path)  # a figure that ignores --out must not land in the repository
    monkeypatch.setattr(sys, "argv", [str(example), "--smoke", "--out", "out"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tiny sizes give numbers that cannot be trusted
        runpy.run_path(str(example), run_name="__main__")
    assert list(tmp_path.glob("out/**/*.png")), "no .png was written"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_example_is_a_script(tmp_path: Path) -> None:
    """`python examples/quickstart.py --smoke --out FOLDER`, as people run it."""
    command: list[str | Path] = [sys.executable, SCRIPT, "--smoke", "--out", tmp_path]
    subprocess.run(command, check=True, cwd=tmp_path, stdin=subprocess.DEVNULL)
    assert list(tmp_path.rglob("*.png"))


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda benchmark: benchmark.stem)
@pytest.mark.slow
def test_benchmark(benchmark: Path, tmp_path: Path) -> None:
    """`python benchmarks/NAME.py --smoke` ends well and prints what it compares, untimed."""
    done = subprocess.run(
        [sys.executable, benchmark, "--smoke"],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}{done.stderr}"
    words = ("times", "epochs", "library /", "per row", "efficiency")
    assert any(word in done.stdout for word in words), done.stdout
