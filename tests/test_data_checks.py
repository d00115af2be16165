"""Checks at the door."""

import warnings

import numpy as np
import pytest
import torch
from torch import Tensor

from pyro_vae.data.checks import check_batch, check_range, constant_columns, warn_constant_columns

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "batch",
    [
        (torch.zeros(3, 2),),
        (torch.zeros(1, 2),),  # one row is a batch
        (torch.zeros(3, 4, 4), torch.arange(3), torch.zeros(3, dtype=torch.float64)),
        (torch.zeros(3, 4), torch.ones(3, 4, dtype=torch.bool)),
    ],
    ids=["one", "one-row", "three", "mask"],
)
def test_good_batches_pass(batch: tuple[Tensor, ...]) -> None:
    """One tensor or several, one row or many, floating or integer."""
    check_batch(*batch)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((), "at least one tensor; got none"),
        ((torch.tensor(1.0),), r"must index the data; got shapes \[\(\)\]: use y\[None\]"),
        ((torch.zeros(3, 2), torch.zeros(4)), r"same number of rows, .* got \[3, 4\]"),
        (
            (torch.zeros(0, 2),),
            r"a batch must have at least one row .* got shapes \[\(0, 2\)\]",
        ),
        ((torch.zeros(2, 0),), "a batch must have at least one row"),
        (
            (torch.zeros(2, 1), torch.tensor([1.0, NAN])),
            r"tensor 1 of the data has 1 nan and 0 inf .* row 1,",
        ),
        (
            (torch.tensor([[1.0, -INF]]),),
            r"0 nan and 1 inf among its 2 values, at row 0, column 1,",
        ),
        ((torch.full((2, 2, 3), NAN),), r"first at row 0, column 0, 0; .*; row 0, column 1, 1,"),
        ((torch.full((4, 2), NAN),), r"drop these rows \(4 of 4\), or replace"),
    ],
)
def test_bad_batches_are_refused(batch: tuple[Tensor, ...], message: str) -> None:
    """Each fault is told with what was found and what to do."""
    with pytest.raises(ValueError, match=message):
        check_batch(*batch)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (
            (np.zeros((3, 2)),),
            r"part 0 of the data must be a torch tensor.*got numpy.ndarray: convert",
        ),
        ((torch.zeros(3), [1, 2, 3]), r"part 1 of the data .* got builtins.list"),
        (
            (torch.zeros(3, dtype=torch.bool),),
            r"floating-point or integer; got torch.bool: .*y.float\(\)",
        ),
        ((torch.zeros(3, dtype=torch.complex64),), "got torch.complex64: .*view_as_real"),
    ],
)
def test_other_things_than_numbers_are_refused(batch: tuple[object, ...], message: str) -> None:
    """Arrays, lists, bool and complex tensors: the message names which, and the remedy."""
    with pytest.raises(TypeError, match=message):
        check_batch(*batch)


def test_nan_is_named_by_row_and_column() -> None:
    """The place of each nan and inf, with the name of its column."""
    y = torch.zeros(8, 3)
    y[5, 2], y[7, 0] = NAN, INF
    with pytest.raises(
        ValueError, match=r"at row 5, column 2 \('c'\); row 7, column 0 \('a'\), cou"
    ):
        check_batch(y, names=["a", "b", "c"])


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (
            [[0.0, 255.0], [17.0, 1.0]],
            r"which excludes 2 of 4 values \(.* from 0 to 255\).*divide by 255, as in y / 255",
        ),
        ([[0.0, 200.5]], "divide by 255, as in y / 255"),  # grey levels that were interpolated
        ([[0.0, 16.0]], "divide by 16, as in y / 16"),
        ([[0.0, 1.5]], "rescale the data, or use a likelihood"),
        ([[0.0, 1000.0]], "rescale the data, or use a likelihood"),
        (
            [[-1.0, 255.0]],
            r"range from -1 to 255\), at row 0, column 0; row 0, column 1, .* rescale",
        ),
        ([[0.0, INF]], "0 nan and 1 inf"),
        ([[NAN, 255.0]], r"range from 255 to 255\), at row 0, column 1"),
    ],
)
def test_range_of_a_bernoulli(y: list[list[float]], message: str) -> None:
    """What the values look like decides the remedy."""
    with pytest.raises(ValueError, match=message):
        check_range(torch.tensor(y), low=0, high=1, likelihood="Bernoulli")


def test_bytes_under_a_bernoulli_are_refused() -> None:
    """Pixels as they come out of a file, in an unsigned dtype."""
    y = torch.tensor([[0, 255]], dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"Bernoulli takes only values in \[0, 1\].*divide by 255"):
        check_range(y, low=0, high=1, likelihood="Bernoulli")


def test_range_inside_and_remedy_of_the_callers() -> None:
    """Bounds belong to the range; either may be left out."""
    check_range(torch.tensor([[0.0, 1.0]]), low=0, high=1, likelihood="Bernoulli")
    check_range(torch.tensor([[-1e30, 1e30]]), likelihood="Gaussian")
    with pytest.raises(
        ValueError, match=r"Poisson takes only values of at least 0.*: count something"
    ):
        check_range(torch.tensor([-1.0]), low=0, likelihood="Poisson", remedy="count something")
    with pytest.raises(ValueError, match="takes only values of at most 0"):
        check_range(torch.tensor([1.0]), high=0, likelihood="minus a Poisson")


def test_constant_columns() -> None:
    """Zeros of either sign are the same value; one row says nothing."""
    y = torch.tensor([[1.0, 2.0, 0.0], [1.0, 3.0, -0.0]])
    assert constant_columns(y) == [0, 2]
    assert constant_columns(y[:1]) == []  # one row says nothing
    assert constant_columns(torch.ones(4)) == [0]
    assert constant_columns(torch.stack([torch.zeros(2, 2), torch.eye(2)])) == [1, 2]


def test_constant_columns_are_named_ten_at_most() -> None:
    """By name, or by position; none is no warning."""
    y = torch.ones(3, 12)
    with pytest.warns(
        UserWarning, match=r"12 of 12 columns over 3 rows \('a', .*, 'e' and 7 more\):"
    ):
        warn_constant_columns(y, names=tuple("abcdefghijkl"))
    with pytest.warns(
        UserWarning, match=r"constant in 2 of 2 columns over 3 rows \(0, 1\): drop these columns"
    ):
        warn_constant_columns(y[:, :2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_constant_columns(torch.eye(3))


def test_checks_take_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a memory map larger than memory can be checked; a fault in the last rows is found."""
    seen: list[int] = []

    own = torch.isfinite

    def isfinite(y: Tensor) -> Tensor:
        seen.append(len(y))
        return own(y)

    monkeypatch.setattr(torch, "isfinite", isfinite)
    monkeypatch.setattr("pyro_vae.data.checks._VALUES_AT_ONCE", 8)
    y = torch.ones(11, 2)
    check_batch(y)
    assert max(seen) == 4
    assert sum(seen) == 11
    check_range(y, 0, 1, likelihood="Bernoulli")
    y[10, 1] = 3.0
    with pytest.raises(
        ValueError, match=r"which excludes 1 of 22 values \(.* from 1 to 3\), at row 10"
    ):
        check_range(y, 0, 1, likelihood="Bernoulli")
    y[10, 1] = torch.inf
    for missing in ((), (0,)):
        with pytest.raises(ValueError, match=r"1 inf among its 22 values, at row 10, column 1"):
            check_batch(y, missing=missing)
