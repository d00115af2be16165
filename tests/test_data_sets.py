"""Sets by name and out of files, and what binarization does to them."""

import gzip
import math
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from pyro_vae.data import (
    Binarization,
    Dataset,
    FixedDraw,
    Grey,
    Layout,
    Redrawn,
    Scaling,
    Threshold,
    digits,
    fashion_mnist,
    load,
    squares,
)
from pyro_vae.data import sets as sets_module
from tests.helpers.files import idx_bytes
from tests.helpers.statistics import assert_mean

CHOICES: list[Binarization] = [Grey(), Threshold(), FixedDraw(seed=3), Redrawn()]
GREYS = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0])


# Binarizations


@pytest.mark.parametrize("choice", CHOICES, ids=repr)
def test_batches_are_binary_where_the_choice_says_so(choice: Binarization) -> None:
    """Zeros and ones in every batch, in the dtype and shape of the data."""
    y = torch.rand(50, 4)
    stored = choice.fixed(y)
    batch = choice(stored)
    assert bool(((batch == 0) | (batch == 1)).all()) == choice.binary
    assert batch.dtype == y.dtype
    assert batch.shape == y.shape
    assert "binarized" in choice.describe()


@pytest.mark.parametrize("choice", CHOICES[:3], ids=repr)
def test_only_redrawn_changes_batches(choice: Binarization) -> None:
    """The others did their work once."""
    stored = choice.fixed(torch.rand(50, 4))
    assert torch.equal(choice(stored), stored)


@pytest.mark.parametrize("choice", CHOICES, ids=repr)
def test_missing_entries_stay_missing(choice: Binarization) -> None:
    """They are no zeros."""
    y = torch.tensor([[0.0, float("nan")], [1.0, 0.0]])
    batch = choice(choice.fixed(y))
    torch.testing.assert_close(batch, y, equal_nan=True)


@pytest.mark.parametrize("choice", CHOICES[1:], ids=repr)
def test_values_outside_are_refused_with_the_remedy(choice: Binarization) -> None:
    """Only grey levels in [0, 1] can be drawn; `Grey` takes anything."""
    y = torch.tensor([[0.0, 0.5, 255.0]])
    with pytest.raises(
        ValueError, match=r"takes only values in \[0, 1\], which excludes 1 of 3 .* divide by 255"
    ):
        choice.fixed(y)
    with pytest.raises(ValueError, match=r"takes only values in .*rescale"):
        choice.fixed(-y)
    assert torch.equal(Grey().fixed(y), y)


def test_words_for_each_choice() -> None:
    """What is stated beside a number."""
    assert [choice.describe() for choice in CHOICES] == [
        "not binarized",
        "binarized at a threshold of 0.5",
        "binarized by a fixed draw (seed 3)",
        "binarized anew in each batch",
    ]


def test_threshold_is_strict_and_sensible() -> None:
    """1 above the threshold, and no threshold that all are below."""
    assert Threshold(at=0.5).fixed(GREYS[None]).tolist() == [[0, 0, 0, 1, 1]]
    assert Threshold(at=0).fixed(GREYS[None]).tolist() == [[0, 1, 1, 1, 1]]
    for at in (-0.1, 1, math.nan):
        with pytest.raises(
            ValueError, match=r"at least 0 and below 1; got|`at` must be a finite number; got"
        ):
            Threshold(at=at)


def repeated(choice: Binarization, seed: int) -> Tensor:
    """Draws of each grey level, `(10_000, 5)`."""
    y = GREYS.double().expand(10_000, -1)
    return choice(choice.fixed(y)) if isinstance(choice, Redrawn) else FixedDraw(seed).fixed(y)


@pytest.mark.parametrize("choice", [FixedDraw(), Redrawn()], ids=repr)
def test_draws_have_the_grey_level_as_mean(choice: Binarization, seed: int) -> None:
    """E[draw] = y; black and white are drawn without chance."""
    drawn = repeated(choice, seed)
    assert_mean(drawn[:, 1:4], GREYS[1:4].double())
    assert (drawn[:, 0] == 0).all()
    assert (drawn[:, 4] == 1).all()


def test_draws_of_other_levels_are_caught(seed: int) -> None:
    """The same check fails on draws of the squared grey levels."""
    drawn = FixedDraw(seed).fixed(GREYS.double().square().expand(10_000, -1))
    with pytest.raises(AssertionError, match="resolution"):
        assert_mean(drawn[:, 1:4], GREYS[1:4].double())


def agreement(first: Tensor, second: Tensor) -> Tensor:
    """Whether two binary tensors agree, as 0 and 1."""
    return (first == second).double()


def test_draws_of_train_and_test_are_independent(seed: int) -> None:
    """Fair coins at one position agree in half the cases; those of one part are caught."""
    y, choice = torch.full((10_000, 1), 0.5), FixedDraw(seed)
    assert_mean(agreement(choice.fixed(y, part=0), choice.fixed(y, part=1)), 0.5)
    with pytest.raises(AssertionError, match="resolution"):
        assert_mean(agreement(choice.fixed(y, part=1), choice.fixed(y, part=1)), 0.5)


def test_fixed_draw_is_kept_and_has_its_own_seed() -> None:
    """The draw depends on seed and position, and the caller's stream is untouched."""
    y = torch.rand(30, 7)
    state = torch.get_rng_state()
    drawn = FixedDraw(5).fixed(y)
    assert torch.equal(torch.get_rng_state(), state)  # the caller's stream is untouched
    assert torch.equal(FixedDraw(5).fixed(y), drawn)
    assert torch.equal(FixedDraw(5).fixed(y[:10]), drawn[:10])  # fewer rows, the same draw
    assert torch.equal(FixedDraw(5).fixed(y.double()).float(), drawn)
    assert not torch.equal(FixedDraw(6).fixed(y), drawn)


def test_redrawn_draws_anew_from_the_current_generator() -> None:
    """Two batches differ; the same torch seed repeats them."""
    y = torch.full((100, 3), 0.5)
    torch.manual_seed(1)
    first, second = Redrawn()(y), Redrawn()(y)
    torch.manual_seed(1)
    assert torch.equal(Redrawn()(y), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("choice", CHOICES[1:], ids=repr)
def test_bits_stored_as_bytes(choice: Binarization) -> None:
    """Integers 0 and 1 are grey levels too."""
    bits = torch.tensor([[0, 1]], dtype=torch.uint8)
    assert choice(choice.fixed(bits)).tolist() == [[0, 1]]


# Sets


@pytest.mark.parametrize(("num_data", "side"), [(1000, 28), (2, 1), (6, 3)])
def test_squares_are_half_and_half(num_data: int, side: int) -> None:
    """Exactly half of either part is 0, half 1, with all pixels equal."""
    dataset = squares(num_data, side, num_test=4)
    for y, labels in ((dataset.train, dataset.train_labels), (dataset.test, dataset.test_labels)):
        assert y.shape[1:] == (side**2,)
        assert y.min(dim=1).values.equal(y.max(dim=1).values)  # all pixels of a picture are equal
        assert y[:, 0].sum() == len(y) / 2
        assert labels is not None
        assert labels.equal(y[:, 0].long())
    assert len(dataset.train) == num_data
    assert dataset.image_shape == (side, side)
    assert dataset.log_scale == 0


@pytest.mark.parametrize("number", [-2, 0, 1, 5])
def test_squares_need_an_even_number(number: int) -> None:
    """Half of an odd number is no number of pictures."""
    with pytest.raises(ValueError, match=rf"`num_data` must be .* at least \d.*; got {number}"):
        squares(number)
    with pytest.raises(ValueError, match=rf"`num_test` must be .* at least \d.*; got {number}"):
        squares(num_test=number)
    with pytest.raises(ValueError, match=r"`side` must be .* at least 1; got 0"):
        squares(side=0)


def test_digits() -> None:
    """All of scikit-learn's digits, in [0, 1], in steps of 1/16."""
    dataset = digits(binarization=Grey())
    y = torch.cat([dataset.train, dataset.test])
    assert y.shape == (1797, 64)
    assert len(dataset.test) == 359
    assert (y * 16).unique().tolist() == list(range(17))
    assert dataset.image_shape == (8, 8)
    assert dataset.train_labels is not None
    assert dataset.train_labels.unique().tolist() == list(range(10))


def test_digits_keep_their_labels() -> None:
    """A row of the split is a row of the source, with its label."""
    from sklearn.datasets import load_digits

    source = load_digits()
    dataset = digits(binarization=Grey(), seed=1, test_fraction=0.5)
    known = {
        tuple(y): label for y, label in zip((source.data / 16).tolist(), source.target, strict=True)
    }
    assert dataset.test_labels is not None
    for y, label in zip(dataset.test.tolist(), dataset.test_labels.tolist(), strict=True):
        assert known[tuple(y)] == label


@pytest.mark.parametrize("choice", CHOICES, ids=repr)
def test_digits_in_their_own_units(choice: Binarization) -> None:
    """A density of x / 16 in 64 dimensions is 16^64 times too high; a probability is right."""
    dataset = digits(binarization=choice)
    assert dataset.binarization == choice
    assert dataset.log_scale == pytest.approx(0 if choice.binary else -64 * math.log(16))
    assert repr(dataset).endswith(choice.describe())
    with pytest.raises(ValueError, match=r"load it with `binarization=pv\.data\.Grey"):
        digits(binarization=Threshold()).binarized(choice)


def test_log_scale_puts_the_density_back() -> None:
    """The log density of raw data is that of the stored data plus `log_scale`."""
    dataset = digits(binarization=Grey())
    stored = torch.distributions.Normal(0.3, 0.4).log_prob(dataset.test.double()).sum(dim=1)
    raw = torch.distributions.Normal(0.3 * 16, 0.4 * 16).log_prob(dataset.test.double() * 16)
    torch.testing.assert_close(stored + dataset.log_scale, raw.sum(dim=1), rtol=0, atol=1e-3)


def test_sets_have_the_default_dtype(request: pytest.FixtureRequest) -> None:
    """In float64 where the user made that the default, with the same draw."""
    single = digits()
    request.getfixturevalue("float64")
    for dataset in (squares(), digits()):
        assert dataset.train.dtype == dataset.test.dtype == torch.float64
    assert torch.equal(digits().train, single.train.double())


def test_digits_without_sklearn_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """What to install."""
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"the set digits needs sklearn.*'pyro-vae\[data\]'"):
        digits()


# Fashion-MNIST


def write_pictures(folder: Path, suffix: str = "", shape: tuple[int, int] = (4, 3)) -> np.ndarray:
    """Twelve pictures to train on and six held out, as the real set has them; returns the first."""
    generator = np.random.default_rng(0)
    pictures = generator.integers(256, size=(18, *shape), dtype=np.uint8)
    pictures[0, 0, :2] = 0, 255
    labels = np.arange(18, dtype=np.uint8) % 10
    for part, rows in (("train", slice(12)), ("t10k", slice(12, 18))):
        for name, values in (("images-idx3", pictures[rows]), ("labels-idx1", labels[rows])):
            content = idx_bytes(values)
            path = folder / f"{part}-{name}-ubyte{suffix}"
            path.write_bytes(gzip.compress(content) if suffix else content)
    return pictures


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_fashion_mnist_from_a_folder(suffix: str, tmp_path: Path) -> None:
    """Pixels over 255 in flat rows, with labels, compressed or not."""
    pictures = write_pictures(tmp_path, suffix)
    dataset = fashion_mnist(tmp_path, binarization=Grey())
    stored = torch.cat([dataset.train, dataset.test])
    torch.testing.assert_close(stored, torch.tensor(pictures).reshape(18, 12) / 255)
    assert stored.max() == 1
    assert dataset.test_labels is not None
    assert dataset.test_labels.tolist() == [2, 3, 4, 5, 6, 7]
    assert dataset.image_shape == (4, 3)
    assert dataset.log_scale == pytest.approx(-12 * math.log(255))


def test_the_first_pictures_are_binarized_as_all_are(tmp_path: Path) -> None:
    """A fixed draw does not depend on how many pictures are used."""
    write_pictures(tmp_path)
    full, few = fashion_mnist(str(tmp_path)), fashion_mnist(tmp_path, num_train=5, num_test=2)
    assert (len(few.train), len(few.test)) == (5, 2)
    assert torch.equal(few.train, full.train[:5])
    assert torch.equal(few.test, full.test[:2])
    assert full.binarization == FixedDraw(seed=0)


def test_fashion_mnist_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which files, where, and how to get them."""
    write_pictures(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    expected = (
        r"a folder with the files train-images-idx3-ubyte, .* has no t10k-labels-idx1-ubyte\. .*"
    )
    with pytest.raises(FileNotFoundError, match=expected + "apt-get install dataset-fashion-mnist"):
        fashion_mnist(tmp_path)
    monkeypatch.setattr(sets_module, "FASHION_MNIST_FOLDER", tmp_path / "nowhere")
    with pytest.raises(
        FileNotFoundError, match=r"'.*nowhere' must be a folder .*folder='fashion'`$"
    ):
        load("fashion-mnist")


@pytest.mark.parametrize("number", [0, 13])
def test_fashion_mnist_has_so_many(number: int, tmp_path: Path) -> None:
    """No fewer pictures than asked for, in silence."""
    write_pictures(tmp_path)
    with pytest.raises(ValueError, match=rf"12 images, but {number} were|num_train` .* got 0"):
        fashion_mnist(tmp_path, num_train=number)


def test_fashion_mnist_of_other_shapes(tmp_path: Path) -> None:
    """The four files must belong together."""
    write_pictures(tmp_path)
    held_out = tmp_path / "t10k-images-idx3-ubyte"
    held_out.write_bytes(idx_bytes(np.zeros((6, 2, 2), np.uint8)))
    with pytest.raises(ValueError, match=r"the same shape; got \(4, 3\) and \(2, 2\)"):
        fashion_mnist(tmp_path)
    held_out.write_bytes(idx_bytes(np.zeros((5, 4, 3), np.uint8)))
    with pytest.raises(
        ValueError,
        match=r"one label per image; got uint8 of shape \(5, 4, 3\) and labels of shape \(6,\)",
    ):
        fashion_mnist(tmp_path)


INSTALLED = [path for path in [sets_module.FASHION_MNIST_FOLDER] if path.is_dir()]


@pytest.mark.parametrize("folders", [INSTALLED], ids=lambda found: f"{len(found)}-installed")
def test_fashion_mnist_as_installed(folders: list[Path]) -> None:
    """The published set, wherever this machine has it."""
    for folder in folders:
        dataset = fashion_mnist(folder, binarization=Grey(), num_train=1000)
        assert dataset.image_shape == (28, 28)
        assert dataset.train.shape == (1000, 784)
        assert dataset.test_labels is not None
        assert dataset.test_labels.bincount().tolist() == [1000] * 10
        assert dataset.train.max() == 1


# Load


def test_load_by_name() -> None:
    """The named sets with their own defaults, or with the options given."""
    assert torch.equal(load("squares").train, squares().train)
    loaded, made = load("digits", seed=4, test_fraction=0.1), digits(seed=4, test_fraction=0.1)
    assert torch.equal(loaded.train, made.train)
    assert load("digits", binarization=Threshold()).binarization == Threshold()
    assert load("digits").binarization == FixedDraw()


def test_load_fashion_mnist_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the folder of Debian's package."""
    write_pictures(tmp_path)
    monkeypatch.setattr(sets_module, "FASHION_MNIST_FOLDER", tmp_path)
    assert load("fashion-mnist", binarization=Redrawn()).binarization == Redrawn()


def test_options_that_do_not_fit() -> None:
    """An option that does nothing is refused."""
    with pytest.raises(
        ValueError, match=r"Threshold\(at=0.5\) has no effect: leave out `binarization`"
    ):
        load("squares", binarization=Threshold())
    with pytest.raises(
        ValueError, match=r"but 'digits' is a data set of the library: leave these arguments out$"
    ):
        load("digits", key="y")
    with pytest.raises(
        ValueError, match=r"but 'digits' is a data set of the library: leave these arguments out$"
    ):
        load("digits", divide_by=16)
    with pytest.raises(ValueError, match=r"`layout` are for files, but 'digits' is a data set"):
        load("digits", layout=Layout(missing=("0",)))
    for name in ("squares", "fashion-mnist"):
        with pytest.raises(
            ValueError, match=r"test_fraction=0.1 has no effect: leave out `test_fraction`$"
        ):
            load(name, test_fraction=0.1)


@pytest.mark.parametrize("ending", ["csv", "parquet", "npy"])
def test_a_key_for_a_single_array_is_refused(ending: str, tmp_path: Path) -> None:
    """Tables had been loaded as if no key had been passed."""
    rows = np.random.default_rng(0).normal(size=(10, 2))
    path, frame = tmp_path / f"rows.{ending}", pd.DataFrame(rows, columns=["a", "b"])
    np.save(tmp_path / "rows.npy", rows)
    frame.to_csv(tmp_path / "rows.csv", index=False)
    frame.to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match=r"key='k' .* is neither kind of file: leave out `key`"):
        load(path, key="k")
    assert len(load(path).train) == 8


@pytest.mark.parametrize("ending", ["csv", "npy"])
def test_a_column_must_be_left(ending: str, tmp_path: Path) -> None:
    """To drop all of them had ended in an error of NumPy, or about rows."""
    rows = np.random.default_rng(0).normal(size=(10, 2))
    np.save(tmp_path / "rows.npy", rows)
    np.savetxt(tmp_path / "rows.csv", rows, delimiter=",")
    with pytest.raises(ValueError, match=r"must leave at least one column.*: keep a column"):
        load(tmp_path / f"rows.{ending}", drop=["0", "1"])
    assert load(tmp_path / f"rows.{ending}", drop=["0"]).train.shape == (8, 1)


def test_load_of_an_unknown_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message lists the names, and says whether such a file exists."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        FileNotFoundError,
        match=r"does not exist, but must be a file of data, or one of the data sets squares",
    ):
        load("mnist")
    (tmp_path / "mnist").write_text("")
    with pytest.raises(ValueError, match=r"cannot read the format of 'mnist'"):
        load("mnist")
    (tmp_path / "digits").write_text("")
    with pytest.raises(
        ValueError, match=r"data set of the library: leave .*, or pass './digits' to read the file"
    ):
        load("digits", divide_by=2)
    with pytest.raises(ValueError, match=r"cannot read the format of 'digits'"):
        load(Path("digits"))


def test_load_a_file(tmp_path: Path) -> None:
    """Every row once, divided, with names and the Jacobian."""
    values = np.random.default_rng(0).normal(size=(10, 3))
    path = tmp_path / "flowers.csv"
    np.savetxt(path, values, delimiter=",", header="a,b,c", comments="")
    dataset = load(path, test_fraction=0.3, seed=2, divide_by=2)
    stored = torch.cat([dataset.train, dataset.test])
    expected = torch.tensor(values / 2).float()
    torch.testing.assert_close(stored[stored[:, 0].argsort()], expected[expected[:, 0].argsort()])
    assert len(dataset.test) == 3
    assert dataset.feature_names == ("a", "b", "c")
    assert dataset.name == "flowers.csv"
    assert dataset.log_scale == pytest.approx(-3 * math.log(2))
    assert "8 x 8" not in repr(dataset)
    table = load(str(path), test_fraction=0.3, seed=2)  # as it is: columns, standardized
    assert table.columns is not None
    spread = (2 * dataset.train.double()).std(dim=0, correction=0)
    assert table.log_scale == pytest.approx(-float(spread.log().sum()), abs=1e-5)
    back = torch.tensor(table.columns.decode(table.train).to_numpy())
    torch.testing.assert_close(back, 2 * dataset.train.double(), rtol=1e-5, atol=1e-5)


def test_load_pictures_of_bytes(tmp_path: Path) -> None:
    """Bytes are refused by a binarization until they are divided, and then are flat rows."""
    write_pictures(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte"
    with pytest.raises(ValueError, match=r"FixedDraw\(seed=0\) takes only .* divide by 255"):
        load(path, binarization=FixedDraw())
    dataset = load(path, binarization=FixedDraw(), divide_by=255)
    assert dataset.train.shape == (10, 12)
    assert dataset.image_shape == (4, 3)
    assert dataset.log_scale == 0


def test_load_keeps_the_shape_of_a_datum(tmp_path: Path) -> None:
    """Axes behind the first belong to the datum; without any it is one value."""
    np.save(tmp_path / "y.npy", np.random.default_rng(0).normal(size=(5, 3, 2)))
    assert load(tmp_path / "y.npy").train.shape == (4, 3, 2)
    np.savez(tmp_path / "y.npz", x=np.zeros(3), y=np.arange(5))
    assert load(tmp_path / "y.npz", key="y").train.shape == (4, 1)


def test_load_checks_at_the_door(tmp_path: Path) -> None:
    """Nan and inf, no rows, one row, values too large, a divisor that is none."""
    path = tmp_path / "y.csv"
    path.write_text("a,b\n1,2\n3,inf\n5,6\n")
    with pytest.raises(ValueError, match=r"column 'b' has 1 infinite entry \(inf at row 1"):
        load(path)
    path.write_text("1,2\n3,nan\n" + "".join(f"{k},{k + 1}\n" for k in range(5, 13)))
    assert int(torch.cat([load(path).train, load(path).test]).isnan().sum()) == 1
    np.save(tmp_path / "empty.npy", np.zeros((0, 3)))
    with pytest.raises(ValueError, match="at least one row"):
        load(tmp_path / "empty.npy")
    (tmp_path / "empty.idx").write_bytes(idx_bytes(np.zeros((0, 2, 2), np.uint8)))
    with pytest.raises(ValueError, match="at least one row"):
        load(tmp_path / "empty.idx")
    np.save(tmp_path / "one.npy", np.zeros((1, 3)))
    with pytest.raises(ValueError, match="a split must have at least 2 rows"):
        load(tmp_path / "one.npy")
    np.save(tmp_path / "large.npy", np.full((2, 1), 1e300))
    with pytest.raises(ValueError, match="0 nan and 2 inf"):
        load(tmp_path / "large.npy", divide_by=2)  # kept as it is
    for divisor in (0, -1, math.inf):
        with pytest.raises(ValueError, match=r"`divide_by` must be a (positive|finite) number"):
            load(tmp_path / "one.npy", divide_by=divisor)


def test_load_warns_of_constant_columns_but_not_of_margins(tmp_path: Path) -> None:
    """A constant measurement is news; a black margin is not."""
    (tmp_path / "y.csv").write_text("a,b\n" + "".join(f"7,{i}\n" for i in range(9)))
    with pytest.warns(UserWarning, match=r"constant in 1 of 2 columns over 7 rows \('a'\)"):
        load(tmp_path / "y.csv")
    (tmp_path / "y.idx").write_bytes(idx_bytes(np.zeros((9, 2, 2), np.uint8)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(tmp_path / "y.idx")


def test_a_set_of_ones_own() -> None:
    """Tensors are enough for a set."""
    dataset = Dataset("mine", train=torch.zeros(3, 2), test=torch.zeros(1, 2))
    assert dataset.describe() == "mine: 3 training rows, 1 held out, 2 values each, not binarized"
    assert dataset.binarized(Redrawn()).binarization == Redrawn()


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan")])
def test_a_damaged_scaling_is_refused(scale: float) -> None:
    """Densities in such units are of nothing."""
    saved = Scaling(torch.zeros(2), torch.ones(2)).to_json()
    saved["scale"][1] = scale
    with pytest.raises(ValueError, match="scales finite and above 0"):
        Scaling.from_json(saved)
