"""The check after every test sees what it is there to see."""

from collections.abc import Callable, Iterator

import matplotlib as mpl
import pyro
import pytest
import torch

from conftest import assert_untouched, global_state

CHANGES: dict[str, Callable[[], object]] = {
    "parameter store": lambda: pyro.param("left_behind", torch.zeros(1)),
    "dtype": lambda: torch.set_default_dtype(torch.float64),
    "grad_enabled": lambda: torch.set_grad_enabled(False),
    "pyro_settings": lambda: pyro.settings.set(module_local_params=True),
    "rc_params": lambda: mpl.rcParams.update({"lines.linewidth": 7.0}),
}


@pytest.fixture
def undo() -> Iterator[None]:
    """Puts back what the changes above change."""
    with mpl.rc_context(), pyro.settings.context(module_local_params=False):
        yield
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)


@pytest.mark.usefixtures("undo")
@pytest.mark.parametrize("name", CHANGES)
def test_a_trace_is_seen(name: str) -> None:
    """Each kind of trace is named by the assertion that it fails."""
    before = global_state()
    CHANGES[name]()
    with pytest.raises(AssertionError, match=name):
        assert_untouched(before)


def test_no_trace_is_seen() -> None:
    """What is put back, or was never touched, passes: a figure drawn in a style of its own too."""
    before = global_state()
    with mpl.rc_context({"lines.linewidth": 7.0}):
        pass
    assert_untouched(before)


@pytest.mark.usefixtures("float64")
def test_float64_is_for_one_test() -> None:
    """The fixture is in force inside the test; the check above sees that it goes again."""
    assert torch.zeros(1).dtype == torch.float64
