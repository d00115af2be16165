"""Schedules of the weight of the KL term: their values, and how `fit` follows them."""

import pytest

from pyro_vae.objectives import BetaELBO, Cyclic, LinearWarmup
from tests.helpers.training import data as binary
from tests.helpers.training import fit, small

# The loss of an objective outside `fit` leaves parameters in Pyro's store.
pytestmark = pytest.mark.usefixtures("user_param_store")


def test_fit_tells_the_schedule() -> None:
    """The weight rises in `fit`, and is written down; a warm-up without end is refused."""
    model, guide = small()
    objective = BetaELBO(LinearWarmup(2))
    result = fit(model, guide, binary(), num_epochs=4, batch_size=5, objective=objective)
    assert result.history.kl_weight.tolist() == pytest.approx([0.25, 0.75, 1.0, 1.0])
    with pytest.raises(ValueError, match="2 epochs in 2 epochs of training"):
        fit(model, guide, binary(), num_epochs=2, objective=objective)
    with pytest.raises(ValueError, match=r"objective\.at\(epoch\)"):
        objective.loss(model, guide, binary())


def test_schedules() -> None:
    """Values at a few epochs, and what they refuse."""
    warmup = LinearWarmup(4, start=0.2, end=2.2)
    assert [warmup(t) for t in (0.0, 2.0, 4.0, 9.0)] == pytest.approx([0.2, 1.2, 2.2, 2.2])
    cyclic = Cyclic(4, rising=0.25)
    assert [cyclic(t) for t in (0.0, 0.5, 1.0, 3.9, 4.5)] == pytest.approx([0, 0.5, 1, 1, 0.5])
    between = Cyclic(4, rising=0.5, start=0.2, end=2.2)
    assert [between(t) for t in (0.0, 1.0, 2.0, 5.0)] == pytest.approx([0.2, 1.2, 2.2, 1.2])
    with pytest.raises(ValueError, match="one cycle"):
        BetaELBO(Cyclic(10)).check(5)
