r"""A VAE of a table: from a data frame to a model, whose answers have the frame's names and units.

Three lines turn a table into a model, with a likelihood for each column and an encoder for
categories and missing entries (:mod:`pyro_vae.defaults`):

    table = pv.data.load("lab.csv", drop=["sample_id"])
    vae = pv.TableVAE.of(table)
    vae.fit(num_epochs=300)

`vae.model`, `vae.guide` and `table.train` work with everything else in this library. The
`TableVAE`, in memory and on disk, also has the names of the columns, which are used to match the
columns of later tables. It has centres and scales, so that densities are in the data's own units.
It has digests of the training rows, so that no training row is mistaken for held-out data.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from . import defaults, storage
from ._arguments import check_public
from ._types import ProgramLike, optional
from .data import Categories, Columns, Dataset, Positive, Scaling, from_frame, split_rows
from .data.dataset import binarized_once, parts_of, trained_on
from .data.frames import index_of
from .defaults import GUIDES, Architecture
from .evidence import (
    Evaluation,
    ImportanceSampling,
    LogMarginal,
    evaluate,
    log_marginal_likelihood,
)
from .evidence.estimates import Estimator
from .formatting import count_of, first_few
from .guides import Family, Guide
from .guides.entry import for_any_rows, for_new_rows
from .models.base import Decoded
from .queries import (
    ConditionalDensity,
    Dependence,
    Explanation,
    Imputation,
    Outliers,
    Similarity,
    Traversal,
    conditional_density,
    dependence,
    encode,
    explain,
    impute,
    outliers,
    similarity,
    traverse,
)
from .queries.measures import Measure
from .randomness import row_digests
from .results import Result, data_frame
from .storage.cards import UNITS
from .storage.folders import JSON
from .table_report import Subject, report_of
from .training import Fit, fit
from .writing import require_file_place, whole_file

__all__ = ["TableVAE"]

_FEWEST_TO_SPLIT = 20  # rows; with fewer, one or two held-out rows cannot say when to stop
_PATIENCE = 50  # epochs: the validation ELBO of a few rows is noisy
# Grid for a positive column: its half-width in standard deviations of the logarithms, and size.
_SPREADS, _POINTS = 4, 201
_RANKED = 250  # draws per log p that is ranked: its error is small beside differences between rows
_WEIGHTED = 2000  # draws per row: errors of means are below 3% of the spread
_MOST_DIGESTS = 500_000  # rows; each takes 11 bytes of the 32 MiB that saved metadata may have


@dataclass(eq=False, repr=False)
class TableVAE:
    """A model of a table, its guide, and the encoding of the table.

    :meth:`of` makes all of these for a given table.

    Most methods take a table with the columns of the training table, in any order, and return
    results in the units of these columns. Without a table, they use the held-out rows;
    :meth:`explain` and :meth:`traverse` use the training rows.

    Arguments:
        model: The Pyro program of encoded rows.
        guide: The guide.
        units: Kinds, centres and scales of the columns, with which tables are encoded.
        holes: Whether the encoder has seen missing entries.
        digests: Digests of the training rows, or None if they are not known.
        dataset: The data set whose training rows `fit` uses; None if the rows are not available.
        validation: Rows set aside from the training rows, or None. `fit` keeps the epoch with the
            highest ELBO of these rows.
        history: The training history; None before training.

    Example:
        >>> frame = {"age": [31.5, 47.0, None, 22.0, 60.5], "sex": ["f", "m", "m", "f", "f"]}
        >>> vae = TableVAE.of(from_frame(frame))
        >>> vae.fit(num_epochs=1).stopped
        'finished'
        >>> sorted(vae.impute(frame, 10).completed())
        ['age', 'sex']
    """

    model: Decoded
    guide: Guide
    units: Columns | Scaling
    holes: bool
    digests: Int64[Tensor, " train"] | None = None
    dataset: Dataset | None = None
    validation: Float[Tensor, "validation *datum"] | None = None
    history: Fit | None = None

    @classmethod
    def of(
        cls,
        data: Any,
        architecture: Architecture = Architecture(),  # noqa: B008 (frozen)
        *,
        guide: str = GUIDES[0],
        family: Family | None = None,
        validation_fraction: float = 0.0,
    ) -> "TableVAE":
        """Makes an untrained model of a table; its columns determine likelihood and sizes.

        Arguments:
            data: The result of :func:`pyro_vae.data.load` or :func:`pyro_vae.data.from_frame`, or a
                table, to which `from_frame` is applied.
            architecture: Sizes, the seed of the weights, and perhaps a likelihood of your own.
            guide: "amortized", "per-datum" or "global".
            family: Family of q(z | y). By default it is a mean-field Gaussian, or a full-rank one
                if training starts from factor analysis and there are at most 32 latents.
            validation_fraction: Share of the training rows that is set aside, such as a tenth;
                `fit` chooses the epoch to keep by the ELBO of these rows. With fewer than 20
                training rows, or the guide "per-datum", none are set aside.
        """
        dataset = data if isinstance(data, Dataset) else from_frame(data)
        holes = _has_holes(dataset)
        splits = validation_fraction != 0 and guide != "per-datum"
        rows, held_out = dataset.train, None
        if splits and len(rows) >= _FEWEST_TO_SPLIT:
            split = split_rows(len(rows), test_fraction=validation_fraction, seed=architecture.seed)
            rows, held_out = rows[split.train], rows[split.test]
            held_out = binarized_once(held_out, dataset.binarization, part=2)
        fitted = replace(dataset, train=rows, train_labels=None, digests=None)
        model = defaults.vae(fitted, architecture)
        posterior = defaults.guide(model, fitted, architecture, name=guide, family=family)
        return cls(model, posterior, dataset.units, holes, dataset.digests, fitted, held_out)

    def fit(self, **how: Any) -> Fit:
        """Trains on the training rows; takes the arguments of :func:`pyro_vae.fit`.

        If there are validation rows, the epoch with the highest ELBO of these rows is kept, and
        training stops after 50 epochs without a higher ELBO, unless the arguments say otherwise.

        The summary and the plot of the result give ELBOs in the table's own units. Progress bars
        and `history` give the ELBOs that are optimized, in which columns are standardized.
        """
        if self.dataset is None:
            raise ValueError(
                "the model has no training rows: create a model with pv.TableVAE.of(table)"
            )
        how.setdefault("batch_size", defaults.batch_size(len(self.dataset.train)))
        if self.validation is not None and "validation" not in how:
            how = {"validation": self.validation, "patience": _PATIENCE, **how}
        found = fit(self.model, self.guide, parts_of(self.dataset)[0], **how)
        self.history = replace(found, log_scale=training_scale(self.dataset))
        return self.history

    def __repr__(self) -> str:
        columns = self.units.kinds.items() if isinstance(self.units, Columns) else ()
        kinds = first_few([f"{name}: {type(kind).__name__}" for name, kind in columns])
        trained = None if self.digests is None else count_of(len(self.digests), "training row", ",")
        seen = f"; {trained}" if trained else ""
        latents = f"{self.model.latent_dim} latent{'s' * (self.model.latent_dim != 1)}"
        return f"<TableVAE: {latents}{seen}{f'; {kinds}' if kinds else ''}>"

    def rows(self, data: Any = None) -> Float[Tensor, "rows *datum"]:
        """Encodes a table for the model; by default returns the held-out rows.

        Raises:
            ValueError: If a column is missing or unknown, or an entry does not fit its column.
        """
        if data is not None:
            return self.units.encode(data, dtype=self._dtype)
        if self.dataset is None:
            raise ValueError("no rows are stored with this model: pass a table as `data`")
        return parts_of(self.dataset)[1]

    @property
    def _dtype(self) -> torch.dtype:
        weights = [part for part in self.model.parameters() if part.is_floating_point()]
        return weights[0].dtype if weights else torch.get_default_dtype()

    def trained_on(self, data: Any) -> Tensor:
        """Returns a mask `(rows,)`, true for those rows of a table on which the model was trained.

        Rows of an array that was binarized are recognized by their values before binarization.

        Raises:
            ValueError: If the digests of the training rows are not known.
        """
        if self.digests is None:
            raise ValueError(
                "pyro_vae does not know on which rows this model was trained: create the model "
                "with pv.TableVAE.of(table)"
            )
        # Rows of a table are digested after they are standardized, rows of an array before.
        plain = self.units if isinstance(self.units, Columns) else Scaling()
        return trained_on(row_digests(plain.encode(data, dtype=self._dtype)), self.digests)

    def embed(self, data: Any = None, *, seed: int = 0) -> Any:
        """A data frame of the posterior mean of every row, with a column for each latent.

        The index of a pandas table is kept, so that the result can be joined to the table. Latents
        are named as in :meth:`explain`.
        """
        rows = self.rows(data)
        means = encode(self.model, self._posterior(rows, seed), rows, seed=seed)
        columns = means.cpu().numpy().T
        names = [f"z[{k}]" for k in range(len(columns))] if len(columns) > 1 else ["z"]
        frame = data_frame(dict(zip(names, columns, strict=True)))
        if (index := index_of(data)) is not None:
            frame.index = index
        return frame

    def evaluate(
        self,
        data: Any = None,
        estimator: ImportanceSampling = ImportanceSampling(),  # noqa: B008 (frozen)
        *,
        seed: int = 0,
        progress: bool | None = None,
    ) -> Evaluation:
        """ELBO and log density of every row, from the same draws; see :func:`pyro_vae.evaluate`."""
        rows = self.rows(data)
        posterior = self._posterior(rows, seed)
        found = evaluate(self.model, posterior, rows, estimator, seed=seed, progress=progress)
        return found.shifted(self._shift(rows))

    def log_marginal_likelihood(
        self,
        data: Any = None,
        estimator: Estimator | None = None,
        *,
        seed: int = 0,
        progress: bool | None = None,
    ) -> LogMarginal:
        """Log density of every row; see :func:`pyro_vae.log_marginal_likelihood`.

        By default, the estimate uses 1000 draws per row, from a q that is wider than the trained
        one.
        """
        rows = self.rows(data)
        how = estimator or defaults.wide_sampling(self.model.latent_dim)
        posterior = self._posterior(rows, seed)
        result = log_marginal_likelihood(
            self.model, posterior, rows, how, seed=seed, progress=progress
        )
        return self._own(result, rows)

    def outliers(
        self,
        data: Any = None,
        reference: Any = 1000,
        *,
        seed: int = 0,
        progress: bool | None = None,
        **how: Any,
    ) -> Outliers:
        """How unusual each row is; see :func:`pyro_vae.outliers`.

        `reference` is a number of rows to simulate, or a table. By default, log densities use 250
        draws per row, from a q that is wider than the trained one. A guide with parameters for
        each row is not used: instead, a q is fitted to every row.
        """
        rows = self.rows(data)
        is_number = isinstance(reference, int | np.integer)
        held: Any = reference if is_number else self.rows(reference)
        posterior = self._for_other_rows(rows)
        how = {"estimator": self._wide(posterior, _RANKED), "seed": seed, **how}
        found = outliers(self.model, posterior, rows, held, progress=progress, **how)
        shift = self._shift(rows).to(found.reference)
        return replace(found, log_p=self._own(found.log_p, rows), reference=found.reference + shift)

    def similarity(
        self,
        data: Any = None,
        others: Any = None,
        *,
        seed: int = 0,
        progress: bool | None = None,
    ) -> Similarity:
        """Similarity of every row to other rows; see :func:`pyro_vae.queries.similarity`."""
        rows = self.rows(data)
        beside = None if others is None else self.rows(others)
        posterior = self._posterior(rows, seed)
        if beside is not None:
            self._check_holes(beside)
        wide = self._wide(posterior, _WEIGHTED)
        return similarity(self.model, posterior, rows, beside, wide, seed=seed, progress=progress)

    def impute(
        self,
        data: Any = None,
        num_samples: int = 100,
        *,
        seed: int = 0,
        progress: bool | None = None,
    ) -> Imputation:
        """Draws missing entries; see :func:`pyro_vae.impute`.

        The method `completed()` of the result returns a table without missing entries.
        """
        rows = self.rows(data)
        # Without a guide, a q is fitted to every row.
        posterior = None if self._new_holes(rows) else self._posterior(rows, seed)
        given: dict[str, Any] = {"estimator": self._wide(posterior, _WEIGHTED), "seed": seed}
        filled = impute(self.model, posterior, rows, num_samples, progress=progress, **given)
        if not isinstance(self.units, Columns):
            return filled
        exact = filled.value
        if data is not None:  # entries as they were, before they were rounded for the model
            known = self.units.encode(data, dtype=torch.float64).to(exact)
            exact = exact.where(filled.missing, known)
        return replace(filled, value=exact, table=self.units, asked=data)

    def conditional_density(
        self, column: str, data: Any = None, *, seed: int = 0, progress: bool | None = None
    ) -> ConditionalDensity:
        """Density of a column for each row, given the row's other columns, in the column's unit.

        See :func:`pyro_vae.queries.conditional_density`. The column's own entries are ignored.

        Example:
            >>> table = {"age": [31.5, 47.0, None, 22.0, 60.5], "sex": ["f", "m", "m", "f", "f"]}
            >>> vae = TableVAE.of(table)
            >>> few = {"age": [31.5, 60.5], "sex": ["f", None]}
            >>> found = vae.conditional_density("sex", few, progress=False)
            >>> found.categories, found.value.shape
            (('f', 'm'), torch.Size([2, 2]))
        """
        rows, columns = self.rows(data), self._columns()
        given: dict[str, Any] = {"names": columns.names, "seed": seed, "progress": progress}
        kind = columns.kinds.get(column)
        if isinstance(kind, Categories):
            given["grid"] = torch.arange(float(len(kind.categories)), device="cpu")
        elif isinstance(kind, Positive):  # evenly spaced logarithms: half the mass may be near 0
            far = _SPREADS * kind.spread
            given["grid"] = torch.linspace(-far, far, _POINTS, device="cpu").exp()
        posterior = self._for_other_rows(rows)
        given["estimator"] = self._wide(posterior, _WEIGHTED)
        found = conditional_density(self.model, posterior, rows, column, **given)
        others, place = rows.clone(), columns.names.index(column)
        others[:, place] = torch.nan
        found = replace(found, evidence=self._own(found.evidence, others))
        return found.in_units_of(columns.columns[place])

    def dependence(self, measure: Measure | None = None, *, seed: int = 0) -> Dependence:
        """Dependence between every two columns; see :func:`pyro_vae.queries.dependence`."""
        names = self._columns().names
        return dependence(self.model, self.guide, None, measure, names=names, seed=seed)

    def explain(self, data: Any = None, *, seed: int = 0) -> Explanation:
        """Finds which latents affect which columns; see :func:`pyro_vae.queries.explain`.

        The rows of `data`, by default the training rows, determine the range of each latent, and
        the information by which latents are ordered.
        """
        rows, posterior = self._explored(data, seed)
        return explain(self.model, posterior, rows, self._columns_or_none, seed=seed)

    def traverse(self, data: Any = None, *, seed: int = 0, **how: Any) -> Traversal:
        """Decoded means along each latent; see :func:`pyro_vae.traverse`."""
        rows, posterior = self._explored(data, seed)
        walk = traverse(self.model, posterior, rows, seed=seed, **how)
        return replace(walk, table=self._columns_or_none)

    def sample(self, num_samples: int = 1, *, seed: int = 0) -> Any:
        """Draws new rows from p(y); returns a table like the training table."""
        return self.units.decode(self.model.sample(num_samples, seed=seed))

    def report(
        self,
        path: str | Path,
        data: Any = None,
        num_samples: int = 1000,
        reference: int = 1000,
        *,
        seed: int = 0,
        progress: bool | None = None,
    ) -> None:
        """Writes all results on one HTML page, the findings first, as `pyro-vae report` does.

        Arguments:
            path: The file, which ends in `.html`; it needs no network and no other file.
            data: A table; by default the held-out rows.
            num_samples: Importance samples per datum.
            reference: Number of rows to simulate, with which outliers are compared.
            seed: Seed of all draws.
            progress: Whether to show progress bars; by default on terminals and in notebooks.

        Raises:
            ValueError: If the file cannot be written; raised before anything is computed.
            ImportError: If matplotlib is not installed; raised before anything is computed.
        """
        place = Path(path)
        if place.suffix != ".html":
            raise ValueError(f"`path` must end in .html; got '{place}': pass, say, 'report.html'")
        optional("matplotlib", needed_for=f"'{place}'")
        require_file_place(place)
        rows = self.rows(data)
        names: dict[str, Any] = {"row": range(len(rows))}
        if (index := index_of(data)) is not None:
            names[str(index.name or "index")] = list(index)
        subject = Subject(
            self,
            data,
            count_of(len(rows), f"{'held-out ' * (data is None)}row", ","),
            names,
            seen=0 if data is None or self.digests is None else int(self.trained_on(data).sum()),
            ranging=None if self.dataset is not None else data,
            training="" if self.history is None else self.history.promise,
            facts={"columns": str(self.units)},
        )
        page = report_of(subject, num_samples, reference, seed=seed, progress=progress)
        with whole_file(place) as new:
            new.write_text(page.html(), encoding="utf-8")

    def save(self, folder: str | Path, about: Mapping[str, JSON | Result] | None = None) -> None:
        """Saves model, guide and the encoding of the table, as :func:`pyro_vae.save` does.

        Raises:
            ValueError: As for :func:`pyro_vae.save`, or if a note in `about` has a name that this
                class needs: "table", "units", "missing" or "digests".
        """
        if taken := sorted(UNITS & set(about or {})):
            raise ValueError(
                f"`about` must not have notes called {', '.join(sorted(UNITS))}, because the "
                f"columns are saved under these names; got {taken}: rename these notes"
            )
        trained = self.history
        notes = {
            **_saved(self.units, self.digests, holes=self.holes),
            **(
                {}
                if trained is None
                else {"training": trained.summary(), "converged": trained.promise}
            ),
            **(about or {}),
        }
        storage.save(folder, model=self.model, guide=self.guide, about=notes)

    @classmethod
    def load(cls, folder: str | Path) -> "TableVAE":
        """Loads a model that :meth:`save` or `pyro-vae fit` saved.

        Raises:
            ValueError: If the folder holds a model without its columns.
        """
        about = storage.read_about(folder)
        if not set(about) >= UNITS:
            raise ValueError(
                f"'{folder}' was not saved by the command line or by TableVAE, so pyro_vae does "
                "not know its columns: call pv.load and pv.log_marginal_likelihood in Python"
            )
        model, guide = storage.load(folder)
        made = Columns if about["table"] else Scaling
        try:
            units, digests = made.from_json(about["units"]), _unpacked(about["digests"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"the description of the columns in '{folder}' is damaged ({error!r}): copy the "
                "original folder again"
            ) from error
        return cls(model, guide, units, bool(about["missing"]), digests)

    @property
    def _columns_or_none(self) -> Columns | None:
        return self.units if isinstance(self.units, Columns) else None

    def _columns(self) -> Columns:
        if not isinstance(self.units, Columns):
            raise ValueError(  # noqa: TRY004 (about how the model was made, not an argument)
                "this is not a model of a table, so its columns have no names: make such a model "
                "with pv.TableVAE.of(table)"
            )
        return self.units

    def _explored(self, data: Any, seed: int) -> tuple[Tensor, ProgramLike]:
        """Returns the rows of `data`, by default the training rows, and the guide for them."""
        if data is not None:
            rows = self.rows(data)
        elif self.dataset is not None:
            rows = binarized_once(self.dataset.train, self.dataset.binarization, part=0)
        else:
            raise ValueError(
                "the training rows are not stored with this model: pass a table as `data`"
            )
        trained = None if self.dataset is None else self.dataset.train
        return rows, self._posterior(rows, seed, new=rows is not trained)

    def _posterior(self, rows: Tensor, seed: int, *, new: bool = True) -> ProgramLike:
        """Returns the guide for these rows; refuses missing entries that it cannot handle.

        If the guide has parameters per row and the rows are `new`, parameters are first fitted to
        these rows.
        """
        self._check_holes(rows)
        found: ProgramLike = self.guide
        return for_new_rows(found, rows, seed=seed, progress=False) if new else found

    def _for_other_rows(self, rows: Tensor) -> ProgramLike | None:
        """Returns the guide for a query that simulates rows or hides entries of the given rows.

        The result is None if the guide cannot handle rows other than its own, or missing entries.
        """
        return None if self._new_holes(rows) else for_any_rows(self.guide, None)[0]

    def _wide(self, posterior: ProgramLike | None, num_samples: int) -> ImportanceSampling | None:
        """Returns importance sampling from a widened q, or None if there is no guide."""
        if posterior is None:
            return None
        return defaults.wide_sampling(self.model.latent_dim, num_samples)

    def _new_holes(self, rows: Tensor) -> int:
        """Counts missing entries, which a guide can handle only if its training rows had some."""
        return 0 if self.holes else int(rows.isnan().sum())

    def _check_holes(self, rows: Tensor) -> None:
        if holes := self._new_holes(rows):
            raise ValueError(
                f"the rows have {count_of(holes, 'missing entry')}, but the training rows had "
                "none, so the encoder has not learned to handle them: train on data with missing "
                "entries, or fill in these entries with `impute`, which needs no encoder"
            )

    def _shift(self, rows: Tensor) -> Float[Tensor, " rows"]:
        return self.units.log_scales(rows.double())

    def _own(self, result: LogMarginal, rows: Tensor) -> LogMarginal:
        return replace(result, value=result.value + self._shift(rows).to(result.value.device))


def training_scale(dataset: Dataset) -> float:
    """Nats per datum to add to a mean training ELBO, to get the ELBO in the table's units."""
    return float(dataset.log_scales(dataset.train.double()).mean())


def saved_beside(dataset: Dataset) -> dict[str, JSON]:
    """Returns the metadata that are saved with a model, for :meth:`TableVAE.load`."""
    return _saved(dataset.units, dataset.digests, holes=_has_holes(dataset))


def _has_holes(dataset: Dataset) -> bool:
    return bool(dataset.train.isnan().any() or dataset.test.isnan().any())


def _saved(
    units: Columns | Scaling, digests: Int64[Tensor, " train"] | None, *, holes: bool
) -> dict[str, JSON]:
    return {
        "table": isinstance(units, Columns),
        "units": units.to_json(),
        "missing": holes,
        "digests": _packed(digests),
    }


def _packed(digests: Int64[Tensor, " train"] | None) -> str | None:
    if digests is None or len(digests) > _MOST_DIGESTS:
        return None
    return base64.b64encode(digests.numpy().astype("<i8").tobytes()).decode()


def _unpacked(text: str | None) -> Int64[Tensor, " train"] | None:
    if text is None:
        return None
    return torch.from_numpy(
        np.frombuffer(base64.b64decode(text, validate=True), dtype="<i8").astype(np.int64)
    )


check_public(globals())
