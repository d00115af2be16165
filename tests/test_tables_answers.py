"""A VAE of a table answers about columns and latents in the table's own words and units."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib import pyplot

import pyro_vae as pv
from pyro_vae import data, queries
from pyro_vae.data import Columns, from_frame
from tests.helpers.laboratory import laboratory

# The tables here have an outlier.
pytestmark = pytest.mark.filterwarnings("ignore:column .* such an outlier dominates")


@pytest.fixture(autouse=True)
def _figures() -> Iterator[None]:
    """None is left open."""
    yield
    pyplot.close("all")


def test_walks_show_a_column_for_each_latent() -> None:
    """The one that it moves most, also where others move further along other latents."""
    vae = pv.TableVAE.of(from_frame(laboratory().drop(columns=["sample_id", "date"])))
    assert isinstance(vae.units, Columns)
    latents, features = vae.model.latent_dim, len(vae.units.names)
    decoded = torch.zeros(latents, 3, features)
    decoded[0, 2, :-latents] = 5.0  # the first moves all but a few, and each other one of these
    for latent in range(1, latents):
        decoded[latent, 2, features - latent] = 0.1
    walk = vae.traverse(seed=0)
    moved = replace(walk, values=walk.values[:, :3], decoded=decoded, levels=(0.1, 0.5, 0.9))
    titles = {ax.get_title(loc="left") for ax in moved.plot()[0]}
    last = vae.units.names[features - min(latents, 5) + 1 :]
    # Five standard deviations of the first number are more than any change of the two categories.
    assert {*last, vae.units.names[2]} == titles


@pytest.mark.usefixtures("float64")
def test_conditional_densities_are_of_the_columns_own_numbers() -> None:
    """They integrate to 1 in the column's unit, and agree with those of encoded rows."""
    frame = laboratory().drop(columns=["sample_id", "date"]).assign(size=np.exp(np.arange(60) % 7))
    vae = pv.TableVAE.of(from_frame(frame))
    assert isinstance(vae.units, Columns)
    for column in ("m1", "size", "site"):
        found = vae.conditional_density(column, frame.head(4), progress=False)
        total = (
            found.value.sum(1) if found.is_discrete else torch.trapezoid(found.value, found.grid)
        )
        torch.testing.assert_close(total, torch.ones(4), rtol=0, atol=0.02)
        assert (found.categories == ("north", "river", "south")) == (column == "site")
    own = vae.conditional_density("m1", frame.head(4), progress=False)
    rows, kind = vae.rows(frame.head(4)), vae.units.kinds["m1"]
    how = pv.defaults.wide_sampling(vae.model.latent_dim, 2000)
    plain = queries.conditional_density(
        vae.model, vae.guide, rows, "m1", estimator=how, names=vae.units.names, progress=False
    )
    torch.testing.assert_close(own.grid, plain.grid * kind.scale + kind.center)
    torch.testing.assert_close(own.value, plain.value / kind.scale)
    labels = [text.get_text() for text in vae.conditional_density("site").plot().get_xticklabels()]
    assert labels == ["north", "river", "south"]
    with pytest.raises(ValueError, match="column 'no' is unknown"):
        vae.conditional_density("no")
    assert vae.dependence(queries.MutualInformation()).names == vae.units.names


def test_walks_show_the_columns_that_move_most() -> None:
    """In spreads of the column: counts in the hundreds that stay do not push others out."""
    steps = torch.linspace(-1.0, 1.0, 5)
    decoded = torch.stack([steps, 300 + steps, *[0.01 * steps * k for k in range(7)]], dim=-1)
    frame = {"a": [0.5, 1.5], "n": [0, 200]} | {f"x{k}": [0.5, 1.5] for k in range(7)}
    columns = Columns.of(frame)
    nats = pv.Estimate(torch.ones(1), torch.zeros(1))
    walk = queries.Traversal(
        torch.tensor([0]), ("z",), nats, (0.1, 0.3, 0.5, 0.7, 0.9), steps[None], decoded[None],
        torch.zeros(1), columns,
    )  # fmt: skip
    titles = [ax.get_title(loc="left") for ax in walk.plot()[0]]
    assert titles == ["a", "x3", "x4", "x5", "x6"]


def test_walks_compare_numbers_by_their_logarithms_and_categories_by_probability() -> None:
    """As `explain` does, whatever rows are asked about: an outlier among them changes nothing."""
    rng = np.random.default_rng(0)
    frame = {name: rng.normal(size=40) for name in "abcd"} | {
        "skewed": rng.lognormal(0, 2, 40),
        "sort": ["x", "y"] * 20,
        "still": ["u", "v"] * 20,
    }
    columns = Columns.of(frame)
    steps = torch.linspace(-1.0, 1.0, 5)
    parts = [0.3 * steps, 0.4 * steps, 0.5 * steps, 0.6 * steps]
    skewed = columns.kinds["skewed"]
    assert isinstance(skewed, data.Positive)
    parts += [(2 * skewed.spread * steps).exp(), (1 + steps) / 2, 0 * steps]
    nats = pv.Estimate(torch.ones(1), torch.zeros(1))
    walk = queries.Traversal(
        torch.tensor([0]), ("z",), nats, (0.1, 0.3, 0.5, 0.7, 0.9), steps[None],
        torch.stack(parts, dim=-1)[None].float(), torch.zeros(1), columns,
    )  # fmt: skip
    axes = walk.plot()[0]
    assert [ax.get_title(loc="left") for ax in axes] == ["b", "c", "d", "skewed", "sort"]
    labels = [text.get_text() for text in axes[3].get_yticklabels()]
    assert all("10^" not in label for label in labels)  # plain numbers
