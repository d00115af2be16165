"""Checks at the door, and seeds that move with the rows."""

import warnings
from hashlib import blake2b

import numpy as np
import pytest
import torch
from torch import Tensor

from pyro_vae.data import (
    check_batch,
    check_range,
    constant_columns,
    row_digests,
    row_seeds,
    warn_constant_columns,
)
from pyro_vae.data.checks import DIGEST_ROWS

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
        ((), "at least one tensor, got none"),
        ((torch.tensor(1.0),), r"datum axis leftmost; got shapes \[\(\)\]: use y\[None\]"),
        ((torch.zeros(3, 2), torch.zeros(4)), r"same number of rows, .* got \[3, 4\]"),
        (
            (torch.zeros(0, 2),),
            r"batch is empty \(shapes \[\(0, 2\)\]\): expected at least one row",
        ),
        ((torch.zeros(2, 0),), "batch is empty"),
        (
            (torch.zeros(2, 1), torch.tensor([1.0, NAN])),
            r"batch\[1\] has 1 nan and 0 inf .* row 1,",
        ),
        (
            (torch.tensor([[1.0, -INF]]),),
            r"0 nan and 1 inf among its 2 values, at row 0, column 1,",
        ),
        ((torch.full((2, 2, 3), NAN),), r"first at row 0, column 0, 0; .*; row 0, column 1, 1,"),
        ((torch.full((4, 2), NAN),), r"drop these rows \(4 of 4\), or fill in"),
    ],
)
def test_bad_batches_are_refused(batch: tuple[Tensor, ...], message: str) -> None:
    """Each fault is told with what was found and what to do."""
    with pytest.raises(ValueError, match=message):
        check_batch(*batch)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((np.zeros((3, 2)),), r"batch\[0\] should be a torch tensor.*got numpy.ndarray: convert"),
        ((torch.zeros(3), [1, 2, 3]), r"batch\[1\] .* got builtins.list"),
        (
            (torch.zeros(3, dtype=torch.bool),),
            r"floating or integer, got torch.bool: .*y.float\(\)",
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
            r"2 of 4 are outside \(found 0 to 255\).*divide by 255: y / 255",
        ),
        ([[0.0, 200.5]], "divide by 255: y / 255"),  # grey levels that were interpolated
        ([[0.0, 16.0]], "divide by 16: y / 16"),
        ([[0.0, 1.5]], "rescale the data, or take a likelihood"),
        ([[0.0, 1000.0]], "rescale the data, or take a likelihood"),
        ([[-1.0, 255.0]], r"found -1 to 255\), at row 0, column 0; row 0, column 1, .* rescale"),
        ([[0.0, INF]], "0 nan and 1 inf"),
        ([[NAN, 255.0]], r"found 255 to 255\), at row 0, column 1"),
    ],
)
def test_range_of_a_bernoulli(y: list[list[float]], message: str) -> None:
    """What the values look like decides the remedy."""
    with pytest.raises(ValueError, match=message):
        check_range(torch.tensor(y), low=0, high=1, likelihood="Bernoulli")


def test_bytes_under_a_bernoulli_are_refused() -> None:
    """Pixels as they come out of a file, in an unsigned dtype."""
    y = torch.tensor([[0, 255]], dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"Bernoulli needs values in \[0, 1\].*divide by 255"):
        check_range(y, low=0, high=1, likelihood="Bernoulli")


def test_range_inside_and_remedy_of_the_callers() -> None:
    """Bounds belong to the range; either may be left out."""
    check_range(torch.tensor([[0.0, 1.0]]), low=0, high=1, likelihood="Bernoulli")
    check_range(torch.tensor([[-1e30, 1e30]]), likelihood="Gaussian")
    with pytest.raises(ValueError, match=r"Poisson needs values of at least 0.*; count something"):
        check_range(torch.tensor([-1.0]), low=0, likelihood="Poisson", remedy="count something")
    with pytest.raises(ValueError, match="needs values of at most 0"):
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
        UserWarning, match=r"12 of 12 columns .* over 3 rows: 'a', .*, 'j' \+2 more;"
    ):
        warn_constant_columns(y, names="abcdefghijkl")
    with pytest.warns(
        UserWarning, match=r"2 of 2 columns are constant over 3 rows: 0, 1; drop them"
    ):
        warn_constant_columns(y[:, :2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_constant_columns(torch.eye(3))


def test_digests_are_of_numbers() -> None:
    """Neither dtype nor layout nor the sign of a zero plays a part; every number does."""
    y = torch.randint(-3, 4, (20, 6)).float()
    expected = row_digests(y)
    wide = torch.empty(20, 12)
    wide[:, ::2] = y
    for same in (
        y.double(),
        y.half(),
        y.long(),
        y.T.contiguous().T,
        wide[:, ::2],
        y.flip(0).flip(0),
    ):
        assert torch.equal(row_digests(same), expected)
    assert torch.equal(row_digests(y[:, :2], y[:, 2:]), expected)
    assert torch.equal(row_digests(-torch.zeros(1, 2)), row_digests(torch.zeros(1, 2)))
    changed = y.clone()
    changed[3, 4] = torch.nextafter(changed[3, 4], torch.tensor(9.0))
    assert torch.equal(row_digests(changed) != expected, torch.arange(20) == 3)


def test_digests_and_seeds_stay_what_they_are() -> None:
    """Numbers that depend on a seed can be repeated by later versions."""
    y = torch.tensor([[0.5, -1.0], [0.5, -1.0]])
    digest = row_digests(y)[0].item()
    assert digest == int.from_bytes(_blake2b(np.array([0.5, -1.0], "<f8")), "little", signed=True)
    keys = [np.array([7, digest, nth], "<i8") for nth in range(2)]
    seeds = [int.from_bytes(_blake2b(key), "little") % 2**63 for key in keys]
    assert row_seeds(7, y).tolist() == seeds


def _blake2b(values: np.ndarray) -> bytes:
    return blake2b(values.tobytes(), digest_size=8).digest()


def test_seeds_move_with_their_rows() -> None:
    """A seed follows its row through a permutation and into any chunk."""
    y, x = torch.randn(50, 3), torch.randn(50)
    seeds = row_seeds(0, y, x)
    order = torch.randperm(50)
    assert torch.equal(row_seeds(0, y[order], x[order]), seeds[order])
    assert torch.equal(
        torch.cat([row_seeds(0, y[i : i + 7], x[i : i + 7]) for i in range(0, 50, 7)]), seeds
    )
    assert len(seeds.unique()) == 50
    assert not (row_seeds(1, y, x) == seeds).any()
    assert not (row_seeds(0, y) == seeds).any()  # what stands beside y is part of the datum


def test_equal_rows_get_seeds_of_their_own() -> None:
    """However the rows are ordered, a row and its twins have the same set of seeds between them."""
    y = torch.tensor([[1.0], [2.0], [1.0], [3.0], [1.0], [2.0]])
    seeds = row_seeds(0, y)
    assert len(seeds.unique()) == 6
    order = torch.randperm(6)
    permuted = row_seeds(0, y[order])
    for value in (1, 2, 3):
        twins = (y == value).flatten()
        assert torch.equal(seeds[twins], permuted[twins[order]])  # first twin, second twin, ...


def test_more_rows_than_are_hashed_at_a_time() -> None:
    """The digest of a row does not depend on where the hashing is cut."""
    y = torch.arange(DIGEST_ROWS + 3.0)
    digests = row_digests(y)
    assert torch.equal(digests[-3:], row_digests(y[-3:]))
    assert len(digests.unique()) == len(y)


@pytest.mark.parametrize("seed", [0, -1, 2**63, 2**64 - 1])
def test_seeds_fit_a_generator(seed: int) -> None:
    """Any integer is a seed, and what comes out is one for torch."""
    seeds = row_seeds(seed, torch.randn(1000, 2))
    assert seeds.dtype == torch.int64
    assert (seeds >= 0).all()
    torch.Generator().manual_seed(int(seeds[0]))


def test_digests_need_rows_that_match() -> None:
    """Tensors of one batch have the same number of rows."""
    with pytest.raises(ValueError, match="same number of rows"):
        row_digests(torch.zeros(2), torch.zeros(3))
