"""Runs what README.md, CONTRIBUTING.md and the site show: Python and commands, page by page."""

import os
import re
import shlex
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent, indent
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor

import pyro_vae as pv
from pyro_vae.cli import main
from pyro_vae.guides import Guide
from pyro_vae.objectives.base import Particles

ROOT = Path(__file__).parent.parent

FENCE = re.compile(
    r"^(?P<space> *)```(?P<language>\{code-cell\}|\w*)[^\n]*\n(?P<code>.*?)^(?P=space)```[^\S\n]*$",
    re.MULTILINE | re.DOTALL,
)
NOT_RUN = re.compile(r"<!-- not run: \S.* -->[^\S\n]*\n\Z")  # just before; a reason is asked for
PYTHON = ("python", "{code-cell}")  # the second is run by `make docs` too, which shows the answers
OPTIONS = re.compile(r"^:.*$", re.MULTILINE)  # of a cell, which say how it is shown
SHELLS = ("bash", "console", "sh", "shell")
PLAIN = re.compile(r"pyro-vae [\w ./=,-]+")  # needs no shell: run here, which saves 3 s of imports
OURS = re.compile(r"(\s*#[^\n]*\n)*\s*pyro-vae\b")  # comments may stand before the command


class Block(NamedTuple):
    """A piece of a README that is to be run."""

    language: str
    code: str
    line: int  # of its first line, in the README


def runnable(text: str) -> list[Block]:
    """Python blocks, and those shell blocks whose first command is `pyro-vae`, in order."""
    blocks = [
        Block(
            "python" if found["language"] in PYTHON else found["language"],
            OPTIONS.sub("", dedent(found["code"])),
            text[: found.start("code")].count("\n") + 1,
        )
        for found in FENCE.finditer(text)
        if not NOT_RUN.search(text[: found.start()])
    ]
    return [
        block
        for block in blocks
        if block.language == "python"
        or (block.language in SHELLS and OURS.match(commands(block.code)))
    ]


def commands(code: str) -> str:
    """What a person types of a shell block: the lines after `$`, or all where there is none."""
    lines = code.splitlines()
    typed = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    return "\n".join(typed or lines)


def execute(block: Block, readme: Path, namespace: dict[str, Any], folder: Path) -> None:
    """Runs one block; an error points at its line of the README."""
    if block.language == "python":
        padded = "\n" * (block.line - 1) + block.code
        exec(compile(padded, readme, "exec"), namespace)
        return
    typed = commands(block.code)
    if readme.name != "README.md" and all(PLAIN.fullmatch(line) for line in typed.splitlines()):
        for line in typed.splitlines():
            with warnings.catch_warnings():
                warnings.simplefilter("default")  # as in a process of its own
                main(shlex.split(line)[1:])
        return
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", typed],
        cwd=folder,
        env={**os.environ, "PATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (
        f"{readme.name}, line {block.line}: exit code {done.returncode} of\n"
        f"{indent(typed, '  ')}\n{done.stdout}{done.stderr}"
    )


def run(readme: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Runs every block of a README inside `folder`; returns the namespace at the end."""
    # The page trains for a few epochs only, and says that this warning is what comes of it.
    warnings.filterwarnings("ignore", message=r"log p\(y\) cannot be trusted")
    blocks = runnable(readme.read_text(encoding="utf-8"))
    assert blocks, f"{readme} shows nothing that can be run"
    monkeypatch.chdir(folder)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks:
        execute(block, readme, namespace, folder)
    plt.close("all")  # what a page draws is in no other test's way
    return namespace


def pages() -> Iterator[Any]:
    """What a reader may copy from; `make docs` runs those pages that show what comes out."""
    yield from ("README.md", "CONTRIBUTING.md")
    for file in sorted((ROOT / "docs").rglob("*.md")):
        text = file.read_text(encoding="utf-8")
        if "_build" not in file.parts and runnable(text):
            marks = [pytest.mark.slow] if "{code-cell}" in text else []
            yield pytest.param(str(file.relative_to(ROOT)), marks=marks)


@pytest.mark.usefixtures("user_param_store")
@pytest.mark.parametrize("page", list(pages()))
def test_page(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that the page shows runs."""
    run(ROOT / page, tmp_path, monkeypatch)


def test_skeletons_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that CONTRIBUTING.md shows how to write works, and together."""
    shown = run(ROOT / "CONTRIBUTING.md", tmp_path, monkeypatch)

    def model(y: Tensor, label: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(z, 1.0).to_event(1), obs=y)

    data = torch.randn(5, 2), torch.tensor([0, 1, 2, 1, 0])
    by_label, family = shown["ByLabel"](3), shown["DiagonalLaplace"]()
    guide = Guide(model, by_label, family, example=data)
    torch.testing.assert_close(family(by_label.table).variance, torch.ones(3, 2))
    by_label.table.data[2, 0] = 7.0
    assert guide.mean(data)[:, 0].tolist() == [0, 0, 7, 0, 0]
    spread = shown["weight_spread"](torch.tensor([[0.0, 0.0], [2**0.5, 2**0.5]]))
    torch.testing.assert_close(torch.stack(spread), torch.tensor([1.0, 0.0]))
    log_prob = shown["Laplace"](0.5)(torch.tensor([[0.0, 2.0]])).log_prob(
        torch.tensor([[3.0, 3.0]])
    )
    torch.testing.assert_close(log_prob, torch.tensor([-8.0]))
    columns = torch.tensor([[1.0, torch.nan], [3.0, torch.nan], [9.0, torch.nan]])
    assert shown["Laplace"]().start(columns).tolist() == [3.0, 0.0]
    in_units = pv.models.VAE(pv.nets.MLPDecoder(1, 2), shown["Laplace"](), latent_dim=1)
    in_units.start_from(1e4 + 1e3 * data[0])
    decoded = in_units.decode(torch.randn(50, 1))
    assert (decoded > 5e3).all()
    assert (decoded.std(dim=0) > 10).all()  # of columns with a spread of 1,000, where 1 is little
    log_weights = torch.tensor([[1.0], [3.0], [2.0], [6.0]]).log()
    zero = torch.zeros(4, 1)
    bound = shown["AveragedIWAE"](2, 4).bound(Particles(log_weights, zero, zero, zero))
    torch.testing.assert_close(bound.exp(), torch.tensor([8**0.5]))  # of means 2 and 4
    by_label.table.data[2, 0] = 0.0
    repeated = pv.log_marginal_likelihood(model, guide, data, shown["Repeated"](runs=16))
    exact = dist.Normal(0.0, 2**0.5).log_prob(data[0]).sum(dim=1)
    assert repeated.reliable.all()
    assert ((repeated.value - exact).abs() < 6 * repeated.error).all()
    assert repeated.error.max() < 0.01
    ax = shown["plot_ranks"](torch.tensor([0.25, 0.75, 0.5]), ax=Figure().subplots())
    assert ax.lines[-1].get_xdata().tolist() == [0.25, 0.5, 0.75]


@pytest.fixture
def readme(tmp_path: Path) -> Path:
    """Where a test puts a README of its own."""
    return tmp_path / "README.md"


def test_blocks_share_a_namespace(readme: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks run in order, those inside a list too, in the folder that they are given."""
    readme.write_text(
        "```python\nx = 1\n```\n- an item\n  ```python\n  y = x + 1\n  open('made', 'w').close()\n"
        "  ```\n```text\nnot code\n```\n"
    )
    assert run(readme, readme.parent, monkeypatch)["y"] == 2
    assert (readme.parent / "made").exists()


def test_errors_point_at_their_line(readme: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The traceback ends at the line of the README that failed."""
    readme.write_text("Title\n\n```python\nx = 1\n1 / 0\n```\n")
    with pytest.raises(ZeroDivisionError) as caught:
        run(readme, readme.parent, monkeypatch)
    assert (str(caught.traceback[-1].path), caught.traceback[-1].lineno + 1) == (str(readme), 5)


@pytest.mark.parametrize("text", ["Words.\n", "```text\nx\n```\n", "```bash\nmake demo\n```\n"])
def test_nothing_to_run_fails(text: str, readme: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A README that shows nothing, or nothing of ours, does not pass in silence."""
    readme.write_text(text)
    with pytest.raises(AssertionError, match="shows nothing"):
        run(readme, readme.parent, monkeypatch)


def test_not_run_needs_a_reason() -> None:
    """The comment skips the block right after it, and only if it gives a reason."""
    block = "```python\n1 / 0\n```\n"
    assert runnable(f"<!-- not run: takes an hour -->\n{block}") == []
    assert len(runnable(f"<!-- not run: -->\n{block}")) == 1
    assert len(runnable(f"<!-- not run: takes an hour -->\n{block}{block}")) == 1


@pytest.mark.parametrize(
    ("code", "typed"),
    [
        ("pyro-vae --help\npyro-vae fit x", "pyro-vae --help\npyro-vae fit x"),
        ("# all of it\npyro-vae --help", "# all of it\npyro-vae --help"),
        ("$ pyro-vae --help\nusage: ...\n$ ls", "pyro-vae --help\nls"),
    ],
)
def test_commands(code: str, typed: str) -> None:
    """Shell blocks are run as typed, without the prompt and the answers shown."""
    assert commands(code) == typed
    assert runnable(f"```console\n{code}\n```\n") == [Block("console", f"{code}\n", 2)]


def test_failing_commands_fail(readme: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that the program does not know fails, with the line and what was printed."""
    readme.write_text("```bash\npyro-vae no-such-command\n```\n")
    with pytest.raises(AssertionError, match=r"README\.md, line 2: exit code [1-9]"):
        run(readme, readme.parent, monkeypatch)
