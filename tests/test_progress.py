"""Progress bars: on terminals and in notebooks, silent in logs, and as told."""

import io
import sys
from typing import Any

import pytest

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
