"""Every reported number of a comparison is followed to its source, and so is every error."""

import csv
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae import diagnostics, evidence
from pyro_vae.comparisons import Comparison, GuideResult
from pyro_vae.comparisons.columns import COLUMNS, Entry, Reported
from pyro_vae.comparisons.reporting import cell_of, report_of
from pyro_vae.results import Doubt
from tests.helpers.pages import Page
from tests.helpers.programs import Program

NUM_DATA = 8
SCALE = -100.0  # nats per datum, added to log densities and to nothing else

# Value and error of every quantity that has one: no two numbers are alike.
PLANTED = {
    "train_elbo": (-11.0, 0.011),
    "elbo": (-12.0, 0.012),
    "log_p": (-9.0, 0.013),
    "approximation": (1.75, 0.014),
    "amortization": (1.25, 0.015),
    "rate": (4.5, 0.016),
    "distortion": (7.5, 0.017),
    "mutual_information": (2.0625, 0.018),
}
SHIFTED = {"train_elbo": SCALE, "elbo": SCALE, "log_p": SCALE, "distortion": -SCALE}
PLAIN = {
    "ceiling": 2.5,
    "active_units": 1.0,
    "seconds": 34.5,
    "epochs": 21.0,
    "unreliable": 2 / NUM_DATA,
    "lost": 3 / NUM_DATA,
    "partly_covered": 5 / NUM_DATA,
    "trusted": 4 / NUM_DATA,
    "log_p_spread": 0.6,
    "elbo_spread": 0.3,
}
TEXTS = {"guide": "planted", "method": "by decree (low on average)", "stopped": "early"}


def per_datum(name: str, shift: float = 0.0) -> pv.Estimate:
    """Data whose mean and Monte Carlo error are the planted ones, with a spread of their own."""
    value, error = PLANTED[name]
    spread = torch.linspace(-0.5, 0.5, NUM_DATA, dtype=torch.float64)
    return pv.Estimate(value + shift + spread, torch.full_like(spread, error * NUM_DATA**0.5))


def first(number: int) -> Tensor:
    """The first few of the data."""
    return torch.arange(NUM_DATA) < number


def planted(result: GuideResult, log_p: float = 0.0, elbo: float = 0.0) -> GuideResult:
    """The result with everything that is reported of it replaced."""
    zero = torch.zeros(NUM_DATA, dtype=torch.float64)
    marginal = replace(
        result.gap.log_marginal,
        value=per_datum("log_p", log_p).value,
        error=per_datum("log_p").error,
        method="by decree",
        bound=evidence.Bound.LOWER,
        doubts={Doubt.HEAVY_TAIL: first(2)},
    )
    gap = replace(
        result.gap,
        log_marginal=marginal,
        elbo=per_datum("elbo", elbo),
        approximation=per_datum("approximation"),
        amortization=per_datum("amortization"),
        inference=pv.Estimate(zero + torch.where(first(4) & ~first(3), -9.0, 3.0), zero + 0.1),
        fit_converged=~first(3),
        elbo_doubts={},
    )
    bound = replace(
        result.test.bound, rate=per_datum("rate"), distortion=per_datum("distortion"), doubts={}
    )
    own = replace(result.test.log_marginal, doubts={Doubt.HEAVY_TAIL: first(5)})
    history = replace(result.fit.history, epoch=np.array([21]))
    information = pv.Estimate(*map(torch.tensor, PLANTED["mutual_information"]))
    return replace(
        result,
        train_bound=replace(result.train_bound, elbo=per_datum("train_elbo"), doubts={}),
        test=replace(result.test, bound=bound, log_marginal=own),
        gap=gap,
        fit=replace(result.fit, history=history, stopped="early"),
        means=torch.stack([zero, 3 * torch.linspace(-1, 1, NUM_DATA)], dim=1),
        prior_variance=torch.ones(2),
        information=replace(result.information, estimate=information, ceiling=2.5),
        seconds=34.5,
    )


@pytest.fixture(scope="module")
def trained() -> Comparison:
    """Some comparison, with one guide."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        y = torch.randn(12 + NUM_DATA, 3)
        return pv.compare(
            Program(), {"planted": pv.Encoder(nn.Linear(3, 2))}, y[:12], y[12:], num_epochs=1,
            evaluation=pv.ImportanceSampling(40), log_scale=SCALE, progress=False,
        )  # fmt: skip


@pytest.fixture(scope="module")
def table(trained: Comparison) -> Comparison:
    """The comparison with planted numbers, under three seeds: x - s, x, x + s have the sd s."""
    result = trained.results["planted"]
    seeds = [
        replace(trained, results={"planted": planted(result, sign * 0.6, sign * 0.3)})
        for sign in (0, -1, 1)
    ]
    return replace(seeds[0], others=tuple(seeds[1:]))


def expected() -> dict[str, float | str]:
    """What a row of a file has to say."""
    values = {name: value + SHIFTED.get(name, 0.0) for name, (value, _) in PLANTED.items()}
    errors = {f"{name}_error": error for name, (_, error) in PLANTED.items()}
    return {**values, **errors, **PLAIN, **TEXTS}


def assert_planted(record: dict[str, Any]) -> None:
    """Every quantity has the number that was planted for it, and there is no other."""
    wanted = expected()
    assert set(record) == set(wanted)
    for name, value in wanted.items():
        if isinstance(value, str):
            assert record[name] == value, name
        else:
            assert float(record[name]) == pytest.approx(value, rel=1e-6), name


def test_no_two_planted_numbers_are_alike() -> None:
    """Or a swap of the two would go unseen."""
    numbers = [value for value in expected().values() if isinstance(value, float)]
    assert len({round(number, 6) for number in numbers}) == len(numbers)


def test_the_row_and_the_frame(table: Comparison) -> None:
    """As records, and in pandas."""
    (row,) = table.rows()
    assert_planted(row.record())
    frame = table.to_dataframe()
    assert len(frame) == 1
    assert_planted(frame.iloc[0].to_dict())
    for name, (value, error) in PLANTED.items():
        assert row.number(name) == pytest.approx(value + SHIFTED.get(name, 0.0))
        assert row.error(name) == pytest.approx(error)


def test_the_file(table: Comparison, tmp_path: Path) -> None:
    """The csv, by its own header."""
    table.save_table(tmp_path / "table.csv")
    with (tmp_path / "table.csv").open() as file:
        (record,) = csv.DictReader(file)
    assert_planted(record)


def test_the_text(table: Comparison) -> None:
    """Under every heading of the printed table stands its own number, and no other."""
    assert table.summary().endswith(f"\n\n{table.verdict}")
    heading, _, line, *_ = table.summary().splitlines()
    shown = [column for column in COLUMNS if column.short]
    assert re.split(r" {2,}", heading) == [column.short for column in shown]
    name, *cells = re.split(r" {2,}", line)
    assert name == "planted"
    for column, cell in zip(shown[1:], cells, strict=True):
        value = expected()[column.key]
        if column.key in PLANTED:
            assert cell == f"{value:.3f} ± {PLANTED[column.key][1]:.3f}", column.key
        else:
            assert cell == f"{value:{column.spec}}", column.key


def page_records(page: Page) -> Iterator[tuple[str, str, str]]:
    """Key, value and error of every cell of the page."""
    for row, key, cell in page.cells():
        if row == "planted":
            yield key, cell.attributes["data-value"], cell.attributes.get("data-error", "")


def test_the_page(table: Comparison) -> None:
    """Every cell of the page, with its error where it has one."""
    page = Page(report_of({"": table}).html())
    wanted, seen = expected(), set()
    for key, value, error in page_records(page):
        if isinstance(wanted[key], str):
            assert value == wanted[key], key
        else:
            assert float(value) == pytest.approx(wanted[key], rel=1e-6), key
        if key in PLANTED:
            assert float(error) == pytest.approx(PLANTED[key][1], rel=1e-6), key
        else:
            assert error == "", key
        seen.add(key)
    assert {column.key for column in COLUMNS} - seen == {"ceiling"}
    assert f"log N = {PLAIN['ceiling']:.2f}" in page.all("main")[0].text


def test_errors_over_data_and_over_draws_are_not_mixed(table: Comparison) -> None:
    """Means have the error of other draws; differences that of other data, where the page says so.

    The planted guide less one whose ELBO is the same but for its spread over data.
    """
    result = table.results["planted"]
    level = pv.Estimate(torch.full((NUM_DATA,), -12.5).double(), result.gap.elbo.error)
    flat = replace(result.gap, elbo=level)
    both = replace(table, results={"planted": result, "flat": replace(result, gap=flat)}, others=())
    page = Page(report_of({"": both}).html())
    cells = {key: cell.attributes for row, key, cell in page.cells() if "flat" in row}
    spread = float(torch.linspace(-0.5, 0.5, NUM_DATA).std()) / NUM_DATA**0.5
    found = cells["elbo_difference"]
    assert float(found["data-value"]) == pytest.approx(0.5)
    assert float(found["data-error"]) == pytest.approx(spread)
    draws = PLANTED["elbo"][1] * 2**0.5
    assert draws < spread / 4
    assert f"{draws:.2g} comes from the draws" in found["title"]


@pytest.mark.parametrize(("one", "other"), [("rate", "distortion"), ("elbo", "train_elbo")])
def test_a_swap_is_caught(table: Comparison, one: str, other: str) -> None:
    """Two columns that read each other's numbers, or errors, do not pass."""
    record = table.rows()[0].record()
    for ending in ("", "_error"):
        swapped = {**record, one + ending: record[other + ending]}
        with pytest.raises(AssertionError):
            assert_planted(swapped)


def test_a_column_without_a_number_is_left_out(trained: Comparison) -> None:
    """The spread between seeds, of one seed."""
    row = trained.rows()[0]
    assert math.isnan(row.number("log_p_spread"))
    page = Page(report_of({"": trained}).html())
    assert "log_p_spread" not in {key for _, key, _ in page.cells()}


def test_keys_are_unique() -> None:
    """And every column that a person meets is defined."""
    keys = [column.key for column in COLUMNS]
    assert len(set(keys)) == len(keys)
    assert all(len(column.definition) > 10 for column in COLUMNS)


def prior_model(scale: float, slope: float) -> Any:
    """Z ~ N(0, scale^2), y | z ~ N(slope z / scale, 1)."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), scale).to_event(1))
            pyro.sample("y", dist.Normal(slope * z / scale, 1.0).to_event(1), obs=y)

    return model


@pytest.mark.parametrize("scale", [0.05, 1.0, 50.0])
@pytest.mark.parametrize(("slope", "active"), [(2.0, 1.0), (0.02, 0.0)])
def test_active_units_are_counted_beside_the_prior(
    scale: float, slope: float, active: float
) -> None:
    """In whatever unit z is measured: the mean's variance is s^2 / (1 + s^2) of the prior's.

    Raw variances would call none active under a narrow prior, and all of them under a wide one.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        y = (1 + slope**2) ** 0.5 * torch.randn(60, 1)
    model = prior_model(scale, slope)
    table = pv.compare(
        model, {"exact": pv.ExactPosterior()}, y[:20], y[20:], num_epochs=1, train_model=False,
        evaluation=pv.ImportanceSampling(100), progress=False,
    )  # fmt: skip
    result = table.results["exact"]
    assert table.rows()[0].number("active_units") == active
    assert float(result.prior_variance) == pytest.approx(scale**2, rel=1e-4)
    guide = pv.Guide(model, pv.ExactPosterior(), example=y)
    assert diagnostics.collapse(model, guide, y[20:]).active == active
    raw = diagnostics.active_units(result.means)[0]
    assert (raw == active) == (scale == 1.0 or (scale > 1) == bool(active)), "the wrong twin"


def test_an_entry_is_plain(table: Comparison) -> None:
    """A column of one's own is one value."""
    mine = Reported(
        key="mine", name="mine", definition="Twice the time.", table="trust", spec=".1f",
        of=lambda entry: 2 * entry.result.seconds,
    )  # fmt: skip
    entry = Entry(next(iter(table.results)), table)
    assert cell_of(mine, entry).text == "69.0"
    assert mine.record(mine.of(entry)) == {"mine": 69.0}
