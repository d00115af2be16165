"""What `make release` and the Makefile's other targets say where something is missing."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pyro_vae._types import EXTRAS
from pyro_vae.comparisons import Comparison
from tests.helpers.minimum import CALLS, check, said_by, works

ROOT = Path(__file__).parent.parent
INSTALLED = [package for package, extra in EXTRAS.items() if extra != "onnx"]


@pytest.fixture(scope="module")
def table() -> Comparison:
    """A comparison, from what needs no extra."""
    return works()


def test_every_optional_package_has_a_call() -> None:
    """The release tries them all."""
    assert set(CALLS) == set(EXTRAS)


@pytest.mark.parametrize("package", EXTRAS)
def test_a_missing_extra_is_named(package: str, table: Comparison) -> None:
    """With the line that installs it, though the package may be there."""
    check(package, table)


@pytest.mark.parametrize("package", INSTALLED)
def test_an_extra_that_is_there_is_used(package: str, table: Comparison) -> None:
    """The same call says nothing: what was hidden is there again."""
    assert said_by(CALLS[package], table) == ""


def test_a_call_without_a_word_is_caught(
    table: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wrong twin: a call that needs pandas and does not name the extra."""
    monkeypatch.setitem(CALLS, "pandas", lambda *_: __import__("pandas"))
    with pytest.raises(AssertionError):
        check("pandas", table)


@pytest.mark.skipif(not shutil.which("make"), reason="no make")
@pytest.mark.parametrize("python", ["no_such_python", "false"])
def test_the_newest_versions_need_a_new_python(python: str) -> None:
    """Where there is none, `make` says so before it installs anything."""
    command = ["make", f"PYTHON={python}", "test-newest"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert f"need Python 3.12 or newer, and '{python}' is not" in done.stdout


def test_coverage_finds_its_place() -> None:
    """`make coverage` writes the share of lines into CONTRIBUTING.md, where its pattern is once."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (pattern,) = re.findall(r"sed -i \"s/([^/]+)/.*CONTRIBUTING\.md$", makefile, re.MULTILINE)
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert len(re.findall(pattern, page)) == 1
