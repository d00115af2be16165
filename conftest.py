"""Fixtures for every test: a seed from outside, and a check that nothing global was changed.

pyro_vae must not be imported here: pytest loads this file before the hook that checks shapes.
"""

import os
import signal
import sys
from collections.abc import Iterator
from typing import NamedTuple

os.environ.setdefault("MPLBACKEND", "Agg")  # read when matplotlib is first imported

import matplotlib as mpl
import numpy as np
import pyro
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Tensors in tests are small: threads only wait for each other, unless they are asked for.
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))

SEED = int(os.environ.get("PYRO_VAE_SEED", "0"))


class GlobalState(NamedTuple):
    """What no function of ours may change for its caller."""

    dtype: torch.dtype
    grad_enabled: bool
    pyro_settings: dict[str, object]
    rc_params: dict[str, object]
    subnormals_are_zero: bool


def global_state() -> GlobalState:
    """The state now; matplotlib's backend is left out, since drawing the first figure fixes it."""
    rc_params = {str(key): value for key, value in mpl.rcParams.items() if key != "backend"}
    return GlobalState(
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        pyro.settings.get(),
        rc_params,
        sys.float_info.min / 2 == 0,
    )


def assert_untouched(before: GlobalState) -> None:
    """Asserts that the state is as it was `before`, and Pyro's parameter store empty."""
    names = list(pyro.get_param_store().keys())
    pyro.clear_param_store()  # so that the next test is not blamed for it
    assert not names, f"the test left {names} in Pyro's parameter store"
    for name, old, new in zip(before._fields, before, global_state(), strict=True):
        assert old == new, f"the test changed {name} from {old} to {new}"


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Seeds what a test module draws while it is imported, whichever were imported before."""
    if isinstance(collector, pytest.Module):
        pyro.set_rng_seed(SEED)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips a test that `make test-shapes` would disturb, for the reason that its marker gives."""
    marker = item.get_closest_marker("without_type_checks")
    if marker is not None and item.config.getoption("--jaxtyping-packages"):
        pytest.skip(marker.args[0])


@pytest.fixture(autouse=True)
def leaves_no_trace() -> Iterator[None]:
    """Fails the test that leaves global state changed, or entries in Pyro's parameter store."""
    before = global_state()
    yield
    assert_untouched(before)


@pytest.fixture(autouse=True)
def seed() -> int:
    """Seeds every generator; `PYRO_VAE_SEED=7 pytest` draws anew. Tests may pass the value on."""
    pyro.set_rng_seed(SEED)
    return SEED


@pytest.fixture(autouse=True)
def examples_are_a_users(doctest_namespace: dict[str, object]) -> None:
    """Runs examples of docstrings as a user's script, whose arguments are checked."""
    doctest_namespace["__name__"] = "__main__"


@pytest.fixture
def float64() -> Iterator[None]:
    """Makes float64 the default dtype for one test."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def answers_interrupts() -> Iterator[None]:
    """Python's own handler of Ctrl-C, which a shell's background jobs start without."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def user_param_store() -> Iterator[None]:
    """For tests that do what a user may and we may not: fill Pyro's parameter store."""
    yield
    pyro.clear_param_store()


@pytest.fixture
def ax() -> Axes:
    """Axes of a figure that pyplot does not know."""
    return Figure(layout="constrained").subplots()


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    """Numbers of NumPy's, from the seed of the run."""
    return np.random.default_rng(seed)
