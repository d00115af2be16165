"""Tests whether the guide's posterior of a datum resembles its posteriors of reference data."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float64
from torch import Tensor

from .. import stats
from .._types import Batch, Data, ProgramLike
from ..evidence import Block, ImportanceSampling
from ..evidence.weights import check_more_data, conditioned
from ..guides.entry import for_new_rows, shared_only
from ..programs import as_batch, simulate
from ..programs.modes import device_of
from ..programs.pieces import first_rows
from ..randomness import stream
from .calibration import latent_names
from .local import FEWEST_DRAWS, PValues

_SLIGHT = 1e-3  # nats; a smaller spread of log weights counts as this spread
_FLOOR = 1e-3  # smaller eigenvalues of the correlation matrix are replaced by this one


@dataclass(frozen=True, repr=False)
class OutOfDistribution(PValues):
    """P-values that say how unusual the guide's posterior of each datum is.

    A posterior is described by features, such as its means. The statistic is the Mahalanobis
    distance of these features from their mean over the guide's posteriors of reference data.

    Arguments:
        deviations: Deviation of every feature from its mean over reference data, in standard
            deviations, `(batch, features)`.
        names: Names of the features.
    """

    deviations: Float64[Tensor, "batch features"] = field(kw_only=True)
    names: tuple[str, ...] = field(kw_only=True, metadata={"axis": None})

    def unusual(self, row: int, number: int = 3) -> list[tuple[str, float]]:
        """Returns the most unusual features of a row's posterior, with their deviations.

        The deviations are in standard deviations over the reference data.
        """
        order = self.deviations[row].abs().argsort(descending=True)[:number].tolist()
        return [(self.names[place], float(self.deviations[row, place])) for place in order]


def out_of_distribution(
    model: ProgramLike,
    guide: ProgramLike,
    data: Data,
    reference: Data | int = 1000,
    *,
    num_samples: int = 100,
    given: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> OutOfDistribution:
    r"""Tests whether the guide's posterior of each datum resembles posteriors of reference data.

    An encoder may return anything for data unlike its training data. The features f of a
    posterior are the means and log standard deviations of all latents, the rate, the distortion,
    and the logarithm of the spread of the log weights. Their mean m and covariance S come from one
    half of the R reference data. The distance of a datum is ranked among the distances of the other
    half:

    .. math:: d_n^2 = (f_n - m)^\top S^{-1} (f_n - m), \qquad
        \hat p_n = \frac{1 + \#\{r : d_r \ge d_n\}}{R / 2 + 1}

    P-values are exact for a datum that is exchangeable with the reference, whatever the guide. If
    the reference is simulated from the model, a rejected datum is one that the model does not
    produce, or that the guide was not trained for. For such a datum, check the model, and
    check the guide with importance weights. If the reference is held-out data, a rejected datum is
    unlike these data. The guide's posterior may be poor even for a datum that passes, or for all
    reference data; importance weights reveal this.

    Arguments:
        model: A Pyro program `model(*batch)` with one plate over data.
        guide: A :class:`pyro_vae.Guide`, or a guide program written by hand.
        data: The batch tensor, or a tuple of tensors.
        reference: Held-out data, or the number of data to simulate from the model, at least 20.
            Simulated data have the covariates of the rows of `data`, and the same entries missing;
            the rows of `data` are repeated if there are too few.
        num_samples: Draws of the guide per datum, at least 2.
        given: Values of the latent sites that all data share, by name.
        seed: Seed of all random numbers; the caller's random stream is left alone.
        progress: Whether to show a progress bar; by default on terminals and in notebooks.

    Returns:
        A p-value and a distance per datum, and the features that are unusual.

    Raises:
        ValueError: If there are fewer than 20 reference data, if for nearly all of these data the
            model gives zero density to some draw of the guide, or if the program cannot be
            simulated.

    References:
        | Detecting Model Misspecification in Amortized Bayesian Inference with Neural Networks
          (Schmitt et al., 2024)
        | https://arxiv.org/abs/2112.08866
        | An Amortized Bayesian Workflow (Schmitt et al., 2024)
        | https://arxiv.org/abs/2409.04332

    Example:
        >>> import pyro_vae as pv
        >>> model = pv.models.VAE(torch.nn.Linear(1, 3), pv.likelihoods.Gaussian(), latent_dim=1)
        >>> guide = pv.Guide(model, pv.Encoder(torch.nn.Linear(3, 2)))
        >>> y = torch.cat([model.sample(9, seed=1), 50 * torch.ones(1, 3)])
        >>> result = out_of_distribution(model, guide, y, reference=100)
        >>> int(result.statistic.argmax()), bool(result.value[9] < 0.02)
        (9, True)
    """
    batch = as_batch(data, device_of(model, guide))
    held = _reference(model, guide, batch, reference, given, seed)
    if len(held[0]) < FEWEST_DRAWS:
        raise ValueError(
            "`reference` must be held-out data with at least 20 rows, or a number of data to "
            f"simulate that is at least 20; got {len(held[0])}"
        )
    estimator = ImportanceSampling(num_samples)

    def features_of(rows: Batch, name: str) -> tuple[Tensor, list[str]]:
        own = for_new_rows(guide, rows, given=given, seed=seed, progress=progress)
        with conditioned(model, own, rows, seed, given) as inference:
            sampling = estimator.sampling(inference, seed=stream(seed, name), progress=progress)
            parts = [_features(block) for block in sampling.blocks()]
        return torch.cat(parts), latent_names(inference.program)

    known, latents = features_of(held, "out_of_distribution.reference")
    features, _ = features_of(batch, "out_of_distribution.data")
    fitted, ranked = _finite(known[::2]), known[1::2]
    distances = _distances(fitted, ranked)
    own = _distances(fitted, features)
    p_value = stats.tail_probability(own, distances[:, None].expand(-1, len(own)))
    means, spreads = ([f"{kind} of {name}" for name in latents] for kind in ("mean", "log sd"))
    names = (*means, *spreads, "rate", "distortion", "log spread of log weights")
    return OutOfDistribution(
        p_value, own, "the guide's posterior is like its posteriors of reference data",
        "Mahalanobis distance of the posterior",
        deviations=_standardized(fitted, features), names=names,
    )  # fmt: skip


def _reference(
    model: ProgramLike,
    guide: ProgramLike,
    batch: Batch,
    reference: Data | int,
    given: Mapping[str, Tensor] | None,
    seed: int,
) -> Batch:
    """Returns the reference data: the given held-out data, or data simulated from the model."""
    if not isinstance(reference, int):
        held = as_batch(reference, device_of(model, guide), "reference")
        check_more_data(model, batch, held, "reference")
        return held
    examples = first_rows(batch, reference)
    with conditioned(model, shared_only(guide), examples, seed, given) as (program, _, rows):
        return simulate(program, rows, stream(seed, "out_of_distribution.simulated"))[1]


def _features(block: Block) -> Float64[Tensor, "rows features"]:
    """Computes the features that describe the guide's posterior for each row."""
    z, weights = block.z.double(), block.weights
    spread = z.std(dim=0)
    parts = [
        z.mean(dim=0),
        spread.clamp(min=torch.finfo(spread.dtype).tiny).log(),
        (weights.log_guide - weights.log_prior).mean(dim=0)[:, None],
        -weights.log_likelihood.mean(dim=0)[:, None],
        weights.log_weights.std(dim=0).clamp(min=_SLIGHT).log()[:, None],
    ]
    return torch.cat(parts, dim=1).cpu()


def _finite(features: Tensor) -> Tensor:
    """Leaves out rows with infinite features.

    Features are infinite if the model gives zero density to one of the guide's draws.
    """
    finite = features[features.isfinite().all(dim=1)]
    if len(finite) < 2:
        raise ValueError(
            "for nearly all data of `reference`, the model gives zero density to some draw of the "
            "guide, so rates and distortions are infinite: train the guide for longer"
        )
    return finite


def _standardized(fitted: Tensor, features: Tensor) -> Tensor:
    """Standardizes `features` by the mean and the standard deviation of `fitted`."""
    mean, spread = fitted.mean(dim=0), fitted.std(dim=0)
    # A feature may be constant over the reference: then its sd is 0, and the smallest sd is used.
    smallest = torch.finfo(spread.dtype).eps ** 0.5 * (1 + mean.abs())
    return (features - mean) / spread.maximum(smallest)


def _distances(fitted: Tensor, features: Tensor) -> Float64[Tensor, " rows"]:
    """Returns each row's Mahalanobis distance from the mean of `fitted`.

    If a distance is nan, infinity is returned instead.
    """
    own = _standardized(fitted, fitted)
    values, vectors = torch.linalg.eigh(own.T @ own / len(own))
    turned = _standardized(fitted, features) @ vectors
    distances = (turned.square() / values.clamp(min=_FLOOR)).sum(dim=1).sqrt()
    return distances.nan_to_num(nan=torch.inf)
