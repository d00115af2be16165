"""Warnings name a line of the caller's, not one inside the package."""

import ast
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import pyro_vae as pv
from pyro_vae._warnings import once_for_all_columns, warn_of_column
from pyro_vae.data import Columns
from pyro_vae.models import LinearGaussian


def far_from_the_posterior() -> None:
    """Two draws of an untrained guide."""
    model = LinearGaussian(2, 4)
    guide = pv.Guide(model, pv.GlobalParameters())
    pv.log_marginal_likelihood(model, guide, 9 * torch.ones(3, 4), pv.ImportanceSampling(2))


def one_step_of_em() -> None:
    """A fit that ends before it has converged."""
    LinearGaussian(1, 3).fit_em(torch.randn(20, 3), max_steps=1)


def a_constant_column() -> None:
    """Data of which one column says nothing."""
    y = torch.randn(20, 3)
    y[:, 1] = 2.0
    decoder = torch.nn.Linear(1, 3)
    likelihood = pv.likelihoods.Gaussian(pv.likelihoods.LearnedSigma(3))
    model = pv.models.VAE(decoder, likelihood, latent_dim=1)
    pv.fit(model, pv.Guide(model, pv.GlobalParameters()), y, num_epochs=1, progress=False)


def many_categories() -> None:
    """Words that are rarely the same."""
    Columns.of({"x": [f"a{i % 60}" for i in range(200)]})


@pytest.mark.parametrize(
    "call", [far_from_the_posterior, one_step_of_em, a_constant_column, many_categories]
)
def test_the_line_is_the_callers(call: Callable[[], None]) -> None:
    """Through decorators, context managers and several layers of the package."""
    with pytest.warns(UserWarning, match="trusted|did not converge|constant|categories") as caught:
        call()
    assert {Path(warning.filename) for warning in caught} == {Path(__file__)}


def test_there_is_one_way_to_warn() -> None:
    """`warnings.warn` would name the wrapper that checks arguments, or another line of ours."""
    root = Path(pv.__file__).parent
    callers = {
        file.name
        for file in root.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "warnings.warn"
    }
    assert callers == {"_warnings.py"}


def test_a_column_with_two_warnings_is_no_further_column() -> None:
    """As when a column is read twice; other columns are counted once."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with once_for_all_columns():
            for name in "aabbc":
                warn_of_column(name, f"column '{name}' is odd")
    assert [str(one.message) for one in caught] == [
        "column 'a' is odd. The same holds for 2 more columns: 'b', 'c'"
    ]
