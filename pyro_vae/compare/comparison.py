"""What a comparison found: a table, pictures, ArviZ data, and a folder with all of it."""

import csv
import json
import math
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from .. import diagnostics, plots, storage
from .._types import Batch
from ..diagnostics import MutualInformation
from ..evidence import Evaluation, EvidenceLowerBound
from ..inference_data import to_inference_data
from ..programs import forked_seed
from ..training import Fit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PICTURES = 10  # columns of the picture of reconstructions
_INFERENCE_DRAWS = 100  # draws in the ArviZ data that are saved
_PREDICTIVE_DRAWS = 20  # of these, how many come with simulated data, which are large


@dataclass(frozen=True)
class GuideResult:
    """A trained guide and its model, and how they do.

    Arguments:
        model: The copy of the model that this guide trained.
        guide: The guide, for the training data.
        held_out_guide: The guide for the held-out data; another one where rows had to be fitted.
        fit: How training went.
        train_bound: ELBO of the training data.
        test: Bound and log p of the held-out data.
        means: Posterior means of the held-out data, `(batch, latents)`.
        information: Mutual information of z and the held-out data.
        seconds: Time that training took.
    """

    model: Any
    guide: Any
    held_out_guide: Any
    fit: Fit
    train_bound: EvidenceLowerBound
    test: Evaluation
    means: Tensor
    information: MutualInformation
    seconds: float


@dataclass(frozen=True)
class Row:
    """One guide's row of the table; nats a datum, means over data, with Monte Carlo errors.

    Arguments:
        guide: Its name.
        train_elbo: ELBO of the training data.
        train_elbo_error: Its error.
        elbo: ELBO of the held-out data.
        elbo_error: Its error.
        log_p: Importance-weighted log p(y) of the held-out data.
        log_p_error: Its error.
        rate: KL(q(z | y) || p(z)), what z costs.
        distortion: - E log p(y | z), what is left.
        active_units: Latents whose posterior mean varies over the data.
        mutual_information: What z says about which datum it came from.
        mutual_information_error: Its error.
        ceiling: log N, which the mutual information cannot exceed.
        unreliable: Share of the held-out data whose log p cannot be trusted (Pareto k above 0.7).
        seconds: Training time.
        epochs: Epochs of training; rounds where rows were fitted with the model fixed.
    """

    guide: str
    train_elbo: float
    train_elbo_error: float
    elbo: float
    elbo_error: float
    log_p: float
    log_p_error: float
    rate: float
    distortion: float
    active_units: int
    mutual_information: float
    mutual_information_error: float
    ceiling: float
    unreliable: float
    seconds: float
    epochs: int


@dataclass(frozen=True)
class Comparison:
    """Guides side by side.

    Arguments:
        results: By name of the guide.
        test: The held-out data.
        labels: Their classes, if known.
        image_shape: Height and width of a datum, if it is an image.
        log_scale: Nats a datum that put log densities into the data's own units.
        about: What is needed to repeat the run.
    """

    results: Mapping[str, GuideResult]
    test: Batch
    labels: Tensor | None
    image_shape: tuple[int, int] | None
    log_scale: float
    about: Mapping[str, Any]

    def rows(self) -> list[Row]:
        """The table, one row a guide."""
        return [_row(name, result, self.log_scale) for name, result in self.results.items()]

    def summary(self) -> str:
        """The table as text, with a line on how to read it."""
        cells = [_HEADER, *(_cells(row) for row in self.rows())]
        widths = [max(len(line[column]) for line in cells) for column in range(len(_HEADER))]
        lines = [
            "  ".join(
                cell.ljust(width) if column == 0 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in cells
        ]
        rule = "-" * max(len(line) for line in lines)
        return "\n".join([lines[0], rule, *lines[1:], "", self._notes()])

    def _notes(self) -> str:
        rows = self.rows()
        models = (
            "every guide trained its own copy of the model, so only log p compares models"
            if self.about.get("train_model", True)
            else "the model is fixed, so ELBOs compare too"
        )
        bad = [
            f"{row.unreliable:.0%} of the data under {row.guide}"
            for row in rows
            if row.unreliable > 0
        ]
        trust = f" Log p cannot be trusted (Pareto k > 0.7) for {', '.join(bad)}." if bad else ""
        ceiling = rows[0].ceiling if rows else math.nan
        return (
            f"Nats a datum, held-out data unless it says training; +- is one Monte Carlo standard "
            f"error; {models}.\nMutual information is at most log N = {ceiling:.2f}." + trust
        )

    def plot(self) -> "dict[str, Figure]":
        """Figures by name, for a notebook or to save; opened with no window of their own."""
        drawn = {
            "learning_curves": self._learning_curves,
            "comparison": self._comparison,
            "pareto_k": self._pareto_k,
        }
        if all(hasattr(result.model, "decode") for result in self.results.values()):
            drawn["reconstructions"] = self._reconstructions
        if all(result.means.shape[1] == 2 for result in self.results.values()):  # a plane
            drawn["latent_plane"] = self._latent_plane
        return {name: draw() for name, draw in drawn.items()}

    def _learning_curves(self) -> "Figure":
        figure = _figure(7.0, 4.2)
        curves = {name: result.fit.history for name, result in self.results.items()}
        plots.plot_learning_curves(curves, ax=figure.subplots())
        return figure

    def _comparison(self) -> "Figure":
        figure = _figure(7.0, 0.9 + 0.8 * len(self.results))
        table = {
            row.guide: {"ELBO": (row.elbo, row.elbo_error), "log p": (row.log_p, row.log_p_error)}
            for row in self.rows()
        }
        plots.plot_comparison(table, ax=figure.subplots())
        return figure

    def _pareto_k(self) -> "Figure":
        figure = _figure(7.0, 4.2)
        k = {name: result.test.log_marginal.pareto_k for name, result in self.results.items()}
        plots.plot_pareto_k(k, ax=figure.subplots())
        return figure

    def _reconstructions(self) -> "Figure":
        first = self.test[0][:_PICTURES]
        reconstructions, draws = {}, {}
        for name, result in self.results.items():
            means = result.means[:_PICTURES].to(first.device, first.dtype)
            reconstructions[name] = result.model.decode(means).cpu()
            with forked_seed(0):
                draws[name] = result.model.decode(torch.randn_like(means)).cpu()
        figure = _figure(8.0, 0.85 * (1 + 2 * len(self.results)), layout="compressed")
        plots.plot_reconstructions(
            first.cpu(), reconstructions, draws, self.image_shape, figure=figure
        )
        return figure

    def _latent_plane(self) -> "Figure":
        figure = _figure(3.4 * len(self.results) + 0.8, 3.8, layout="compressed")
        means = {name: result.means for name, result in self.results.items()}
        plots.plot_latent_plane(means, self.labels, figure=figure)
        return figure

    def to_inference_data(self, num_samples: int = _INFERENCE_DRAWS) -> dict[str, Any]:
        """ArviZ data of the held-out data, by guide."""

        def predictive(model: Any) -> int | None:
            simulates = hasattr(model, "sample_data")
            return min(num_samples, _PREDICTIVE_DRAWS) if simulates else None

        return {
            name: to_inference_data(
                result.model,
                result.held_out_guide,
                self.test,
                num_samples=num_samples,
                predictive_draws=predictive(result.model),
            )
            for name, result in self.results.items()
        }

    def save(self, folder: str | Path) -> Path:
        """Writes table, pictures, ArviZ data, models and what is needed to repeat the run.

        The folder gets `table.csv`, `summary.txt`, `run.json`, one PNG a figure, and, a guide,
        `NAME.nc` and `models/NAME/`.

        Returns:
            The folder.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._save_table(folder / "table.csv")
        (folder / "summary.txt").write_text(self.summary() + "\n")
        (folder / "run.json").write_text(json.dumps(self._run(), indent=2) + "\n")
        for name, figure in self.plot().items():
            figure.savefig(folder / f"{name}.png", dpi=150)
        for name, data in self.to_inference_data().items():
            data.to_netcdf(str(folder / f"{_slug(name)}.nc"))
        for name, result in self.results.items():
            place = folder / "models" / _slug(name)
            about = self._run()["about"]
            storage.save(place, model=result.model, guide=result.guide, about=about)
        return folder

    def _save_table(self, path: Path) -> None:
        names = [field.name for field in fields(Row)]
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(names)
            writer.writerows([getattr(row, name) for name in names] for row in self.rows())

    def _run(self) -> dict[str, Any]:
        from .. import __version__  # at the top it would be a circle: the root imports this module

        packages = ("torch", "pyro-ppl", "numpy", "arviz")
        return {
            "about": json.loads(json.dumps(dict(self.about), default=str)),
            "versions": {"pyro-vae": __version__, **{name: version(name) for name in packages}},
            "python": platform.python_version(),
        }


def _row(name: str, result: GuideResult, log_scale: float) -> Row:
    bound, log_marginal = result.test
    train, elbo, log_p = result.train_bound.mean, bound.mean, log_marginal.mean
    information = result.information
    return Row(
        guide=name,
        train_elbo=float(train.value) + log_scale,
        train_elbo_error=float(train.error),
        elbo=float(elbo.value) + log_scale,
        elbo_error=float(elbo.error),
        log_p=float(log_p.value) + log_scale,
        log_p_error=float(log_p.error),
        rate=float(bound.rate.value.mean()),
        distortion=float(bound.distortion.value.mean()) - log_scale,
        active_units=diagnostics.active_units(result.means)[0],
        mutual_information=float(information.estimate.value),
        mutual_information_error=float(information.estimate.error),
        ceiling=information.ceiling,
        unreliable=float((~(log_marginal.pareto_k <= 0.7)).double().mean()),
        seconds=result.seconds,
        epochs=int(result.fit.history.epoch[-1]) if len(result.fit.history.epoch) else 0,
    )


_HEADER = (
    "guide", "training ELBO", "ELBO", "log p", "rate", "distortion", "active",
    "information", "k > 0.7", "seconds", "epochs",
)  # fmt: skip


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.guide,
        f"{row.train_elbo:.3f} +- {row.train_elbo_error:.3f}",
        f"{row.elbo:.3f} +- {row.elbo_error:.3f}",
        f"{row.log_p:.3f} +- {row.log_p_error:.3f}",
        f"{row.rate:.3f}",
        f"{row.distortion:.3f}",
        str(row.active_units),
        f"{row.mutual_information:.3f} +- {row.mutual_information_error:.3f}",
        f"{row.unreliable:.0%}",
        f"{row.seconds:.1f}",
        str(row.epochs),
    )


def _figure(
    width: float, height: float, *, layout: Literal["constrained", "compressed"] = "constrained"
) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout=layout)  # inches


def _slug(name: str) -> str:
    """A name as a file name."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip(".-") or "guide"
