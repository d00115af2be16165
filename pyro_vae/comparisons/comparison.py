"""The result of a comparison, as a table, figures or ArviZ data; it can be saved to a folder."""

import json
import math
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .._types import Batch, ProgramLike, is_importable
from ..formatting import count_of
from ..programs.hooks import hooks_of
from ..results import Result, data_frame
from .columns import COLUMNS, Entry, Row
from .results import Difference, GuideResult, differences_of, verdict_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_INFERENCE_DRAWS = 100  # draws in the ArviZ data that are saved
_PREDICTIVE_DRAWS = 20  # draws with simulated data, which are large


@dataclass(frozen=True, repr=False)
class Comparison(Result):
    """The results of several guides on the same held-out data.

    Arguments:
        results: The result of each guide, by its name.
        test: The held-out data.
        labels: Classes of the held-out data, or None.
        image_shape: Height and width of a datum in pixels, or None.
        log_scale: Nats per datum to add to log densities of held-out data, to convert them to the
            data's own units.
        about: Notes on what is needed to repeat the run.
        train_log_scale: Nats per datum to add to log densities of training data. It differs from
            `log_scale` if different entries are missing in the training data.
        others: The same comparison under other seeds. Only the last of these comparisons may be
            incomplete, namely after an interruption.
    """

    results: Mapping[str, GuideResult]
    test: Batch
    labels: Tensor | None
    image_shape: tuple[int, int] | None
    log_scale: float
    about: Mapping[str, Any]
    train_log_scale: float = 0.0
    others: "tuple[Comparison, ...]" = ()

    @property
    def interrupted(self) -> bool:
        """Whether training under this seed was interrupted; if so, some guides may be missing."""
        return any(result.fit.stopped == "interrupted" for result in self.results.values())

    @property
    def trained_model(self) -> bool:
        """Whether every guide trained its own copy of the model."""
        return bool(self.about.get("train_model", True))

    @property
    def complete(self) -> "tuple[Comparison, ...]":
        """The comparisons of all seeds whose training was not interrupted."""
        return tuple(table for table in (self, *self.others) if not table.interrupted)

    def rows(self) -> list[Row]:
        """Returns a row per guide: results of the first seed, and the spread between seeds."""
        entries = [Entry(name, self) for name in self.results]
        return [Row(one.name, {col.key: col.of(one) for col in COLUMNS}) for one in entries]

    def to_dataframe(self) -> Any:
        """Returns the table, one row per guide, with the columns of `table.csv`; needs pandas."""
        return data_frame([row.record() for row in self.rows()])

    def summary(self) -> str:
        """Returns the table as text, with a line on how to read the table."""
        shown = [column for column in COLUMNS if column.short]
        rows = [[column.text(row.values[column.key]) for column in shown] for row in self.rows()]
        cells = [[column.short for column in shown], *rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(width) if place == 0 else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in cells
        ]
        rule = "-" * max(len(line) for line in lines)
        return "\n".join([lines[0], rule, *lines[1:], "", self._notes()])

    def __repr__(self) -> str:
        number = len(self.test[0])
        return f"<Comparison of {', '.join(self.results)} on {count_of(number, 'held-out datum')}>"

    def _notes(self) -> str:
        rows = self.rows()
        models = (
            "Every guide trained its own copy of the model, so only log p can be compared"
            if self.trained_model
            else "The model is fixed, so ELBOs can be compared, too"
        )
        ceiling = rows[0].number("ceiling") if rows else math.nan
        return (
            "Nats per datum, for held-out data unless marked as training; ± is one Monte Carlo "
            f"standard error. {models}.\nMutual information is at most log N = {ceiling:.2f}. "
            "A datum is partly covered if its log p cannot be estimated from the guide's own "
            f"importance weights.\n\n{self.verdict}"
        )

    def differences(self) -> list[Difference]:
        """Paired differences between guides, datum by datum, on the same held-out data."""
        return differences_of(self.results)

    @property
    def verdict(self) -> str:
        """Sentences on the cost of each guide, and on how the guides differ."""
        verdict = verdict_of(self.results, train_model=self.trained_model)
        if len(self.complete) < 2:
            return verdict
        spreads = ", ".join(f"{row.guide} {row.number('log_p_spread'):.3f}" for row in self.rows())
        return (
            f"{verdict}\nStandard deviation of log p between the "
            f"{count_of(len(self.complete), 'seed')} (nats): {spreads}."
        )

    def plot(self) -> "dict[str, Figure]":
        """Returns figures by name, to show in a notebook or to save; opens no window."""
        from .figures import figures_of  # drawing code is imported only to draw

        return figures_of(self)

    def _picture(self) -> "Figure":
        """Draws only the figure at the head of the page: ELBO and log p of every guide."""
        from .figures import leading_figure

        return leading_figure(self)

    @cached_property
    def pictures(self) -> dict[str, bytes]:
        """The figures of `plot` as PNG files, drawn only once; empty if matplotlib is missing."""
        if not is_importable("matplotlib"):
            return {}
        from .figures import pictures_of

        return pictures_of(self)

    def to_inference_data(self, num_samples: int = _INFERENCE_DRAWS) -> dict[str, Any]:
        """Draws latents of the held-out data; returns ArviZ data for each guide, by its name."""
        from ..inference_data import to_inference_data

        def predictive(model: ProgramLike) -> int | None:
            simulates = hooks_of(model).sample_data is not None
            return min(num_samples, _PREDICTIVE_DRAWS) if simulates else None

        return {
            name: to_inference_data(
                result.model,
                result.held_out_guide,
                self.test,
                num_samples=num_samples,
                num_predictive_samples=predictive(result.model),
                num_prior_samples=0,
            )
            for name, result in self.results.items()
        }

    def save(self, folder: str | Path, *, fixed: "Comparison | None" = None) -> Path:
        """Writes table, pictures, ArviZ data, models and what is needed to repeat the run.

        The folder gets `report.html` (one page with all results, for any browser), `table.csv`,
        `summary.txt`, `run.json`, one PNG per figure and, for each guide, `NAME.nc` and
        `models/NAME/`. Here NAME is the guide's name, in a form that every system allows. The
        folder is written atomically, and replaces an older comparison.

        Without matplotlib there are no figures, and without h5netcdf no ArviZ data. Everything else
        is saved. A warning says which files are missing, and which command installs the packages
        that they need.

        Arguments:
            folder: A folder that only this comparison uses.
            fixed: A second comparison of the same guides, with one fixed model: the model that the
                first guide trained. It is saved in `fixed_model/`, and shown on the same page.

        Returns:
            The folder.

        Raises:
            ValueError: If the folder holds anything but a comparison, or cannot be written.
        """
        from .saving import save_comparison  # `saving` imports this module

        return save_comparison(self, Path(folder), fixed)

    def save_table(self, path: Path) -> None:
        """Writes the table as csv, with one row per guide and each error next to its value."""
        from ..writing import write_csv

        records = [row.record() for row in self.rows()]
        write_csv(path, [[*records[0]], *(record.values() for record in records)])

    def provenance(self) -> dict[str, Any]:
        """Returns the notes and package versions that are needed to repeat the run.

        The dict that is returned can be written as JSON.
        """
        from .. import __version__  # imported here, because the root imports this module first

        packages = ("torch", "pyro-ppl", "numpy", "arviz")
        return {
            "about": json.loads(json.dumps(dict(self.about))),
            "versions": {"pyro-vae": __version__, **{name: version(name) for name in packages}},
            "python": platform.python_version(),
        }
