r"""A variational autoencoder as a scikit-learn estimator: embedding, density and sampler in one.

Tables may have words, categories and missing entries; :class:`pyro_vae.data.Columns` encodes them.
Each real column :math:`d` is standardized by its mean :math:`m_d` and its standard deviation
:math:`s_d` over the training rows, :math:`y_d = (x_d - m_d) / s_d`, and the model describes
:math:`y`. Reported densities are those of :math:`x`, in the data's own units:

.. math:: \log p_x(x) = \log p_y(y) - \sum_{d \in O} \log s_d

where :math:`O` are the row's observed entries. Missing entries (nan) contribute to neither term.

This module needs scikit-learn, and is imported when `pyro_vae.sklearn` is first used.
"""

import copy
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, no_type_check

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import defaults, likelihoods
from ._arguments import check_arguments
from ._types import optional
from ._warnings import warn
from .data import Categories, Columns, Dataset, Kind, Real, Scaling
from .data.checks import warn_constant_columns
from .data.copies import warn_of_copies
from .data.frames import CONTAINERS, columns_of, names_of
from .data.raw_columns import Holds
from .evidence import LogMarginal, log_marginal_likelihood
from .evidence.estimates import Estimator, posterior_means
from .formatting import count_of
from .guides import Family
from .likelihoods import Likelihood, Mixed
from .tables import TableVAE
from .training import adam_with

try:
    from sklearn.base import (
        BaseEstimator,
        ClassNamePrefixFeaturesOutMixin,
        DensityMixin,
        TransformerMixin,
    )
    from sklearn.utils import check_random_state
    from sklearn.utils.validation import check_array, check_is_fitted, validate_data
except ImportError:
    optional("sklearn", needed_for="pv.sklearn")
    raise

_ADVICE = (
    "pass real numbers of shape (n_samples, n_features), with nan for missing entries, or a data "
    "frame of pandas or polars, which may hold words"
)


class UnreliableDensityWarning(UserWarning):
    """The warning that too few draws dominate some values of `score_samples`."""


class VAE(
    ClassNamePrefixFeaturesOutMixin,  # type: ignore[misc]  # scikit-learn publishes no types
    TransformerMixin,  # type: ignore[misc]
    DensityMixin,  # type: ignore[misc]
    BaseEstimator,  # type: ignore[misc]
):
    r"""A variational autoencoder: `transform` embeds rows, `score_samples` gives their log density.

    The embedding is the mean of :math:`q(z \mid x)`. The log density is estimated by importance
    sampling, so it is :math:`\log p(x)` itself and not a bound, in nats, in the data's own units.
    The same `random_state` gives the same numbers, and the value of a row does not depend on the
    other rows of the call.

    Missing entries (nan) are marginalized: `fit` and `score_samples` use the density of the
    observed entries, and `inverse_transform(transform(X))` fills missing entries with the
    decoder's means. Rows may have missing entries only if the training rows had some.

    Arguments:
        latent_dim: Number of entries of z; by default chosen by :mod:`pyro_vae.defaults`.
        hidden: Widths of the encoder's hidden layers; the decoder has the same widths, reversed.
            By default chosen by :mod:`pyro_vae.defaults`.
        kinds: Kinds of some columns of a data frame, by name, where the rules of
            :class:`pyro_vae.data.Columns` do not fit.
        likelihood: A likelihood of :mod:`pyro_vae.likelihoods`. By default chosen by
            :mod:`pyro_vae.defaults`: Bernoulli for zeros and ones, Gaussian for other numbers, and
            a likelihood per column if columns are of several kinds.
        family: Family of q(z | x); by default a full-rank Gaussian for at most 32 latents and 512
            columns, and a mean-field Gaussian for more.
        standardize: Whether numbers are standardized internally; by default if their likelihood is
            Gaussian.
        max_epochs: Maximum number of passes over the training rows.
        batch_size: Rows per step; by default chosen by :mod:`pyro_vae.defaults`.
        learning_rate: Step size of Adam.
        early_stopping: Whether some rows are held out to decide when to stop. With fewer than 20
            rows, none are held out.
        validation_fraction: Share of the rows held out for early stopping.
        patience: Number of epochs without a better held-out ELBO after which training stops.
        evaluation: How log densities are estimated, a value of :mod:`pyro_vae.evidence`; by default
            importance sampling with 1000 draws per row, from a posterior that is wider than the
            trained one.
        random_state: Seed of the weights, of training and of every estimate.
        verbose: Whether to show progress bars.

    Attributes:
        model_: The Pyro program; `guide_`: its amortized posterior. Both take standardized rows.
        table_: Model and guide as a :class:`pyro_vae.TableVAE`, which also imputes, finds outliers
            and explains latents: `vae.table_.impute(X).completed()`, `vae.table_.explain(X)`.
        columns_: The columns; `center_`: the number subtracted from each column; `scale_`: the
            number that each column is then divided by.
        latent_dim_: Number of entries of z.
        history_: A record of each epoch; `n_epochs_`: the epoch that was kept.
        n_features_in_: Number of columns; `feature_names_in_`: names of the columns, if any.

    References:
        | Auto-Encoding Variational Bayes (Kingma & Welling, 2014)
        | https://arxiv.org/abs/1312.6114
        | Importance Weighted Autoencoders (Burda et al., 2016)
        | https://arxiv.org/abs/1509.00519

    Example:
        >>> from sklearn.datasets import load_iris
        >>> X = load_iris().data
        >>> vae = VAE(latent_dim=2, max_epochs=5, random_state=0).fit(X)
        >>> vae.transform(X).shape, vae.score_samples(X).shape, vae.sample(3).shape
        ((150, 2), (150,), (3, 4))
    """

    latent_dim: int | None
    hidden: Sequence[int] | None
    kinds: Mapping[str, Kind | type[Kind]] | None
    likelihood: Likelihood | None
    family: Family | None
    standardize: bool | None
    max_epochs: int
    batch_size: int | None
    learning_rate: float
    early_stopping: bool
    validation_fraction: float
    patience: int
    evaluation: Estimator | None
    random_state: Any
    verbose: bool | int

    @no_type_check  # by scikit-learn's convention, arguments are first checked in `fit`
    def __init__(  # noqa: PLR0913 (scikit-learn sets every choice by a name of its own)
        self,
        latent_dim: int | None = None,
        *,
        hidden: Sequence[int] | None = None,
        kinds: Mapping[str, Kind | type[Kind]] | None = None,
        likelihood: Likelihood | None = None,
        family: Family | None = None,
        standardize: bool | None = None,
        max_epochs: int = 300,
        batch_size: int | None = None,
        learning_rate: float = 2e-3,
        early_stopping: bool = True,
        validation_fraction: float = 0.1,
        patience: int = 30,
        evaluation: Estimator | None = None,
        random_state: Any = None,
        verbose: bool | int = False,
    ) -> None:
        self.latent_dim = latent_dim
        self.hidden = hidden
        self.kinds = kinds
        self.likelihood = likelihood
        self.family = family
        self.standardize = standardize
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.evaluation = evaluation
        self.random_state = random_state
        self.verbose = verbose

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def fit(self, X: Any, y: Any = None) -> "VAE":
        """Trains model and posterior on the rows of a table.

        Arguments:
            X: Numbers, `(n_samples, n_features)`, with nan for missing entries; or a data frame of
                pandas or polars, with columns of numbers, words or categories.
            y: Ignored.

        Raises:
            TypeError: If a column has a type without a likelihood, such as dates.
            ValueError: If there are fewer than two rows, a row or a column has no observed entry,
                or a value is infinite.
        """
        check_arguments(VAE.__init__, self.get_params(deep=False))  # here, by convention
        self.__dict__.pop("n_epochs_", None)  # until this call succeeds
        table, _ = self._table(X, reset=True)
        self.seed_ = _seed_of(self.random_state)
        with _naming_arrays(table):
            self.columns_ = Columns.of(table, self._kinds(table))
        self.center_, self.scale_ = self.columns_.center.numpy(), self.columns_.scale.numpy()
        rows = self.columns_.encode(table, dtype=torch.float64)
        self._sees_holes = bool(rows.isnan().any())
        self._make(Dataset("X", rows, rows[:0], columns=self.columns_))
        if isinstance(self.model_.likelihood, likelihoods.Gaussian | Mixed):
            warn_constant_columns(rows, self.columns_.names)
            warn_of_copies(rows, self.columns_.kinds)
        self.history_, self.n_epochs_ = self._trained()
        return self

    def __sklearn_is_fitted__(self) -> bool:
        """Whether the last call of `fit` succeeded; if it failed, its results are incomplete."""
        return "n_epochs_" in vars(self)

    def transform(self, X: Any) -> NDArray[np.floating]:
        """Embeds every row as the mean of its q(z | x), `(n_samples, latent_dim_)`."""
        rows, dtype = self._rows(X)
        with _constant_columns_allowed():
            means = posterior_means(self.model_, self.guide_, rows, seed=self.seed_)
        return means.numpy().astype(dtype)

    def inverse_transform(self, X: Any) -> Any:
        """Decodes latents `(n_samples, latent_dim_)` to means of p(x | z), in the data's own units.

        Returns:
            An array, or a table if the table passed to `fit` held words, categories or dates. In
            a column of words or categories, each entry is the most probable one.
        """
        _require_fitted(self)
        with _advised(_ADVICE):
            z = check_array(X, dtype=[np.float64, np.float32])
        if z.shape[1] != self.latent_dim_:
            raise ValueError(
                f"`X` must have {count_of(self.latent_dim_, 'column')}, one for each entry of z; "
                f"got {count_of(z.shape[1], 'column')}: pass latents, "
                "such as the output of transform() for your data"
            )
        means = self.model_.decode(torch.from_numpy(np.array(z, dtype=np.float64)))
        found = self._own_units(means)
        return found.astype(z.dtype) if isinstance(found, np.ndarray) else found

    def score_samples(self, X: Any) -> NDArray[np.floating]:
        """Log density of every row, `(n_samples,)`, in nats, in the data's own units.

        Warns:
            UnreliableDensityWarning: If some values cannot be trusted;
                :meth:`log_marginal_likelihood` says which ones, and why.
        """
        result = self.log_marginal_likelihood(X)
        bad = int((~result.reliable).sum())
        if bad:
            warn(
                f"the log density of {bad} of {count_of(len(result.value), 'row')} cannot be "
                f"trusted ({result.reasons}): train for longer, or pass evaluation=pv.Tightest(), "
                "which fits a proposal to each row. The mask log_marginal_likelihood(X).reliable "
                "is false for these rows",
                UnreliableDensityWarning,
            )
        return result.value.numpy()

    def log_marginal_likelihood(self, X: Any) -> LogMarginal:
        """The values of `score_samples`, with the error, ESS and Pareto k of every row."""
        rows, _ = self._rows(X)
        method = self.evaluation or defaults.wide_sampling(self.latent_dim_)
        with _constant_columns_allowed(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"log p\(y\) cannot be trusted", UserWarning)
            result = log_marginal_likelihood(
                self.model_, self.guide_, rows, method, seed=self.seed_, progress=bool(self.verbose)
            )
        return replace(result, value=result.value + self.columns_.log_scales(rows))

    def score(self, X: Any, y: Any = None) -> float:
        """Mean log density of the rows, in nats. Higher is better, as grid search requires."""
        return float(self.score_samples(X).mean())

    def sample(self, n_samples: int = 1, random_state: Any = None) -> Any:
        """Draws new rows from p(x), `(n_samples, n_features_in_)`, in the data's own units.

        The result is an array, or a table if the table passed to `fit` held words, categories or
        dates.

        Arguments:
            n_samples: Number of rows.
            random_state: Seed of the draws; if None, every call gives new draws.
        """
        _require_fitted(self)
        seed = _seed_of(random_state)
        return self._own_units(self.model_.sample(n_samples, seed=seed))

    @property
    def _n_features_out(self) -> int:
        """Number of columns of the embedding, for `get_feature_names_out`."""
        return self.latent_dim_

    def _rows(self, X: Any) -> tuple[Tensor, np.dtype[Any]]:
        """Encodes rows for the model; also returns the dtype of the results."""
        _require_fitted(self)
        table, dtype = self._table(X, reset=False)
        rows = self.columns_.encode(table, dtype=torch.float64)
        holes = int(rows.isnan().sum())
        if holes and not self._sees_holes:
            raise ValueError(
                f"`X` has {count_of(holes, 'missing entry')} (nan), but the rows passed to `fit` "
                "had none, so the encoder has not learned to handle them: fit on rows with missing "
                "entries, or fill in these entries"
            )
        return rows, dtype

    @no_type_check  # scikit-learn publishes no types
    def _table(self, X: Any, *, reset: bool) -> tuple[Any, np.dtype[Any]]:
        """Checks the input; returns a data frame unchanged, and other input as an array.

        If the estimator was fitted on a data frame, the array is returned as a dictionary of its
        columns, by name.
        """
        fewest = 2 if reset else 1
        is_frame = any(CONTAINERS[name].owns(X) for name in ("pandas", "polars"))
        if is_frame and (reset or self.columns_.named):
            names_of(X)
            with _advised("pass the columns that the estimator was fitted on"):
                validate_data(self, X, reset=reset, skip_check_array=True)
            if len(X) < fewest:
                raise ValueError(
                    f"Found array with {len(X)} sample(s) (shape={X.shape}) while a minimum of "
                    f"{fewest} is required by VAE; pass more rows"
                )
            return X, np.dtype(np.float64)
        with _advised(_ADVICE):
            X = validate_data(
                self,
                X,
                reset=reset,
                dtype=[np.float64, np.float32],
                ensure_all_finite="allow-nan",
                ensure_min_samples=fewest,
            )
        table = np.array(X)  # a copy: the input may be read-only
        if not reset and self.columns_.named:
            return dict(zip(self.columns_.names, table.T, strict=True)), table.dtype
        return table, table.dtype

    def _kinds(self, table: Any) -> dict[str, Kind | type[Kind]]:
        """Returns kinds for some columns, by name; `Columns` chooses the kinds of all others.

        The kinds that the user passed are included. If the user also passed `standardize`, or one
        likelihood for all columns, all other numeric columns are included as `Real`.
        """
        given, standardize = dict(self.kinds or {}), self.standardize
        if standardize is None:
            if self.likelihood is None or isinstance(self.likelihood, Mixed):
                return given
            standardize = isinstance(self.likelihood, likelihoods.Gaussian)
        numbers = [
            name
            for name, raw in columns_of(table).items()
            if raw.holds is not Holds.WORDS and raw.categories is None
        ]
        return {**dict.fromkeys(numbers, Real if standardize else Real()), **given}

    def _make(self, dataset: Dataset) -> None:
        """Makes model and guide, as attributes; the family is copied, so that it can be reused."""
        sizes = defaults.Architecture(self.latent_dim, self.hidden, self.seed_, self.likelihood)
        self.latent_dim_, _ = sizes.of(dataset)
        self.table_ = TableVAE.of(
            dataset,
            sizes,
            family=copy.deepcopy(self.family),
            validation_fraction=self.validation_fraction if self.early_stopping else 0.0,
        )
        self.model_, self.guide_ = self.table_.model, self.table_.guide

    def _trained(self) -> tuple[Any, int]:
        """Trains model and guide; returns the history, and the epoch that was kept."""
        how: dict[str, Any] = {} if self.batch_size is None else {"batch_size": self.batch_size}
        if self.table_.validation is not None:
            how["patience"] = self.patience
        try:
            with _constant_columns_allowed():
                result = self.table_.fit(
                    num_epochs=self.max_epochs,
                    optimizer=adam_with(self.learning_rate),
                    seed=self.seed_,
                    progress=bool(self.verbose),
                    **how,
                )
        finally:  # an estimator does not keep its rows, not even if training fails
            self.table_.dataset = self.table_.validation = None
        if result.stopped == "interrupted":
            warn(
                f"training was interrupted after {count_of(len(result.history.epoch), 'epoch')}, "
                "and the estimator uses the parameters reached by then: call `fit` again to train "
                "it"
            )
        return result.history, result.best_epoch

    def _own_units(self, rows: Tensor) -> Any:
        """Decodes rows to an array of numbers, or to a table if the training rows held words."""
        if self.columns_.numeric:
            units = Scaling(self.columns_.center, self.columns_.scale)
            numbers = units.decode(rows.double()).numpy()
            for place, kind in enumerate(self.columns_.kinds.values()):
                if isinstance(kind, Categories):  # rows have codes, or means between two codes
                    entries = [float(entry) for entry in kind.categories]
                    numbers[:, place] = np.interp(numbers[:, place], range(len(entries)), entries)
            return numbers
        return self.columns_.decode(rows)


@contextmanager
def _constant_columns_allowed() -> Iterator[None]:
    """Silences the warning about constant columns, which are common if there are few rows."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"values are constant in", UserWarning)
        yield


@contextmanager
def _advised(advice: str) -> Iterator[None]:
    """Adds advice to the messages of scikit-learn's own errors."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise type(error)(f"{error}\n{advice}") from error


@contextmanager
def _naming_arrays(table: Any) -> Iterator[None]:
    """Rewords errors that the block raises about an array, so that their remedy is for arrays."""
    try:
        yield
    except ValueError as error:
        if not isinstance(table, np.ndarray):
            raise
        drop = re.compile(r"(the data frame )?X\.drop\(columns=\[([\d', ]+)\]\)")
        text = drop.sub(
            lambda m: f"np.delete(X, [{m[2].replace(chr(39), '')}], axis=1)", str(error)
        )
        raise ValueError(text) from error


def _seed_of(random_state: Any) -> int:
    """A seed, drawn from any `random_state` that scikit-learn accepts."""
    with _advised("pass a whole number of at least 0, a RandomState or None"):
        return int(check_random_state(random_state).randint(2**31 - 1))


def _require_fitted(estimator: "VAE") -> None:
    with _advised("fit the estimator first, as in vae.fit(X)"):
        check_is_fitted(estimator)
