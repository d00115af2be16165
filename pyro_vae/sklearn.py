r"""A variational autoencoder as a scikit-learn estimator: embedding, density and sampler in one.

Each real column is centered by its mean and divided by its standard deviation over the training
rows, :math:`y_d = (x_d - m_d) / s_d`, and the model is of :math:`y`. Densities that come out are of
:math:`x`, in the data's own units:

.. math:: \log p_x(x) = \log p_y(y) - \sum_{d \in O} \log s_d

where :math:`O` are the entries that were observed; a nan was not, and leaves both sums.

This module needs scikit-learn, and is imported when `pyro_vae.sklearn` is first asked for.
"""

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, no_type_check

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    DensityMixin,
    TransformerMixin,
)
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_array, check_is_fitted, validate_data
from torch import Tensor

from . import likelihoods, models, nets
from .data import split_rows, warn_constant_columns
from .evidence import ImportanceSampling, LogMarginal, Widened, log_marginal_likelihood
from .evidence.estimates import Estimator, posterior_means
from .guides import Encoder, Family, Guide
from .likelihoods import Likelihood, start_from
from .randomness import forked_seed
from .training import Fit, adam_with, fit

# A fifth wider than the trained posterior, whose tails are too light: on iris no row is unreliable
# then, where three of 38 are without it.
_EVALUATION = ImportanceSampling(1000, proposal=Widened(1.2))
_FEWEST_TO_SPLIT = 20  # with fewer rows a tenth of them says nothing about when to stop


class UnreliableDensityWarning(UserWarning):
    """Some values of `score_samples` rest on too few of the draws to be trusted."""


class VAE(
    ClassNamePrefixFeaturesOutMixin,  # type: ignore[misc]  # scikit-learn publishes no types
    TransformerMixin,  # type: ignore[misc]
    DensityMixin,  # type: ignore[misc]
    BaseEstimator,  # type: ignore[misc]
):
    r"""A variational autoencoder: `transform` embeds rows, `score_samples` gives their log density.

    The embedding is the mean of :math:`q(z \mid x)`; the log density is importance weighted, so
    it is an estimate of :math:`\log p(x)` and not of a bound, in nats, in the data's own units. The
    same `random_state` gives the same numbers, and the number of a row does not depend on the
    other rows that it is asked for with.

    Missing entries (nan) are taken as not observed: `fit` and `score_samples` then use the marginal
    density of what was observed, and `inverse_transform(transform(X))` fills the holes with their
    means. Rows to be embedded may have holes only if the training rows had some.

    Arguments:
        latent_dim: Entries of z; half the columns unless told otherwise, from 1 to 10.
        hidden: Widths of the encoder's hidden layers; the decoder's are the same, reversed. One
            layer of four times the columns unless told otherwise, from 32 to 256.
        likelihood: What the decoder's output means, as a value of :mod:`pyro_vae.likelihoods`. By
            default Bernoulli if the training rows are zeros and ones throughout, else a Gaussian
            with one learned sigma a column, at least a hundredth of the column's spread.
        family: Of q(z | x); a mean-field Gaussian unless told otherwise.
        standardize: Whether columns are standardized inside; by default they are where the
            likelihood is Gaussian.
        max_epochs: The most passes over the training rows.
        batch_size: Rows a step; a tenth of the rows unless told otherwise, from 32 to 256.
        learning_rate: Of Adam.
        early_stopping: Whether some rows are held out to say when to stop; with fewer than 20
            rows none are.
        validation_fraction: Share of the rows held out for that.
        patience: Epochs without a better held-out ELBO before training stops.
        evaluation: How log densities are estimated, a value of :mod:`pyro_vae.evidence`;
            importance sampling with 1000 draws a row unless told otherwise, from a posterior that
            is a fifth wider than the trained one.
        random_state: Seed of the weights, of training and of every estimate.
        verbose: Whether to show progress bars.

    Attributes:
        model_: The Pyro program; `guide_`: its amortized posterior. Both are of standardized rows.
        center_: What is subtracted from the columns; `scale_`: what they are divided by.
        latent_dim_: Entries of z.
        history_: What happened in each epoch; `n_epochs_`: the epoch that was kept.
        n_features_in_: Number of columns; `feature_names_in_`: their names, where they had some.

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
    verbose: bool

    @no_type_check  # scikit-learn wants no argument looked at before `fit`, by anybody
    def __init__(  # noqa: PLR0913 (scikit-learn sets every choice by a name of its own)
        self,
        latent_dim: int | None = None,
        *,
        hidden: Sequence[int] | None = None,
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
        verbose: bool = False,
    ) -> None:
        self.latent_dim = latent_dim
        self.hidden = hidden
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
            X: Numbers, `(n_samples, n_features)`; nan where an entry was not observed.
            y: Not looked at.

        Raises:
            ValueError: If there are fewer than two rows, a row or a column has no entry that was
                observed, or a value is infinite.
        """
        X = validate_data(
            self, X, dtype=np.float64, ensure_all_finite="allow-nan", ensure_min_samples=2
        )
        self._check_columns(X)
        rows = torch.from_numpy(np.array(X))  # a copy: what came in may be read-only
        self.seed_ = int(check_random_state(self.random_state).randint(2**31 - 1))
        likelihood = self._likelihood(rows)
        self._set_units(X, likelihood)
        standardized = self._standardized(rows)
        if isinstance(likelihood, likelihoods.Gaussian):
            names = getattr(self, "feature_names_in_", None)
            warn_constant_columns(standardized, None if names is None else list(map(str, names)))
        self._make(likelihood.double(), standardized)
        self.history_, self.n_epochs_ = self._trained(standardized)
        return self

    def transform(self, X: Any) -> NDArray[np.floating]:
        """The embedding: the mean of q(z | x) of every row, `(n_samples, latent_dim_)`."""
        rows, dtype = self._rows(X)
        with _without_news_of_columns():
            means = posterior_means(self.model_, self.guide_, rows, seed=self.seed_)
        return means.numpy().astype(dtype)

    def inverse_transform(self, X: Any) -> NDArray[np.floating]:
        """The mean of p(x | z) for latents `(n_samples, latent_dim_)`, in the data's own units."""
        check_is_fitted(self)
        z = check_array(X, dtype=[np.float64, np.float32])
        if z.shape[1] != self.latent_dim_:
            raise ValueError(
                f"X should have {self.latent_dim_} columns, one for each entry of z; "
                f"it has {z.shape[1]}"
            )
        means = self.model_.decode(torch.from_numpy(np.array(z, dtype=np.float64)))
        return self._own_units(means).numpy().astype(z.dtype)

    def score_samples(self, X: Any) -> NDArray[np.floating]:
        """Log density of every row, `(n_samples,)`, in nats, in the data's own units.

        Warns:
            UnreliableDensityWarning: If some cannot be trusted; :meth:`log_marginal_likelihood`
                says which, and why.
        """
        result = self.log_marginal_likelihood(X)
        bad = int((~result.reliable).sum())
        if bad:
            warnings.warn(
                f"the log density of {bad} of {len(result.value)} rows cannot be trusted "
                f"({result.reasons}): "
                "train for longer, or pass evaluation=pv.Tightest(), which draws from a proposal "
                "that is fitted to each row; log_marginal_likelihood(X).reliable says which rows",
                UnreliableDensityWarning,
                stacklevel=2,
            )
        return result.value.numpy()

    def log_marginal_likelihood(self, X: Any) -> LogMarginal:
        """What `score_samples` gives, with errors, effective sample sizes and Pareto k, by row."""
        rows, _ = self._rows(X)
        method = _EVALUATION if self.evaluation is None else self.evaluation
        with _without_news_of_columns(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"log p\(y\) cannot be trusted", UserWarning)
            result = log_marginal_likelihood(
                self.model_, self.guide_, rows, method, seed=self.seed_, progress=bool(self.verbose)
            )
        shift = (~rows.isnan()).to(rows) @ self._scale.log()
        return replace(result, value=result.value - shift)

    def score(self, X: Any, y: Any = None) -> float:
        """Mean log density of the rows, in nats: higher is better, as for grid search."""
        return float(self.score_samples(X).mean())

    def sample(self, n_samples: int = 1, random_state: Any = None) -> NDArray[np.floating]:
        """Draws of new rows from p(x), `(n_samples, n_features_in_)`, in the data's own units.

        Arguments:
            n_samples: Number of rows.
            random_state: Seed of the draws; without one every call draws anew.
        """
        check_is_fitted(self)
        seed = int(check_random_state(random_state).randint(2**31 - 1))
        return self._own_units(self.model_.sample(n_samples, seed=seed)).numpy()

    @property
    def _n_features_out(self) -> int:
        """For `get_feature_names_out`."""
        return self.latent_dim_

    def _rows(self, X: Any) -> tuple[Tensor, np.dtype[Any]]:
        """Standardized rows, and the dtype they came in."""
        check_is_fitted(self)
        X = validate_data(
            self,
            X,
            reset=False,
            dtype=[np.float64, np.float32],
            ensure_all_finite="allow-nan",
        )
        holes = np.isnan(X)
        if holes.any() and not self._sees_holes:
            raise ValueError(
                f"X has {int(holes.sum())} missing entries (nan), but the rows of `fit` had none, "
                "so the encoder has not learned what to make of them: fit on rows with holes, or "
                "fill these in"
            )
        _check_observed(holes)
        return self._standardized(torch.from_numpy(np.array(X, dtype=np.float64))), X.dtype

    def _check_columns(self, X: NDArray[np.floating]) -> None:
        holes = np.isnan(X)
        _check_observed(holes)
        empty = np.flatnonzero(holes.all(axis=0))
        if len(empty):
            names = getattr(self, "feature_names_in_", None)
            named = [int(i) if names is None else str(names[i]) for i in empty[:10]]
            raise ValueError(
                f"columns {named} have no entry that was observed (all nan): drop them"
            )
        self._sees_holes = bool(holes.any())

    def _likelihood(self, rows: Tensor) -> Likelihood:
        """A copy of what was asked for: training must not change a parameter of the estimator."""
        if self.likelihood is not None:
            return copy.deepcopy(self.likelihood)
        if bool(((rows == 0) | (rows == 1) | rows.isnan()).all()):
            return likelihoods.Bernoulli()
        return likelihoods.Gaussian(likelihoods.LearnedSigma(rows.shape[1:]))

    def _set_units(self, X: NDArray[np.floating], likelihood: Likelihood) -> None:
        standardize = self.standardize
        if standardize is None:
            standardize = isinstance(likelihood, likelihoods.Gaussian)
        center, spread = np.zeros(X.shape[1]), np.ones(X.shape[1])
        if standardize:
            center, spread = np.nanmean(X, axis=0), np.nanstd(X, axis=0)
        # Rounding leaves a spread of 1e-17 in a column that is constant.
        constant = spread <= 10 * np.finfo(np.float64).eps * np.abs(center)
        self.center_, self.scale_ = center, np.where(constant, 1.0, spread)

    def _make(self, likelihood: Likelihood, rows: Tensor) -> None:
        columns: int = self.n_features_in_
        self.latent_dim_ = self.latent_dim or max(1, min(10, columns // 2))
        hidden = tuple(self.hidden or (max(32, min(256, 4 * columns)),))
        with forked_seed(self.seed_):
            decoder = nets.MLPDecoder(
                self.latent_dim_, likelihood.output_shape((columns,)), hidden[::-1]
            )
            net = nets.MLPEncoder(2 * columns if self._sees_holes else columns, hidden)
            start_from(decoder.double(), likelihood.start(rows))
            self.model_ = models.VAE(decoder, likelihood, self.latent_dim_)
            encoder = Encoder(nets.MissingIndicator(net) if self._sees_holes else net)
            self.guide_ = Guide(self.model_, encoder.double(), copy.deepcopy(self.family))

    def _trained(self, rows: Tensor) -> tuple[Any, int]:
        train, held_out = rows, None
        if self.early_stopping and len(rows) >= _FEWEST_TO_SPLIT:
            split = split_rows(len(rows), test_fraction=self.validation_fraction, seed=self.seed_)
            train, held_out = rows[split.train], rows[split.test]
        with _without_news_of_columns():
            result: Fit = fit(
                self.model_,
                self.guide_,
                train,
                num_epochs=self.max_epochs,
                batch_size=self.batch_size or max(32, min(256, len(train) // 10)),
                optimizer=adam_with(self.learning_rate),
                validation=held_out,
                patience=None if held_out is None else self.patience,
                seed=self.seed_,
                progress=bool(self.verbose),
            )
        return result.history, result.best_epoch

    @property
    def _scale(self) -> Tensor:
        return torch.from_numpy(self.scale_)

    def _standardized(self, rows: Tensor) -> Tensor:
        return (rows - torch.from_numpy(self.center_)) / self._scale

    def _own_units(self, rows: Tensor) -> Tensor:
        return rows * self._scale + torch.from_numpy(self.center_)


def _check_observed(holes: NDArray[np.bool_]) -> None:
    empty = np.flatnonzero(holes.all(axis=1))
    if len(empty):
        raise ValueError(
            f"{len(empty)} of {len(holes)} rows have no entry that was observed (all nan), the "
            f"first at row {empty[0]}, counted from 0: drop them"
        )


@contextmanager
def _without_news_of_columns() -> Iterator[None]:
    """Keeps the likelihood from saying that columns are constant in the few rows it is shown."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".* columns are constant over", UserWarning)
        yield
