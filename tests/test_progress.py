"""Progress bars: on terminals and in notebooks, silent in logs, and as told."""

import io
import sys
from typing import Any

import pytest
import torch

import pyro_vae as pv
from pyro_vae import progress


class Terminal(io.StringIO):
    """What somebody looks at."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("show", "stream", "shown"),
    [
        (None, io.StringIO, False),
        (None, Terminal, True),
        (True, io.StringIO, True),
        (False, Terminal, False),
    ],
)
def test_bars_are_for_people(
    monkeypatch: pytest.MonkeyPatch, stream: Any, *, show: bool | None, shown: bool
) -> None:
    """Unless told otherwise, a log has no bar in it."""
    written = stream()
    monkeypatch.setattr(sys, "stderr", written)
    assert list(progress.progress_bar(range(3), show=show, desc="rows", mininterval=0)) == [0, 1, 2]
    assert ("rows" in written.getvalue()) == shown


class Cell(io.StringIO):
    """What a kernel shows below a cell: no terminal, and a cursor that cannot move up."""


Cell.__module__ = "ipykernel.iostream"


def test_bars_of_a_notebook_share_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without widgets they are text: shown unless told otherwise; only the outer one stays."""
    written = Cell()
    monkeypatch.setattr(sys, "stderr", written)
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    for _ in progress.progress_bar(range(2), show=None, desc="guides", mininterval=0):
        list(progress.progress_bar(range(3), show=None, desc="rows", mininterval=0))
    list(progress.progress_bar(range(3), show=False, desc="silent"))
    shown = written.getvalue()
    assert shown.count("\n") == 1
    assert "\x1b[A" not in shown
    assert "3/3" in shown
    assert shown.rpartition("\r")[2].startswith("guides: 100%")
    assert "silent" not in shown


@pytest.mark.parametrize("name", ["marginal", "conditional", "marginal_log_likelihood"])
def test_functions_pass_it_on(capsys: pytest.CaptureFixture[str], name: str) -> None:
    """Bars where asked for; by default, and where refused, none in what is no terminal."""
    y = torch.zeros(3, 2)
    model = pv.models.VAE(torch.nn.Linear(1, 2), pv.likelihoods.Gaussian(), latent_dim=1)
    guide, few = pv.Guide(model, pv.GlobalParameters()), pv.ImportanceSampling(200)
    calls: dict[str, Any] = {
        "marginal": lambda **show: pv.marginal(model, guide, y, [0], few, **show),
        "conditional": lambda **show: pv.conditional(model, guide, y, [0], [1], few, **show),
        "marginal_log_likelihood": lambda **show: pv.marginal_log_likelihood(
            model, guide, y, 2, few, **show
        ),
    }
    for show, shown in [({"progress": True}, True), ({"progress": False}, False), ({}, False)]:
        calls[name](**show)
        assert ("%|" in capsys.readouterr().err) == shown
