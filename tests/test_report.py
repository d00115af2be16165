"""The report: a page that stands alone, says what the table says, and escapes what it is given."""

import base64
import io
from dataclasses import replace
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
from torch import nn

import pyro_vae as pv
from conftest import SEED
from pyro_vae import report
from pyro_vae._types import Estimate
from pyro_vae.comparisons import Candidate, Comparison
from pyro_vae.comparisons.columns import COLUMNS
from pyro_vae.comparisons.reporting import report_of, title_of
from pyro_vae.comparisons.results import best_of, rivals_of
from pyro_vae.formatting import plus_minus, typeset
from pyro_vae.results import Doubt
from tests.helpers.pages import Page
from tests.helpers.programs import Program

NASTY = '<b>"x"&'
COMMAND = "pyro-vae compare 'a<b.npy' --out x"


@pytest.fixture(scope="module")
def table() -> Comparison:
    """A comparison of two epochs, of a guide with a name that is hard on a page and another."""
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        y = torch.randn(28, 3)
        guides: dict[str, Candidate] = {
            NASTY: pv.Encoder(nn.Linear(3, 2)),
            "global": pv.GlobalParameters(),
        }
        return pv.compare(
            Program(), guides, y[:20], y[20:], num_epochs=2,
            evaluation=pv.ImportanceSampling(40), progress=False,
            about={"command": COMMAND, "data set": "noise <i>&", "things": list(range(500))},
        )  # fmt: skip


@pytest.fixture(scope="module")
def text(table: Comparison) -> str:
    """The page about it."""
    return report_of({title_of(table): table}).html()


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    """The page, parsed."""
    return Page(text)


def test_figures_keep_their_size_on_narrow_screens() -> None:
    """They scroll like tables: labels of a figure scaled to a phone cannot be read."""
    page = report.Report("title", "", []).html()
    narrow = page.split("@media (max-width: 36rem)")[1].split("@media print")[0]
    assert "figure { overflow-x: auto; }" in narrow
    assert "main img { max-width: none; }" in narrow


def test_page_is_well_formed(text: str, page: Page) -> None:
    """Every tag closes, identifiers are unique, links inside the page lead somewhere."""
    assert text.startswith('<!DOCTYPE html>\n<html lang="en">')
    names = [meta.attributes.get("name") for meta in page.all("meta")]
    assert "viewport" in names
    assert page.all("meta")[0].attributes == {"charset": "utf-8"}
    assert [len(page.all(tag)) for tag in ("title", "h1", "main")] == [1, 1, 1]
    ids = [one.attributes["id"] for one in page.elements if "id" in one.attributes]
    assert len(set(ids)) == len(ids)
    links = {link.attributes["href"] for link in page.all("a")}
    assert links
    assert links <= {f"#{name}" for name in ids}


def test_page_needs_nothing_else(text: str, page: Page) -> None:
    """Nothing is loaded: no address, no file, no import; and the page forbids itself to."""
    for element in page.elements:
        assert element.tag not in ("link", "iframe", "object", "base")
        for name in ("src", "href", "srcset", "action"):
            address = element.attributes.get(name, "#")
            assert address.startswith(("#", "data:image/png;base64,")), address
    assert "http:" not in text
    assert "https:" not in text
    assert "@import" not in text
    assert "url(" not in text
    policies = [meta.attributes.get("http-equiv") for meta in page.all("meta")]
    assert "Content-Security-Policy" in policies


def test_numbers_are_those_of_the_table(table: Comparison, page: Page) -> None:
    """Every field of a row, in full, with its error; those of pairs are `differences()`."""
    cells = {(row, key): cell.attributes for row, key, cell in page.cells()}
    rows = {row.guide: row.record() for row in table.rows()}
    shown = {key for row, key in cells if row in rows}
    assert {column.key for column in COLUMNS} - shown == {"ceiling", "log_p_spread", "elbo_spread"}
    for guide, record in rows.items():
        for name in shown - {"guide"}:
            found, value = cells[guide, name], record[name]
            assert found["data-value"] == str(value), name
            assert found.get("data-error", "None") == str(record.get(f"{name}_error")), name
    (difference,) = table.differences()
    pair = f"{NASTY} \N{MINUS SIGN} global"
    for name, mean in (("elbo", difference.elbo.mean), ("log_p", difference.log_p.mean)):
        found = cells[pair, f"{name}_difference"]
        assert float(found["data-value"]) == float(mean.value)
        assert float(found["data-error"]) == float(mean.population_error)
    higher = float((difference.elbo.value > 0).double().mean())
    assert float(cells[pair, "elbo_share"]["data-value"]) == pytest.approx(higher)


def test_numbers_are_read_with_error_and_definition(page: Page) -> None:
    """What is seen is the value to the digits that the error allows; the hover tells the rest."""
    heads = [head.attributes for head in page.all("th") if "data-sort" in head.attributes]
    titles = [one.attributes["title"] for one in page.all("abbr")]
    headings = {
        head["data-key"]: (head["data-name"], title)
        for head, title in zip(heads, titles, strict=True)
    }
    estimates = [
        (row, key, cell) for row, key, cell in page.cells() if "data-error" in cell.attributes
    ]
    assert len(estimates) == 2 * 8 + 2  # five of evidence, three of latents, a guide; one pair
    for row, key, cell in estimates:
        value, error = (float(cell.attributes[f"data-{name}"]) for name in ("value", "error"))
        assert cell.text.removesuffix("†") == typeset(plus_minus(value, error))
        name, definition = headings[key]
        assert cell.attributes["title"].startswith(f"{name}, {row}: ")
        assert cell.attributes["title"].endswith(definition)


def test_every_column_is_defined(page: Page) -> None:
    """At its heading, for a hover, and in the glossary that the heading links to."""
    terms = {term.text.split(" nats")[0].removesuffix(" s") for term in page.all("dt")}
    headings = [abbreviation for abbreviation in page.all("abbr") if "thead" in abbreviation.inside]
    assert len(headings) == len([th for th in page.all("th") if "data-sort" in th.attributes])
    for heading in headings:
        assert len(heading.attributes["title"]) > 20
        assert heading.text in terms


def test_tables_can_be_sorted(page: Page) -> None:
    """Every heading says how its column sorts, and every entry what it sorts by."""
    tables = page.all("table")
    assert len(tables) == 4
    assert all("data-sortable" in one.attributes for one in tables)
    kinds = {
        head.attributes["data-key"]: head.attributes["data-sort"]
        for head in page.all("th")
        if "thead" in head.inside
    }
    entries = [one for one in page.elements if one.tag in ("td", "th") and "tbody" in one.inside]
    for entry in entries:
        if kinds[entry.attributes["data-key"]] == "number":
            float(entry.attributes["data-value"])
    assert len(entries) == len(list(page.cells()))


def test_what_a_user_names_is_text(text: str, page: Page) -> None:
    """Names and notes appear as they are, in text, headings and attributes, and make no tags."""
    assert NASTY not in text
    assert "<i>&" not in text
    names = [cell.text for _, key, cell in page.cells() if key == "guide"]
    assert names == [NASTY, "global"] * 3
    assert all(NASTY in image.attributes["alt"] for image in page.all("img"))
    assert any(NASTY in cell.attributes["title"] for cell in page.all("td"))
    assert {one.text for one in page.all("b")} >= {f"{NASTY}:", "global:"}
    assert not page.all("i")
    assert COMMAND in page.all("code")[0].text


def test_figures_are_embedded(table: Comparison, page: Page) -> None:
    """Those of `plot()`, as PNG that decode to a picture of the size stated."""
    images = page.all("img")
    assert len(images) == len(table.pictures) == len(table.plot())
    # The one at the head of the page first, which is not shown again.
    pictures = {"comparison": table.pictures["comparison"], **table.pictures}
    for image, png in zip(images, pictures.values(), strict=True):
        data = base64.b64decode(image.attributes["src"].partition(",")[2], validate=True)
        assert data == png
        height, width, _ = matplotlib.image.imread(io.BytesIO(data)).shape
        assert int(image.attributes["width"]) == pytest.approx(width / 150 * 96, abs=1)
        assert int(image.attributes["height"]) == pytest.approx(height / 150 * 96, abs=1)


def test_the_answer_leads(text: str) -> None:
    """Which guide, what it costs, what cannot be trusted, how training ended; then the rest."""
    lead = text[text.index('<div class="lead">') : text.index("<nav")]
    for said in (
        "Use &#x27;",
        "held-out log p",
        "its inference gap is",
        "Log p ",
        "Training: ",
        "<img",
    ):
        assert said in lead
    assert text.index("<h1>") < text.index('<div class="lead">')


def test_the_answer_names_guides_that_are_as_good(table: Comparison, text: str) -> None:
    """The best of two that the held-out data cannot tell apart is not recommended alone."""
    rivals = [
        rival for rival in rivals_of(table.results, train_model=True) if not rival.is_significant
    ]
    assert ("This guide cannot be distinguished from" in text) == bool(rivals)
    alike = dict.fromkeys("ab", table.results[best_of(table.results, train_model=True)])
    lead = report_of({"title": replace(table, results=alike)}).html().split("<nav")[0]
    assert "This guide cannot be distinguished from &#x27;b&#x27; on all 8 data." in lead


def test_the_answer_for_a_fixed_model_is_the_highest_elbo(table: Comparison) -> None:
    """Its gap need not be the smallest: log p differs where it is conditional on global sites."""
    result = table.results["global"]
    names = ("elbo", "inference")
    up: dict[str, Any] = {
        name: Estimate(getattr(result.gap, name).value + 50, result.gap.error) for name in names
    }
    results = {**table.results, "global": replace(result, gap=replace(result.gap, **up))}
    fixed = replace(table, results=results, about={**table.about, "train_model": False})
    lead = report_of({"title": fixed}).html().split("<nav")[0]
    assert "Use &#x27;global&#x27;: its held-out ELBO is the highest" in lead
    assert "smallest" not in lead


@pytest.mark.parametrize("nats", [0.0, 0.5])
def test_the_answer_says_whether_its_guide_ignores_the_data(table: Comparison, nats: float) -> None:
    """A model that ignores z may have the highest log p, but has no embeddings."""
    best = table.results["global"]
    estimate = Estimate(torch.tensor(nats), torch.tensor(0.01))
    best = replace(best, information=replace(best.information, estimate=estimate))
    one = replace(table, results={"global": best})
    lead = report_of({"title": one}).html().split("<nav")[0]
    assert ("so embeddings of the data say nothing" in lead) == (nats == 0)


def test_learning_curves_are_in_the_units_of_the_table(table: Comparison) -> None:
    """A page has one unit."""
    curves = [
        np.asarray(one.plot()["learning_curves"].axes[0].lines[0].get_ydata(), float)
        for one in (table, replace(table, train_log_scale=7.0))
    ]
    np.testing.assert_allclose(curves[1] - curves[0], 7.0)


def test_findings_come_first(table: Comparison, text: str, page: Page) -> None:
    """The verdict is above the first table, word for word but for the signs of print."""
    said = " ".join(item.text for item in page.all("li"))
    for line in table.verdict.splitlines():
        assert line.replace("(-", "(\N{MINUS SIGN}").replace(" -", " \N{MINUS SIGN}") in said
    assert text.index("What was found</h2>") < text.index("<table")


def positive(gap: Estimate) -> Estimate:
    """A gap that no chance has put below zero."""
    return Estimate(gap.value.abs(), gap.error)


def judged(
    table: Comparison, *, doubted: int, lost: int, stopped: str, tailed: int = 0
) -> Comparison:
    """The same, but no datum is doubted except the first ones under the guide "global"."""
    results = {}
    for name, result in table.results.items():
        rows, number = torch.arange(len(result.means)), name == "global"
        marginal = replace(
            result.gap.log_marginal, doubts={Doubt.HEAVY_TAIL: rows < number * doubted}
        )
        gap = replace(
            result.gap,
            log_marginal=marginal,
            fit_converged=rows >= number * lost,
            elbo_doubts={Doubt.ELBO_TAIL: rows < number * tailed},
            inference=positive(result.gap.inference),
            approximation=positive(result.gap.approximation),
            amortization=positive(result.gap.amortization),
        )
        results[name] = replace(result, gap=gap, fit=replace(result.fit, stopped=stopped))
    return replace(table, results=results)


def test_doubts_are_told(table: Comparison) -> None:
    """In words at the top, and with a dagger at every number that rests on what is doubted."""
    clear = report_of({"": judged(table, doubted=0, lost=0, stopped="finished")}).html()
    assert "passes every check for all 8 held-out data under every guide" in clear
    assert "<sup>" not in clear
    page = Page(report_of({"": judged(table, doubted=3, lost=2, stopped="interrupted")}).html())
    (trust,) = (one.text for one in page.all("p") if one.attributes.get("class") == "aside")
    assert (
        f"global: log p(y) cannot be trusted for 3 of 8 data ({Doubt.HEAVY_TAIL.value}: 3)" in trust
    )
    assert "best q of the family was not found for 2 of 8 data" in trust
    assert f"{NASTY}: training was interrupted" in trust
    assert "passes every check" not in trust
    marked = [(row, key) for row, key, cell in page.cells() if cell.text.endswith("†")]
    assert marked == [("global", key) for key in ("log_p", "approximation", "amortization")]


def test_doubts_about_an_elbo_are_told(table: Comparison) -> None:
    """With their reason; they say nothing about log p and the family's gap."""
    html = report_of({"": judged(table, doubted=0, lost=0, stopped="finished", tailed=5)}).html()
    page = Page(html)
    said = " ".join(one.text for one in page.all("p"))
    assert f"global: the ELBO cannot be trusted for 5 of 8 data ({Doubt.ELBO_TAIL.value})" in said
    marked = [(row, key) for row, key, cell in page.cells() if cell.text.endswith("†")]
    assert marked == [("global", "elbo"), ("global", "amortization")]


def test_negative_gaps_are_told(table: Comparison) -> None:
    """A gap below zero beyond its error means that log p is too low: it is not hidden."""
    fine = judged(table, doubted=0, lost=0, stopped="finished")
    result = fine.results["global"]
    below = Estimate(result.gap.approximation.value.clone(), result.gap.approximation.error)
    below.value[0] = -100 * (1 + below.error.max())
    wrong = replace(result, gap=replace(result.gap, approximation=below))
    page = Page(report_of({"": replace(fine, results={**fine.results, "global": wrong})}).html())
    said = " ".join(one.text for one in page.all("p"))
    assert "global: a gap is negative by more than its error for 1 of 8 data" in said
    trusted = {row: cell.text for row, key, cell in page.cells() if key == "trusted"}
    assert trusted == {NASTY: "8 of 8", "global": "7 of 8"}
    marked = [(row, key) for row, key, cell in page.cells() if cell.text.endswith("†")]
    assert marked == [("global", "log_p"), ("global", "approximation")]
    alone = replace(fine, results={"global": wrong})
    assert "Log p cannot be trusted for 1 of 8 data." in report_of({"": alone}).html()
    assert "log p cannot be trusted for 1 datum" in alone.verdict


def test_an_elbo_of_minus_infinity_is_told(table: Comparison) -> None:
    """As what it is, not as a negative gap."""
    fine = judged(table, doubted=0, lost=0, stopped="finished")
    result = fine.results["global"]
    elbo = Estimate(result.gap.elbo.value.clone(), result.gap.elbo.error)
    elbo.value[0] = -torch.inf
    wrong = replace(result, gap=replace(result.gap, elbo=elbo))
    page = Page(report_of({"": replace(fine, results={**fine.results, "global": wrong})}).html())
    said = " ".join(one.text for one in page.all("p"))
    assert f"the ELBO cannot be trusted for 1 of 8 data ({Doubt.INFINITE.value})" in said
    assert "negative" not in said


def test_partly_covered_data_are_counted(table: Comparison, page: Page) -> None:
    """The share of the table, as a number of data."""
    counts = {row: cell.text for row, key, cell in page.cells() if key == "partly_covered"}
    expected = {row.guide: f"{row.number('partly_covered') * 8:.0f} of 8" for row in table.rows()}
    assert counts == expected


def test_how_to_repeat_it(table: Comparison, page: Page) -> None:
    """The command, versions and settings; long ones are cut, since run.json has them."""
    (code,) = (one.text for one in page.all("code"))
    assert f"pyro-vae {pv.__version__}" in code
    assert f"torch=={torch.__version__.split('+')[0]}" in code
    facts = dict(
        zip(
            (one.text for one in page.all("dt")),
            (one.text for one in page.all("dd")),
            strict=True,
        )
    )
    assert facts["seed"] == "0"
    assert facts["data set"] == "noise <i>&"
    assert facts["num train"] == "20"
    assert facts["things"].startswith("0, 1, 2, ")
    assert facts["things"].endswith("…")
    assert torch.__version__.split("+")[0] in facts["versions"]
    by_hand = replace(table, about={"optimizer": f"{object()}"})
    text = Page(report_of({"": by_hand}).html())
    assert "called from Python" in text.all("code")[0].text
    assert not any(" at 0x" in one.text for one in text.all("dd"))


def test_two_comparisons_on_one_page(table: Comparison) -> None:
    """Each has its findings and its section; settings that differ are told of each."""
    fixed = replace(table, about={**table.about, "train_model": False, "num_test": 9})
    assert title_of(table) != title_of(fixed)
    page = Page(report_of({"free": table, "held": fixed}).html())
    assert [one.text for one in page.all("h2")] == [
        *("What was found", "free", "held", "To repeat it", "Glossary"),
    ]
    assert len(page.all("table")) == 8
    paragraphs = " ".join(one.text for one in page.all("p"))
    assert "only log p can be compared between guides" in paragraphs
    assert "ELBOs can be compared, too" in paragraphs
    assert "free: 8; held: 9" in {one.text for one in page.all("dd")}


def test_spread_between_seeds(table: Comparison, page: Page) -> None:
    """It has columns where there are several seeds, and it is said where there are not."""
    assert not [key for _, key, _ in page.cells() if key.endswith("_spread")]
    assert "one seed" in " ".join(one.text for one in page.all("p"))
    again = Page(report_of({"": replace(table, others=(table, table))}).html())
    spreads = [cell for _, key, cell in again.cells() if key.endswith("_spread")]
    values = [float(cell.attributes["data-value"]) for cell in spreads]
    assert values == pytest.approx([0.0] * 4, abs=1e-12)  # equal but for the rounding of a mean
    assert "spread between 3 seeds" in " ".join(one.text for one in again.all("p"))


@pytest.mark.parametrize(
    ("value", "error", "expected"),
    [
        (-25.56712, 0.0019, "\N{MINUS SIGN}25.5671 ± 0.0019"),
        (1234.5, 130.0, "1234 ± 130"),
        (0.5, 0.0, "0.5000 ± 0.0000"),
        (0.5, 1e-9, "0.5000 ± <0.0001"),
        (0.5, float("inf"), "0.500 ± inf"),
        (0.5, float("nan"), "0.50"),
        (-1e-7, 0.001, "0.0000 ± 0.0010"),
    ],
)
def test_digits_follow_the_error(value: float, error: float, expected: str) -> None:
    """Two digits of the error, at most four decimals, and a bound where that shows none."""
    assert typeset(plus_minus(value, error)) == expected


def test_mistakes_are_refused() -> None:
    """A row that is too short, and a picture that is none; nan is a dash, and sorts as nan."""
    column = report.Column("a", "a", "What a is.")
    with pytest.raises(ValueError, match="must have 1 cell; got"):
        report.Table("two", [column], [[report.words("x"), report.number(1.0)]])
    with pytest.raises(ValueError, match="PNG file"):
        report.Figure(b"GIF89a", "a picture")
    missing = report.number(float("nan"), "nan")
    assert (missing.text, str(missing.value)) == ("\N{EM DASH}", "nan")
