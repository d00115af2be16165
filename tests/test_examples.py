"""Every example runs, at small size, and draws its figure; every benchmark runs."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
BENCHMARKS = sorted(set((ROOT / "benchmarks").glob("*.py")) - {ROOT / "benchmarks" / "run.py"})


def test_there_are_examples() -> None:
    """An empty list below would pass in silence."""
    assert EXAMPLES
    assert BENCHMARKS


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_example(example: Path, tmp_path: Path) -> None:
    """`python examples/NAME.py --smoke --out FOLDER` ends well and leaves a picture in FOLDER."""
    done = subprocess.run(
        [sys.executable, example, "--smoke", "--out", tmp_path],
        cwd=tmp_path,  # a figure that ignores --out must not land in the repository
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}{done.stderr}"
    assert list(tmp_path.rglob("*.png")), f"no .png was written\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda benchmark: benchmark.stem)
@pytest.mark.slow
def test_benchmark(benchmark: Path, tmp_path: Path) -> None:
    """`python benchmarks/NAME.py --smoke` ends well and prints ratios; nothing is timed here."""
    done = subprocess.run(
        [sys.executable, benchmark, "--smoke"],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}{done.stderr}"
    assert any(word in done.stdout for word in ("times", "epochs", "library /")), done.stdout
