"""The closed form of log p(y): quadratic programs, and models that know their evidence."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.evidence import Bound
from pyro_vae.evidence.exact import ClosedForm
from tests.helpers.cases import gamma, negative_binomial
from tests.helpers.factor_analysis import exact_guide, model_of
from tests.helpers.statistics import FACTS

pytestmark = pytest.mark.usefixtures("float64")


def test_closed_form() -> None:
    """Exact for factor analysis, within rounding, and called so."""
    y = FACTS.sample(30)
    found = pv.log_marginal_likelihood(model_of(FACTS), exact_guide(FACTS), y, ClosedForm())
    assert ((found.value - FACTS.log_evidence(y)).abs() <= found.error).all()
    assert (found.error < 1e-11).all()
    assert found.bound is Bound.EXACT
    assert found.reliable.all()


def test_closed_form_is_not_for_all() -> None:
    """A program that is not quadratic is refused, with what to do."""
    y = torch.arange(4.0)
    guide = pv.Guide(gamma, pv.GlobalParameters(), example=y)
    with pytest.raises(ValueError, match=r"log_evidence\(\*batch\).* use pv.Quadrature"):
        pv.log_marginal_likelihood(gamma, guide, y, ClosedForm())


class Knowing(nn.Module):
    """A conjugate count program that knows its answer, or says something else."""

    def __init__(self, answer: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, y: Tensor) -> None:
        """The program."""
        gamma(y)

    def log_evidence(self, y: Tensor) -> Any:
        """The answer."""
        return self.answer(y)


def test_a_model_may_know_its_answer() -> None:
    """Its method is asked."""
    y = torch.arange(4.0)
    model = Knowing(negative_binomial)
    guide = pv.Guide(model, pv.GlobalParameters(), example=y)
    found = pv.log_marginal_likelihood(model, guide, y, ClosedForm())
    assert torch.equal(found.value, negative_binomial(y))


@pytest.mark.parametrize("answer", [torch.sum, len])
def test_a_wrong_shape_is_refused(answer: Callable[[Tensor], Any]) -> None:
    """A number for all data is none per datum."""
    y = torch.arange(4.0)
    model = Knowing(answer)
    guide = pv.Guide(model, pv.GlobalParameters(), example=y)
    with pytest.raises(ValueError, match=r"shape \(4,\)"):
        pv.log_marginal_likelihood(model, guide, y, ClosedForm())


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
@pytest.mark.parametrize("estimator", [ClosedForm(), pv.Tightest()])
def test_an_answer_that_is_no_log_density_is_refused(wrong: float, estimator: Any) -> None:
    """Before, it was the exact and trusted result; minus infinity is a density of 0."""
    y = torch.arange(4.0)
    model = Knowing(lambda y: torch.zeros_like(y).index_fill(0, torch.tensor([2]), wrong))
    guide = pv.Guide(model, pv.GlobalParameters(), example=y)
    with pytest.raises(FloatingPointError, match=r"datum 2.*check the model's log_evidence"):
        pv.log_marginal_likelihood(model, guide, y, estimator)
    impossible = Knowing(lambda y: torch.full_like(y, -torch.inf))
    found = pv.log_marginal_likelihood(impossible, guide, y, estimator)
    assert bool((found.value == -torch.inf).all())
