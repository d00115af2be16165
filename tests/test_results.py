"""The contract of results: every one, by name, against all that the contract promises.

A new result is one line in `PER_DATUM` or `OTHERS`.
"""

import math
import re
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from html import unescape
from inspect import signature
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.axes import Axes
from torch import Tensor

import pyro_vae as pv
from pyro_vae import (
    comparisons,
    criticism,
    diagnostics,
    evidence,
    gaps,
    guides,
    models,
    queries,
    training,
)
from pyro_vae.plots.drawing import figure_of
from pyro_vae.results import Doubt, Mean, PerDatum, Result, join, with_rows

VALUES = torch.tensor([-1.0, -2.0, -6.0], dtype=torch.float64)
ERRORS = torch.tensor([0.3, 0.4, 1.2], dtype=torch.float64)
LAST = torch.tensor([False, False, True])


def log_marginal(shift: float = 0.0) -> evidence.LogMarginal:
    """Of three data, the last of which is doubted."""
    samples = torch.full((3,), 10)
    doubts = {Doubt.HEAVY_TAIL: LAST, Doubt.SEVERAL_MODES: ~LAST & LAST}
    return evidence.LogMarginal(
        VALUES + shift, ERRORS, 2 + VALUES.exp(), ERRORS, samples, doubts=doubts, given="w = 1"
    )


def ladder() -> evidence.LadderMarginal:
    """By quadrature, by the guide, and by nothing."""
    whole = log_marginal()
    own = {entry.name: getattr(whole, entry.name) for entry in fields(whole)}
    return evidence.LadderMarginal(**own, rung=torch.tensor([2, 3, 0]))


def estimate(shift: float = 0.0) -> pv.Estimate:
    """Of three data."""
    return pv.Estimate(VALUES + shift, ERRORS)


def inference_gap() -> gaps.InferenceGap:
    """The ELBO is 3 below, 1 of it by the family."""
    family = gaps.FamilyGap(estimate(-0.5), estimate(4.0), estimate(0.5), ~LAST)
    zero = torch.zeros_like(VALUES)
    return gaps.InferenceGap(
        log_marginal(), estimate(-3.0), estimate(-1.0), pv.Estimate(zero + 1, ERRORS),
        pv.Estimate(zero + 2, ERRORS), pv.Estimate(zero + 3, ERRORS), ~LAST, {"flow": family}, 10,
    )  # fmt: skip


def bound() -> evidence.EvidenceLowerBound:
    """An ELBO; nothing speaks against it."""
    return evidence.EvidenceLowerBound(estimate(), estimate(7.0), estimate(1.0), 10)


def difference() -> criticism.PairedDifference:
    """Log p under one model less that under another."""
    return criticism.paired_difference(log_marginal(), log_marginal(-1.0))


def imputation() -> queries.Imputation:
    """Three rows of two columns; the second is missing."""
    y = torch.stack([VALUES, VALUES + 1], dim=1)
    missing = torch.tensor([[False, True]] * 3)
    noise = torch.arange(5.0).double().reshape(5, 1, 1) * missing
    return queries.Imputation(
        y + noise, y, missing * 0.5, pv.Estimate(missing * 1.0, missing * 0.1), missing, ERRORS,
        ERRORS, {Doubt.HEAVY_TAIL: LAST},
    )  # fmt: skip


def curves() -> queries.ConditionalDensity:
    """On four points."""
    density = pv.Estimate(VALUES.exp()[:, None].expand(3, 4), ERRORS[:, None].expand(3, 4))
    return queries.ConditionalDensity("height", torch.linspace(0, 1, 4), density, log_marginal())


def outliers() -> queries.Outliers:
    """Against nine reference data."""
    tail = pv.Estimate(VALUES.exp(), ERRORS / 10)
    reference = torch.linspace(-9, 0, 9)[:, None].expand(9, 3)
    return queries.Outliers(tail, log_marginal(), reference, torch.full((3,), 9))


def p_values_parts() -> tuple[Any, ...]:
    """Of three data, the last of which cannot be tested."""
    p_value = pv.Estimate(VALUES.exp(), ERRORS / 10)
    return p_value, ERRORS, "q is p", "distance", {Doubt.FEW_EFFECTIVE_DRAWS: LAST}


def p_values() -> diagnostics.PValues:
    """That q is p."""
    return diagnostics.PValues(*p_values_parts())


def one(value: float) -> pv.Estimate:
    """A number with an error."""
    return pv.Estimate(torch.tensor(float(value)), torch.tensor(0.1))


def two() -> pv.Estimate:
    """Of two latents."""
    return pv.Estimate(torch.tensor([1.0, 2.0]), torch.tensor([0.1, 0.1]))


def sandwich() -> evidence.Sandwich:
    """Bounds one nat apart."""
    upper = replace(log_marginal(1.0), bound=evidence.Bound.UPPER)
    return evidence.Sandwich(log_marginal(), upper, (torch.zeros(3, 2),))


def traversal() -> queries.Traversal:
    """Along two latents."""
    return queries.Traversal(
        torch.arange(2),
        ("z[0]", "z[1]"),
        two(),
        (0.1, 0.9),
        torch.zeros(2, 2),
        torch.randn(2, 2, 3),
        torch.zeros(2),
    )


PER_DATUM: dict[str, Callable[[], PerDatum]] = {
    "log marginal": log_marginal,
    "ladder": ladder,
    "bound": bound,
    "audit": lambda: evidence.Audit(estimate(-3.0), log_marginal(), estimate(4.0)),
    "sandwich": sandwich,
    "gap": inference_gap,
    "family": lambda: inference_gap().families["flow"],
    "imputation": imputation,
    "curves": curves,
    "outliers": outliers,
    "difference by datum": difference,
    "row fit": lambda: guides.RowFit(torch.ones(3, 2), *estimate(), ~LAST, 20, torch.zeros(3)),
    "p-values": p_values,
    "posterior calibration": lambda: diagnostics.PosteriorCalibration(
        *p_values_parts(),
        ranks=torch.arange(3 * 20).reshape(3, 20, 1) % 20,
        ess=torch.ones(3).double(),
        names=("z",),
        num_samples=19,
    ),
    "out of distribution": lambda: diagnostics.OutOfDistribution(
        *p_values_parts(), deviations=torch.ones(3, 2).double(), names=("rate", "distortion")
    ),
    "two estimators": lambda: evidence.Comparison(
        "a", "b", *estimate(), {Doubt.HEAVY_TAIL: LAST}, -math.inf, 4.0
    ),
}
OTHERS: dict[str, Callable[[], Result]] = {
    "evaluation": lambda: evidence.Evaluation(bound(), log_marginal()),
    "generalization": lambda: gaps.generalization(inference_gap(), inference_gap()),
}
OTHERS |= {
    "collapse": lambda: diagnostics.Collapse(
        two(), two(), two(), torch.ones(2), (diagnostics.Use.USED,) * 2, ("z[0]", "z[1]")
    ),
    "surgery": lambda: diagnostics.Surgery(one(1), one(2), one(3), one(4), one(-7), 2.5, 10),
    "information": lambda: diagnostics.MutualInformation(one(1), 2.5, 10),
    "prior match": lambda: diagnostics.PriorMatch(
        0.5, torch.ones(2), torch.ones(2), torch.randn(20, 2), torch.randn(20, 2), ("a", "b")
    ),
    "calibration": lambda: diagnostics.Calibration(
        torch.arange(20).reshape(20, 1), ("z",), 19, (torch.zeros(20),)
    ),
    "leave one out": lambda: diagnostics.LeaveOneOut(
        torch.arange(20).reshape(20, 1), ("a",), 19, (torch.zeros(20),),
        ess=torch.ones(20, 1).double(),
    ),
    "predictive": lambda: diagnostics.PredictiveCheck(
        ("mean",), torch.zeros(1).double(), torch.linspace(-1, 1, 50).double()[:, None],
        pv.Estimate(torch.tensor([0.5]).double(), torch.tensor([0.1]).double()),
    ),
    "gradients": lambda: diagnostics.GradientNoise(
        20, {"guide.w": torch.Size([2])}, (10, 10), torch.ones(2).double(),
        torch.tensor([[0.1, 0.2], [0.3, -0.1]]).double(), torch.ones(2, 2).double(),
    ),
    "fit": lambda: training.Fit(training.History(*[np.ones(3)] * 8), "finished", 3, 0, ("w",)),
    "check": lambda: evidence.CrossCheck(
        torch.arange(3), {"a": log_marginal(), "b": log_marginal()},
        (
            evidence.Comparison(
                "a", "b", *difference().estimate, {Doubt.HEAVY_TAIL: LAST}, -math.inf, 4.0
            ),
        ), {}, 1e-3,
    ),
    "gradient of a parameter": lambda: diagnostics.ParameterNoise(two(), two(), two()),
    "em": lambda: models.EMFit(torch.tensor([-3.0, -2.0]), 5, converged=True),
    "difference": lambda: comparisons.Difference("a", "b", difference(), difference()),
    "rate and distortion": lambda: diagnostics.RateDistortion(
        tuple(
            diagnostics.TradeOff(
                beta, diagnostics.Surgery(one(1), one(2), one(3), one(4), one(-7), 2.5, 10), None,
                None, None, training.Fit(training.History(*[np.ones(3)] * 8), "early", 3, 0, ()),
            )
            for beta in (0.5, 1.0)
        ), 9.0,
    ),
    "dependence": lambda: queries.Dependence(
        pv.Estimate(torch.eye(2), torch.zeros(2, 2)), ("age", "size"), "correlation"
    ),
    "similarity": lambda: queries.Similarity(
        pv.Estimate(torch.eye(2), torch.zeros(2, 2)), torch.eye(2, dtype=torch.bool)
    ),
    "traversal": traversal,
    "explanation": lambda: queries.Explanation(
        traversal(), ("age", "size", "mass"), torch.ones(2, 3), (("up",) * 3,) * 2
    ),
    "models": lambda: criticism.compare_models({"x": log_marginal(), "y": log_marginal(-1.0)}),
}  # fmt: skip
EVERY = {**PER_DATUM, **OTHERS}

per_datum = pytest.mark.parametrize("make", PER_DATUM.values(), ids=PER_DATUM)
every = pytest.mark.parametrize("make", EVERY.values(), ids=EVERY)


@every
def test_a_result_describes_itself(make: Callable[[], Result]) -> None:
    """In words, in a line or two, and in a notebook without anything that HTML would swallow."""
    result, opened = make(), pyplot.get_fignums()
    text, line, page = result.summary(), repr(result), result._repr_html_()
    assert text.strip()
    assert line.startswith(f"<{type(result).__name__}: ")
    assert len(line.splitlines()) <= 2
    assert "tensor(" not in text + line + page
    shown = re.sub(r"</?(?:p|div|table|thead|tbody|tr|th|td|img)\b[^>]*>", "\n", page)
    assert "<" not in shown
    assert unescape(shown).split() == [
        word for word in text.split() if word.strip("-") or word == "-"
    ]
    assert page.count("<table") == bool(re.search(r"\S {2,}\S", text))
    assert pyplot.get_fignums() == opened, "the picture is drawn and closed"


def test_tables_and_prose_differ_in_a_notebook() -> None:
    """Columns become cells; a sentence is wrapped where the page ends; no plot, no picture."""

    class Told(Result):
        def summary(self) -> str:
            return "a b    c\n--------\n  1  2.0\n\nOne <two."

    page = Told()._repr_html_()
    cells = re.findall(r"<t[hd]\b[^>]*>(.*?)</t[hd]>", page)
    assert cells == ["a b", "c", "&nbsp;&nbsp;1", "2.0"]
    assert page.endswith("</table></div><p>One &lt;two.</p>")


def test_a_notebook_shows_the_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a picture, below the text: if matplotlib is there, and drawing takes no seconds."""
    figure = pyplot.figure()
    page = log_marginal()._repr_html_()
    assert re.search(r'<img alt="plot of this LogMarginal" src="data:image/png;base64,iVBOR', page)
    assert pyplot.gcf() is figure, "the user's figure is still the current one"
    pyplot.close(figure)
    many = log_marginal()[torch.zeros(6000, dtype=torch.int64)]
    assert "<img" not in many._repr_html_()
    assert "<img" not in imputation()._repr_html_()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "<img" not in log_marginal()._repr_html_()
    assert "<p>log p(y)" in log_marginal()._repr_html_()


def returned(plot: Callable[..., Any]) -> Any:
    """What the signature of a plot says that it returns: axes, or an array of axes."""
    said = str(signature(plot).return_annotation)
    is_array = said.startswith(("numpy.ndarray", "NDArray"))  # as NumPy's version names it
    assert said in ("Axes", "Axes | NDArray[Any]") or is_array
    return np.ndarray if is_array else Axes


@every
def test_a_result_draws_itself(make: Callable[[], Result]) -> None:
    """In a figure of pyplot; it returns the axes, or an array of them, as its signature says."""
    result = make()
    drawn: Any = result.plot()
    assert isinstance(drawn, returned(type(result).plot))
    assert isinstance(drawn, Axes) or drawn.ndim in (1, 2)
    assert {type(ax) for ax in np.ravel(drawn)} == {Axes}
    assert figure_of(drawn) is pyplot.gcf()
    pyplot.close("all")


PLOTS = {name: plot for name, plot in vars(pv.plots).items() if name.startswith("plot_")}


@pytest.mark.parametrize("plot", PLOTS.values(), ids=PLOTS)
def test_a_plot_returns_axes_or_an_array_of_axes(plot: Callable[..., Any]) -> None:
    """Axes if it draws into one `ax`, and an array if it draws panels into a `figure`."""
    places = {"ax", "figure"} & set(signature(plot).parameters)
    assert places == {"ax" if returned(plot) is Axes else "figure"}


def test_rounds_of_em_are_counted_from_the_start() -> None:
    """The first value is that of the start, before the first round."""
    import matplotlib.pyplot as plt

    [line] = pv.models.EMFit(torch.tensor([-3.0, -2.0]), 5, converged=True).plot().get_lines()
    assert np.array_equal(line.get_xdata(), [0, 1])
    plt.close("all")


def counted(result: PerDatum) -> int:
    """Data that some reason holds for."""
    masks = [mask for mask in result.doubts.values() if mask.any()]
    return int(torch.stack(masks).any(dim=0).sum()) if masks else 0


@per_datum
def test_doubts_are_masks_counts_and_words(make: Callable[[], PerDatum]) -> None:
    """Reliable is what no reason holds for; the reasons of a row are those whose mask says so."""
    result = make()
    assert int((~result.reliable).sum()) == counted(result)
    for row in range(3):
        assert bool(result.reliable[row]) == (not result.why_not(row))
    for doubt, count in result.doubt_counts.items():
        assert isinstance(doubt, Doubt)
        assert count == sum(doubt.value in result.why_not(row) for row in range(3)) > 0
        assert f"{doubt.value}: {count}" in result.reasons


@per_datum
def test_rows_are_of_the_same_data(make: Callable[[], PerDatum]) -> None:
    """By position, mask, slice and list; joined again they are the whole."""
    result = make()
    assert len(result) == 3
    for rows in (torch.tensor([2]), LAST, slice(2, None), [2], 2, -1):
        one = result[rows]
        assert len(one) == 1
        torch.testing.assert_close(one.value, result.value[2:], equal_nan=True)
        torch.testing.assert_close(one.error, result.error[2:], equal_nan=True)
        assert one.why_not(0) == result.why_not(2)
    with pytest.raises(IndexError):
        result[3]
    whole = join([result[:1], result[1:]])
    assert_same(whole, result)
    reversed_ = result[[2, 1, 0]]
    assert_same(result[::-1], reversed_)
    assert_same(with_rows(result, torch.tensor([0, 2]), reversed_[[0, 2]]), reversed_)


@per_datum
def test_no_data_say_so(make: Callable[[], PerDatum]) -> None:
    """`result[~result.reliable]` is often empty; no mean of nothing is shown."""
    none = make()[:0]
    assert none.summary() == "no data"
    assert repr(none) == f"<{type(none).__name__}: no data>"
    assert none._repr_html_() == "<p>no data</p>"
    assert len(none.to_dataframe()) == 0


def assert_same(one: PerDatum, other: PerDatum) -> None:
    """Every column, and every doubt."""
    for name, column in one.columns().items():
        torch.testing.assert_close(column, other.columns()[name], equal_nan=True)
    assert {d: m.tolist() for d, m in one.doubts.items()} == {
        d: m.tolist() for d, m in other.doubts.items()
    }


@per_datum
def test_a_frame_has_a_row_per_datum(make: Callable[[], PerDatum]) -> None:
    """Its numbers are the result's, and it says whom not to trust."""
    result = make()
    frame = result.to_dataframe()
    assert len(frame) == 3
    assert frame["reliable"].tolist() == result.reliable.tolist()
    assert frame["why_not"].tolist() == ["; ".join(result.why_not(row)) for row in range(3)]
    for name, column in result.columns().items():
        shown = [c for c in frame.columns if c == name or c.startswith(f"{name}[")]
        torch.testing.assert_close(
            torch.tensor(frame[shown].to_numpy()).reshape(column.shape).to(column), column
        )


@pytest.mark.parametrize("make", [log_marginal, sandwich, curves, outliers])
def test_a_mean_leaves_out_nobody_in_silence(make: Callable[[], PerDatum]) -> None:
    """It is over all data, with the error of all, and says what it is without the doubted one."""
    result = make()
    mean = result.mean
    assert isinstance(mean, Mean)
    torch.testing.assert_close(mean.value, result.value.mean(dim=0))
    torch.testing.assert_close(mean.error, result.error.square().sum(dim=0).sqrt() / 3)
    torch.testing.assert_close(mean.trusted.value, result.value[:2].mean(dim=0))
    assert "1 of 3 data cannot be trusted" in repr(mean)
    assert f"{mean.trusted} without them" in repr(mean)
    none = torch.zeros(3, dtype=torch.bool)
    assert repr(Mean.over(result.estimate, none)).endswith("(3 of 3 data cannot be trusted)")
    assert "cannot be trusted" not in repr(result[:2].mean)
    assert "cannot be trusted" not in f"{mean:.3f}"


def test_every_part_of_a_gap_has_a_mean_that_says_so() -> None:
    """Doubts of log p or of the fit hold for all parts."""
    for part in inference_gap().mean:
        assert isinstance(part, Mean)
        assert part.num_doubted == 1


def test_nobody_to_trust() -> None:
    """The mean without the doubted data is no number, and is not printed as one."""
    result = replace(log_marginal(), doubts={Doubt.NO_TAIL: ~LAST | LAST})
    assert result.mean.trusted.value.isnan()
    few = "there are fewer than 30 draws, too few to fit the tail of the weights"
    assert result.trust() == f"3 of 3 data cannot be trusted ({few}: 3)"


def test_totals_add_up() -> None:
    """Of what is in nats and independent over data."""
    for result in (log_marginal(), bound()):
        assert f"{result.total}" == "-9.0 ± 1.3"
        assert float(result.total.value) == pytest.approx(-9.0)


def test_joining_without_doubts() -> None:
    """A part that has none of them, as one in closed form, holds nobody back."""
    plain = replace(log_marginal(), doubts={})
    for parts, expected in (
        ([plain, log_marginal()], [False] * 5 + [True]),
        ([log_marginal(), plain], [False] * 2 + [True] + [False] * 3),
    ):
        assert (~join(parts).reliable).tolist() == expected


def test_replaced_rows_bring_their_doubts() -> None:
    """Also those that the first result does not know."""
    other = replace(log_marginal(), doubts={Doubt.NO_TAIL: LAST})
    mended = with_rows(log_marginal(), torch.tensor([2]), other[2])
    assert mended.why_not(2) == [Doubt.NO_TAIL.value]
    assert mended.reliable.tolist() == [True, True, False]


def test_a_frame_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pandas."""
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"pip install 'pyro-vae\[data\]'"):
        log_marginal().to_dataframe()


def named(module: Any) -> set[str]:
    """Public results of a module."""
    return {
        name
        for name, entry in vars(module).items()
        if isinstance(entry, type) and issubclass(entry, Result) and entry not in (Result, PerDatum)
    }


def test_every_result_is_in_a_table() -> None:
    """A result that is in neither would be tested by nobody."""
    known = {type(make()).__name__ for make in EVERY.values()}
    modules = (criticism, diagnostics, evidence, gaps, guides, models, queries, training)
    for module in modules:
        assert named(module) <= known, module.__name__


def test_a_column_out_of_place_is_caught() -> None:
    """The check of rows fails on a result whose rows are others'."""

    class Wrong(evidence.LogMarginal):
        def columns(self) -> dict[str, Tensor]:
            return {**super().columns(), "log_p": self.value.flip(0)}

    one = log_marginal()
    wrong = Wrong(one.value, one.error, one.ess, one.pareto_k, one.num_samples)
    with pytest.raises(AssertionError):
        assert_same(wrong[:2], one[:2])
