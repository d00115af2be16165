"""What is measured before training: from which rows, for which networks, and what it leaves."""

from typing import Any

import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.likelihoods import Gaussian, start_from
from pyro_vae.nets import MLPDecoder, MLPEncoder
from pyro_vae.nets.scaling import standard_of
from pyro_vae.training.rows import spread_rows
from tests.helpers.training import fit
from tests.helpers.units import SIZE, UNITS, made, own, raw, rows, same, start, state, vae


def test_a_spread_is_that_of_all_rows_but_a_few() -> None:
    """Two groups of rows, one of them narrow: of unit scale, or seen as two numbers of size 1."""
    step = torch.linspace(-1, 1, 500).double()[:, None]
    for share in (0.6, 0.9, 0.97):
        y = torch.where(torch.arange(500)[:, None] < 500 * share, 1e-3 * step, 3 + step)
        assert standard_of(y) is None
        found = standard_of(1e3 * y)
        assert found is not None
        ratio = found.spread / (1e3 * y).std(0, correction=0)
        torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=1e-6, atol=0)
        assert float(((1e3 * y - found.center) / found.spread).abs().max()) < 20


def test_columns_that_are_mostly_zero_have_the_size_of_their_other_entries() -> None:
    """However rare these are; a column of zeros has that of the other columns."""
    y = torch.zeros(1000, 4).double()
    for column, every in enumerate((2, 50, 500)):
        y[::every, column] = 200.0
    found = standard_of(y)
    assert found is not None
    assert float(found.spread.min()) > 50
    assert float(found.spread.max()) < 400


@pytest.mark.parametrize("count", [10, 1000, 1001, 24_000, 123_456])
def test_rows_that_are_measured_are_from_everywhere(count: int) -> None:
    """In order, each once, from every piece, and from every hour of hourly data."""
    found = spread_rows(count, 1000)
    assert len(found) == min(count, 1000)
    assert bool((found.diff() > 0).all())
    assert torch.equal(found, spread_rows(count, 1000))
    ends = torch.arange(len(found) + 1) * count // len(found)
    assert bool(((ends[:-1] <= found) & (found < ends[1:])).all())
    if count == 24_000:  # a missing hour has probability 24 (1 - 1/24)^1000 < 1e-16
        assert len((found % 24).unique()) == 24


@pytest.mark.parametrize("by_hand", [False, True])
@pytest.mark.parametrize("name", ["learned", "shared", "decoded", "mixed", "residual"])
@pytest.mark.parametrize("units", [(0.0, 1.0), (1e4, 1e3)], ids=str)
def test_a_fit_that_took_no_step_leaves_nothing(
    name: str, units: tuple[float, float], *, by_hand: bool
) -> None:
    """Whatever data it was for, as the remedy for a failed fit is to standardize them."""
    y, states = units[0] + units[1] * rows(4), []
    for before in (False, True):
        model, guide = made(name, 1.0)
        if by_hand:
            start_from(model.decoder, model.likelihood.start(y))
        if before:
            start(model, guide, 5e6 + 1e6 * rows(4))
        start(model, guide, y)
        states.append(state(model, guide))
    assert states[0].keys() == states[1].keys()
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("units", UNITS, ids=str)
def test_covariates_may_have_other_units_than_the_data(units: tuple[float, float]) -> None:
    """The decoder sees them standardized, too."""
    y, x = raw(4), rows(1)
    found, expected = (
        fit(*made("conditional", SIZE), (y, given), num_epochs=15).history.elbo
        for given in (units[0] + units[1] * x, x)
    )
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=0, atol=1e-4)


@pytest.mark.parametrize("prefix", ["decoder.", "likelihood.", "prior."])
def test_a_part_of_a_file_leaves_the_units_of_the_rest(prefix: str) -> None:
    """With strict=False; a file of weights without units still removes theirs."""
    model, guide = made("learned", SIZE)
    untrained = {n: v.clone() for n, v in model.state_dict().items() if n.startswith(prefix)}
    fit(model, guide, raw(4), num_epochs=1)
    before = state(model)
    own = {n: v.clone() for n, v in model.state_dict().items() if n.startswith(prefix)}
    model.load_state_dict(own, strict=False)
    assert same(state(model), before)
    model.load_state_dict(untrained, strict=False)
    assert (model.decoder.units.shift is None) == (prefix == "decoder.")
    assert (model.likelihood.sigma.unit is None) == (prefix == "likelihood.")


def changed_by_hand(case: str, guide: Any) -> None:
    """An encoder of which another part than the first layer is not as it was drawn."""
    net = guide.map.net
    if case == "replaced":
        net.layers[0] = nn.Linear(4, 8).double()
    with torch.no_grad():
        if case == "second layer":
            net.layers[2].bias.add_(0.01)
        if case == "head":
            guide.map.head.weight.add_(0.01)


@pytest.mark.parametrize("case", ["replaced", "second layer", "head"])
def test_an_encoder_that_was_changed_anywhere_sees_the_data_as_they_are(case: str) -> None:
    """As after training with a first layer that did not require a gradient."""
    likelihood = Gaussian(own(SIZE))
    model, guide = vae(likelihood, MLPDecoder(2, 4, hidden=(8,)), MLPEncoder(4, hidden=(8, 8)))
    changed_by_hand(case, guide)
    net: Any = guide.map.net
    before = state(net)
    start(model, guide, raw(4))
    assert same(state(net), before)
    assert guide.map.needs_unit_scale


def test_a_decoder_of_which_the_last_layer_alone_is_as_drawn() -> None:
    """As after training with a last layer that did not require a gradient."""
    model, guide = made("learned", SIZE)
    with torch.no_grad():
        model.decoder.layers[0].weight.add_(0.01)
    before = state(model)
    start(model, guide, raw(4))
    assert same(state(model), before)


def test_a_guide_that_is_drawn_anew_is_started() -> None:
    """As those of further seeds of a comparison."""
    model, guide = made("learned", SIZE)
    table = pv.compare(
        model, {"a": guide}, raw(4), raw(4)[:5], num_epochs=1, num_seeds=2, progress=False,
        evaluation=pv.ImportanceSampling(20),
    )  # fmt: skip
    for one in (table, *table.others):
        assert one.results["a"].guide.map.net.units.shift is not None
