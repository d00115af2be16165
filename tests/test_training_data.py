"""What `fit` takes as data: data sets of torch, containers, and transformations."""

import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from scipy import sparse
from torch import Tensor

import pyro_vae as pv
from pyro_vae.programs import as_batch
from pyro_vae.training.rows import reader_of
from tests.helpers.training import (
    assert_same_state,
    data,
    fit,
    small,
    state,
)


class Rows(torch.utils.data.Dataset[Tensor]):
    """A map-style data set."""

    def __init__(self, y: Tensor) -> None:
        self.y = y

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, row: int) -> Tensor:
        return self.y[row]


def test_data_sets_of_torch() -> None:
    """Of tensors, and row by row: the numbers of the tensor, to the last bit."""
    y, states = torch.eye(10, 3), []
    for given in (y, torch.utils.data.TensorDataset(y), Rows(y)):
        torch.manual_seed(0)
        model, guide = small()
        fit(model, guide, given, num_epochs=2, batch_size=4)
        states.append(state(model, guide))
    for other in states[1:]:
        assert_same_state(other, states[0])


@pytest.mark.parametrize(
    ("wrapped", "message"),
    [
        (torch.utils.data.DataLoader(Rows(torch.eye(10, 3)), 5), r"loader\.dataset, batch_size=5"),
        (torch.eye(10, 3).to_sparse(), r"y\.to_dense\(\)"),
    ],
)
def test_data_that_have_no_rows_to_draw(wrapped: Any, message: str) -> None:
    """With the line to write."""
    with pytest.raises(TypeError, match=message):
        reader_of(wrapped, torch.device("cpu"))


class Items(torch.utils.data.Dataset[Any]):
    """A data set whose items are made of rows."""

    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        self.make, self.rows = make, torch.eye(10, 3)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.rows)

    def __getitem__(self, row: int) -> Any:
        """A row."""
        return self.make(self.rows[row])


class Unsized(torch.utils.data.Dataset[Any]):
    """A data set without a length."""

    def __getitem__(self, row: int) -> Any:
        """Nothing."""


def test_items_that_are_no_tensors() -> None:
    """Arrays and lists of numbers are rows, in the default dtype; others are refused by the row."""
    makers: list[Callable[[Tensor], Any]] = [
        lambda row: row, lambda row: row.double().numpy(), lambda row: row.tolist(),
        lambda row: (row.double().numpy(),), lambda row: [row],
    ]  # fmt: skip
    for make in makers:
        (read,) = reader_of(Items(make), torch.device("cpu")).read(torch.tensor([2, 0]))
        assert torch.equal(read, torch.eye(10, 3)[[2, 0]])
    for bad in (lambda row: {"y": row}, lambda row: "a", lambda row: None):
        with pytest.raises(
            TypeError, match=r"row 0 of Items must be a .* let __getitem__ return one of these"
        ):
            reader_of(Items(bad), torch.device("cpu")).read(torch.tensor([0]))
    ragged = Items(lambda row: row[: 1 + int(row[0])])
    with pytest.raises(ValueError, match=r"same shapes.* row 0 .*\(1,\).* row 4"):
        reader_of(ragged, torch.device("cpu")).read(torch.tensor([0, 4]))
    with pytest.raises(TypeError, match="add a method __len__"):
        reader_of(Unsized(), torch.device("cpu"))


@pytest.mark.without_type_checks("passes a number, which the check refuses first")
def test_transformations_that_are_no_functions() -> None:
    """They are refused when they are given."""
    with pytest.raises(TypeError, match="`augment` must be a function"):
        pv.data.Augmented(data(), 3)  # type: ignore[arg-type]


def test_transformations_that_do_not_keep_the_shape() -> None:
    """They are refused before any step."""
    changes: list[tuple[Any, str]]
    changes = [(lambda y: y[:1], "keep the shape"), (lambda y: None, "got NoneType")]
    for change, message in changes:
        with pytest.raises((TypeError, ValueError), match=message):
            fit(*small(), pv.data.Augmented(data(), change), num_epochs=1)


def annotated(y: Tensor) -> Any:
    """What an AnnData object answers; the package is not needed."""
    return SimpleNamespace(X=y.numpy(), to_df=lambda: pd.DataFrame(y.numpy()))


CONTAINERS: dict[str, Callable[[Tensor], Any]] = {
    "a list of numbers": lambda y: y.tolist(),
    "a list of tensors": list,
    "a data frame": lambda y: pd.DataFrame(y.numpy()),
    "a sparse matrix": lambda y: sparse.csr_matrix(y.numpy()),
    "a TensorDataset": lambda y: torch.utils.data.TensorDataset(y),
    "a map-style data set": lambda y: Items(lambda row: row),
    "AnnData": annotated,
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_the_line_for_other_containers(name: str) -> None:
    """It is written in the refusal, and gives the same rows as the tensor."""
    rows = torch.eye(10, 3)
    given = CONTAINERS[name](rows)
    with pytest.raises(TypeError, match=r": pass .*\by\b") as refused:
        inspect.unwrap(as_batch)(given)  # without the checks of types that tests switch on
    line = str(refused.value).partition(": pass ")[2].partition(", or ")[0]
    (made,) = as_batch(eval(line, {"torch": torch, "y": given}))
    assert torch.equal(made, rows)
