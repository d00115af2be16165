"""Guides of any origin: those tied to rows are told from others, also inside a module."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.guides.entry import for_new_rows, is_tied_to_rows, maps_of
from tests.helpers.remedies import location as model


class Delegating(nn.Module):
    """A module of a user's own around a guide."""

    def __init__(self, inner: pv.Guide) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *batch: Tensor) -> Any:
        """The guide's program."""
        return self.inner(*batch)

    def posterior(self, *batch: Tensor, **given: Any) -> Any:
        """The guide's answer."""
        return self.inner.posterior(*batch, **given)


def guides(num_data: int) -> tuple[pv.Guide, pv.Guide]:
    """One tied to rows, and one that is not."""
    example = torch.zeros(2)
    local = pv.Guide(model, pv.LocalParameters(num_data), example=example)
    return local, pv.Guide(model, pv.GlobalParameters(), example=example)


def test_rows_are_seen_through_a_module() -> None:
    """A module that delegates is tied to the rows that its guide is tied to."""
    local, shared = guides(3)
    assert is_tied_to_rows(local)
    assert is_tied_to_rows(Delegating(local))
    assert not is_tied_to_rows(shared)
    assert not is_tied_to_rows(Delegating(shared))
    assert not is_tied_to_rows(model)
    assert maps_of(Delegating(local)) == [local.map]


def test_new_rows_of_a_table_inside_a_module_are_refused() -> None:
    """As many validation rows as training rows would take those rows' parameters in silence."""
    y = torch.tensor([-3.0, 0.0, 3.0])
    local, _ = guides(3)
    wrapped = Delegating(local)
    with pytest.raises(TypeError, match=r"Delegating contains a pv.Guide with free parameters"):
        pv.fit(model, wrapped, y, validation=-y, num_epochs=1, progress=False)


def test_remedies_of_the_refusal() -> None:
    """The guide itself is fitted to new rows, and an untied one inside a module is asked as is."""
    y = torch.tensor([-3.0, 0.0, 3.0])
    local, shared = guides(3)
    fitted: Any = for_new_rows(local, -y)
    # The posterior is N(y / 2, 1 / 2): a Newton step finds it.
    torch.testing.assert_close(fitted.mean(-y).squeeze(-1), -y / 2, rtol=0, atol=1e-3)
    wrapped = Delegating(shared)
    assert for_new_rows(wrapped, -y) is wrapped
    pv.fit(model, wrapped, y, validation=-y, num_epochs=1, progress=False)


def test_a_table_inside_a_module_knows_its_data() -> None:
    """After training other data of the same number are refused, also by `elbo`."""
    y = torch.tensor([-3.0, 0.0, 3.0])
    wrapped = Delegating(guides(3)[0])
    pv.fit(model, wrapped, y, num_epochs=1, progress=False)
    pv.elbo(model, wrapped, y)
    with pytest.raises(ValueError, match="must be those that LocalParameters was trained on"):
        pv.elbo(model, wrapped, -y)


def test_a_map_is_no_guide() -> None:
    """It is refused by name, wherever a guide is asked for, with the line that makes one of it."""
    model = pv.models.VAE(torch.nn.Linear(2, 3), pv.likelihoods.Gaussian(), latent_dim=2)
    y, encoder = torch.zeros(4, 3), pv.Encoder(torch.nn.Linear(3, 4))
    asked: list[Any] = [pv.fit, pv.elbo, pv.evaluate, pv.encode]
    for ask in asked:
        with pytest.raises(TypeError, match=r"pv\.Guide\(model, Encoder\(\.\.\.\)\)"):
            ask(model, encoder, y)
