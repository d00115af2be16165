"""The figures of a comparison, drawn from its results without opening windows."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from .. import likelihoods, models, plots
from .._types import Batch, optional
from .._warnings import warn
from ..plots.drawing import png_of
from ..programs import Prior
from ..programs.hooks import hooks_of
from ..programs.pieces import take_rows
from ..queries.forward import decoded, simulating
from ..training.results import shifted
from .results import GuideResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .comparison import Comparison

_PICTURES = 10  # data in a row of a figure


def figures_of(table: "Comparison") -> "dict[str, Figure]":
    """Draws every figure that the results allow; returns the figures by name."""
    return {name: draw(table) for name, draw in drawings_of(table).items()}


def pictures_of(table: "Comparison") -> dict[str, bytes]:
    """Draws every figure as a PNG file; leaves out, with a warning, figures that cannot be drawn.

    So a figure that fails does not prevent the results of hours of training from being saved.
    """
    pictures = {}
    for name, draw in drawings_of(table).items():
        try:
            pictures[name] = png_of(draw(table))
        except Exception as error:  # matplotlib may fail on names or data in any way
            warn(f"the figure '{name}' is left out, because it cannot be drawn ({error})")
    return pictures


def drawings_of(table: "Comparison") -> "dict[str, Callable[[Comparison], Figure]]":
    """Returns a drawing function for every figure that the results allow, by the figure's name."""
    results = table.results.values()
    drawings: dict[str, Callable[[Comparison], Figure]] = {
        "learning_curves": _learning_curves,
        "comparison": leading_figure,
        "gaps": _gaps,
        "pareto_k": _pareto_k,
    }
    if all(map(_has_pictures, results)):
        drawings |= {"reconstructions": _reconstructions, "worst": _worst}
    if all(result.means.shape[1] == 2 for result in results):  # a plane
        drawings["latent_plane"] = _latent_plane
    return drawings


def _has_pictures(result: GuideResult) -> bool:
    """Whether the model has a decoder, and all columns of the data share one unit."""
    model = result.model
    mixed = isinstance(model, models.VAE) and isinstance(model.likelihood, likelihoods.Mixed)
    return hooks_of(model).decode is not None and not mixed


def _learning_curves(table: "Comparison") -> "Figure":
    figure = _figure(7.0, 4.2)
    curves = {
        name: shifted(result.fit.history, table.train_log_scale, table.log_scale)
        for name, result in table.results.items()
    }
    plots.plot_learning_curves(curves, ax=figure.subplots())
    return figure


def leading_figure(table: "Comparison") -> "Figure":
    """Plots ELBO and log p of every guide."""
    figure = _figure(7.0, 0.9 + 0.8 * len(table.results))
    bounds = {
        row.guide: {"ELBO": row.estimate("elbo"), "log p": row.estimate("log_p")}
        for row in table.rows()
    }
    plots.plot_comparison(bounds, ax=figure.subplots())
    return figure


def _gaps(table: "Comparison") -> "Figure":
    figure = _figure(7.0, 0.9 + 0.8 * len(table.results))
    means = {name: result.gap.mean for name, result in table.results.items()}
    gaps = {
        name: {"approximation": mean.approximation, "amortization": mean.amortization}
        for name, mean in means.items()
    }
    plots.plot_gaps(gaps, ax=figure.subplots())
    return figure


def _pareto_k(table: "Comparison") -> "Figure":
    figure = _figure(7.0, 4.2)
    k = {name: result.test.log_marginal.pareto_k for name, result in table.results.items()}
    plots.plot_pareto_k(k, ax=figure.subplots())
    return figure


def _reconstructions(table: "Comparison") -> "Figure":
    """Plots some data, their reconstructions, and the means of p(y | z) at prior draws of z.

    A reconstruction is the mean of p(y | z) at the posterior mean of z.
    """
    few, results = take_rows(table.test, slice(_PICTURES)), table.results
    reconstructions = {
        name: _decoded(result, few, result.means[:_PICTURES]) for name, result in results.items()
    }
    draws = {name: _decoded(result, few) for name, result in results.items()}
    figure = _figure(8.0, 0.85 * (1 + 2 * len(results)), layout="compressed")
    y, shape = few[0].cpu(), table.image_shape
    plots.plot_reconstructions(y, reconstructions, draws, shape, figure=figure)
    return figure


def _decoded(result: GuideResult, batch: Batch, z: Tensor | None = None) -> Tensor:
    """Computes the mean of p(y | z) for every datum; draws z from the prior if none is given."""
    with simulating(result.model, result.held_out_guide, batch, 0, None) as program:
        points = Prior(program, batch).sample(1) if z is None else z.to(batch[0].device)[None]
        return decoded(program, points, batch)[0].cpu()


def _worst(table: "Comparison") -> "Figure":
    """Plots for each guide the data with the largest inference gaps, and their reconstructions."""
    pictures = {}
    for name, result in table.results.items():
        rows = result.gap.inference.value.argsort(descending=True)[:_PICTURES]
        worst = take_rows(table.test, rows.to(table.test[0].device))
        means = result.means[rows.to(result.means.device)]
        pictures[f"worst for {name}"] = worst[0].cpu()
        pictures[f"as seen by {name}"] = _decoded(result, worst, means)
    figure = _figure(8.0, 0.3 + 0.65 * len(pictures), layout="compressed")
    plots.plot_data(pictures, table.image_shape, figure=figure)
    return figure


def _latent_plane(table: "Comparison") -> "Figure":
    figure = _figure(3.4 * len(table.results) + 0.8, 3.8, layout="compressed")
    means = {name: result.means for name, result in table.results.items()}
    plots.plot_latent_plane(means, table.labels, figure=figure)
    return figure


def _figure(
    width: float, height: float, *, layout: Literal["constrained", "compressed"] = "constrained"
) -> "Figure":
    """Creates a figure that notebooks show, even if pyplot has drawn nothing yet."""
    drawing = optional("matplotlib.figure", needed_for="a figure")
    figure: Figure = drawing.Figure(figsize=(width, height), layout=layout)  # inches
    figure._repr_png_ = partial(png_of, figure)  # type: ignore[attr-defined]
    return figure
