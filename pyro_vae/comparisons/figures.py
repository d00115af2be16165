"""The figures of a comparison, drawn from its results without opening windows."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from torch import Tensor

from .. import likelihoods, models, plots
from .._types import Batch, optional
from .._warnings import warn
from ..plots.drawing import png_of
from ..programs import Prior
from ..programs.hooks import hooks_of
from ..programs.pieces import take_rows
from ..queries.forward import decoded, simulating
from .columns import Row
from .results import GuideResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .comparison import Comparison

_PICTURES = 10  # columns of a picture of data

Results = Mapping[str, GuideResult]


def figures_of(table: "Comparison") -> "dict[str, Figure]":
    """Draws every figure that the results allow; returns the figures by name."""
    return {name: draw() for name, draw in drawings_of(table).items()}


def pictures_of(table: "Comparison") -> dict[str, bytes]:
    """Draws every figure as a PNG file; leaves out, with a warning, what cannot be drawn.

    A figure must not keep the results from being saved after hours of training.
    """
    pictures = {}
    for name, draw in drawings_of(table).items():
        try:
            pictures[name] = png_of(draw())
        except Exception as error:  # names and data of users meet matplotlib here
            warn(f"the figure '{name}' is left out, because it cannot be drawn ({error})")
    return pictures


def drawings_of(table: "Comparison") -> "dict[str, Callable[[], Figure]]":
    """Returns a function that draws, for every figure that the results allow, by name."""
    results, shape = table.results, table.image_shape
    drawn: dict[str, Callable[[], Figure]] = {
        "learning_curves": lambda: _learning_curves(
            results, table.train_log_scale, table.log_scale
        ),
        "comparison": lambda: leading_figure(table.rows()),
        "gaps": lambda: _gaps(results),
        "pareto_k": lambda: _pareto_k(results),
    }
    if all(map(_on_one_axis, results.values())):
        drawn["reconstructions"] = lambda: _reconstructions(results, table.test, shape)
        drawn["worst"] = lambda: _worst(results, table.test, shape)
    if all(result.means.shape[1] == 2 for result in results.values()):  # a plane
        drawn["latent_plane"] = lambda: _latent_plane(results, table.labels)
    return drawn


def _on_one_axis(result: GuideResult) -> bool:
    """Returns whether the model has a decoder, and all columns of the data share one unit."""
    model = result.model
    mixed = isinstance(model, models.VAE) and isinstance(model.likelihood, likelihoods.Mixed)
    return hooks_of(model).decode is not None and not mixed


class _Curve(NamedTuple):
    """A learning curve in the data's own units."""

    epoch: Any
    elbo: Any
    validation_elbo: Any


def _learning_curves(results: Results, train_scale: float, scale: float) -> "Figure":
    figure = _figure(7.0, 4.2)
    records = {name: result.fit.history for name, result in results.items()}
    curves = {
        name: _Curve(of.epoch, np.add(of.elbo, train_scale), np.add(of.validation_elbo, scale))
        for name, of in records.items()
    }
    plots.plot_learning_curves(curves, ax=figure.subplots())
    return figure


def leading_figure(rows: list[Row]) -> "Figure":
    """Plots ELBO and log p of every guide."""
    figure = _figure(7.0, 0.9 + 0.8 * len(rows))
    table = {
        row.guide: {"ELBO": row.estimate("elbo"), "log p": row.estimate("log_p")} for row in rows
    }
    plots.plot_comparison(table, ax=figure.subplots())
    return figure


def _gaps(results: Results) -> "Figure":
    figure = _figure(7.0, 0.9 + 0.8 * len(results))
    means = {name: result.gap.mean for name, result in results.items()}
    table = {
        name: {"approximation": mean.approximation, "amortization": mean.amortization}
        for name, mean in means.items()
    }
    plots.plot_gaps(table, ax=figure.subplots())
    return figure


def _pareto_k(results: Results) -> "Figure":
    figure = _figure(7.0, 4.2)
    k = {name: result.test.log_marginal.pareto_k for name, result in results.items()}
    plots.plot_pareto_k(k, ax=figure.subplots())
    return figure


def _reconstructions(
    results: Results, test: Batch, image_shape: tuple[int, int] | None
) -> "Figure":
    """Plots some data, and means of p(y | z) at the data's embeddings and at prior draws of z."""
    few = take_rows(test, slice(_PICTURES))
    reconstructions = {
        name: _decoded(result, few, result.means[:_PICTURES]) for name, result in results.items()
    }
    draws = {name: _decoded(result, few) for name, result in results.items()}
    figure = _figure(8.0, 0.85 * (1 + 2 * len(results)), layout="compressed")
    plots.plot_reconstructions(few[0].cpu(), reconstructions, draws, image_shape, figure=figure)
    return figure


def _decoded(result: GuideResult, batch: Batch, z: Tensor | None = None) -> Tensor:
    """Computes the mean of p(y | z) for every datum; by default at a draw of z from the prior."""
    with simulating(result.model, result.held_out_guide, batch, 0, None) as program:
        points = Prior(program, batch).sample(1) if z is None else z.to(batch[0].device)[None]
        return decoded(program, points, batch)[0].cpu()


def _worst(results: Results, test: Batch, image_shape: tuple[int, int] | None) -> "Figure":
    """Plots for each guide the data with the largest inference gap, and reconstructions of them."""
    parts = {}
    for name, result in results.items():
        rows = result.gap.inference.value.argsort(descending=True)[:_PICTURES]
        worst = take_rows(test, rows.to(test[0].device))
        means = result.means[rows.to(result.means.device)]
        parts[name] = (worst[0].cpu(), _decoded(result, worst, means))
    figure = _figure(8.0, 0.3 + 0.65 * 2 * len(parts), layout="compressed")
    plots.plot_data(
        {
            f"{what} {name}": pictures
            for name, pair in parts.items()
            for what, pictures in zip(("worst for", "as seen by"), pair, strict=True)
        },
        image_shape,
        figure=figure,
    )
    return figure


def _latent_plane(results: Results, labels: Tensor | None) -> "Figure":
    figure = _figure(3.4 * len(results) + 0.8, 3.8, layout="compressed")
    means = {name: result.means for name, result in results.items()}
    plots.plot_latent_plane(means, labels, figure=figure)
    return figure


def _figure(
    width: float, height: float, *, layout: Literal["constrained", "compressed"] = "constrained"
) -> "Figure":
    """Creates a figure that notebooks show, even if pyplot has drawn nothing yet."""
    drawing = optional("matplotlib.figure", needed_for="a figure")
    figure: Figure = drawing.Figure(figsize=(width, height), layout=layout)  # inches
    figure._repr_png_ = partial(png_of, figure)  # type: ignore[attr-defined]
    return figure
