"""Marginal likelihoods in closed form, for programs that have one.

If the log joint is quadratic in the latents of a datum, :mod:`pyro_vae.guides.closed_form` finds
and verifies the quadratic, and a determinant gives the integral. Other models may offer the exact
answer as a method.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .._types import Batch
from ..guides.closed_form import Quadratic, quadratic_of
from ..programs import Prior, Program, degree_of, evaluating, hooks_of
from ..randomness import forked
from .results import Bound, LogMarginal
from .weights import Inference, rows_at_once

_MEMORY = 256.0  # mebibytes
_ROUNDINGS = 16.0  # units in the last place that a log density of many terms may be off by
_PRIOR_DRAWS = 16  # least number of draws per datum at which the quadratic is checked
_ALL_DRAWS = 1000  # in all, for few data: shows what the prior does once in a hundred draws
_ROWS = 16_384  # rows that the program sees at once; only memory depends on this
_SLACK = 8.0  # times the root of the rounding unit, as for gradients


@dataclass(frozen=True)
class ClosedForm:
    r"""The exact answer, for linear Gaussian programs and for models with a method for it.

    .. math:: \log p(y_n) = \log p(y_n, m_n) + \tfrac{1}{2} (L \log 2 \pi - \log \det P_n)

    where the log joint is a quadratic function of the flat latents with its maximum at :math:`m_n`
    and second derivatives :math:`-P_n`. That it is quadratic is read off the operations of a run
    (:func:`~pyro_vae.programs.degree_of`), and verified at points for every datum. If the model
    has a method `log_evidence(*batch)` that returns `(batch,)`, it is used instead, unchecked:
    verify it with :func:`pyro_vae.cross_check`.

    The error is the rounding error plus the observed deviation of the log joint from a quadratic
    near the mean, so that other estimates can be compared with the exact one.

    Raises:
        ValueError: When called, if the program has no closed form; names the row.

    References:
        | Probabilistic Principal Component Analysis (Tipping & Bishop, 1999)
        | https://doi.org/10.1111/1467-9868.00196

    Example:
        >>> import pyro
        >>> import pyro_vae as pv
        >>> def model(y):
        ...     with pyro.plate("data", len(y)):
        ...         z = pyro.sample("z", pyro.distributions.Normal(0.0, 1.0))
        ...         pyro.sample("y", pyro.distributions.Normal(z, 1.0), obs=y)
        >>> y = torch.tensor([0.0, 2.0])
        >>> guide = pv.Guide(model, pv.GlobalParameters(), example=y)
        >>> pv.log_marginal_likelihood(model, guide, y, ClosedForm()).value
        tensor([-1.2655, -2.2655], dtype=torch.float64)
    """

    def __call__(
        self, inference: Inference, *, seed: int = 0, progress: bool | None = None
    ) -> LogMarginal:
        """Computes log p(y) per datum; the guide and the seed are not used."""
        program, _, batch = inference
        value, error = (part.detach().double() for part in _log_evidence(program, batch))
        exact = _exact(value, program, "closed form")
        return replace(exact, error=exact.error + error)


def summed_out(program: Program, batch: Batch) -> LogMarginal:
    r"""Log p(y) of a program whose local latent sites are all discrete, by summing them out.

    .. math:: \log p(y_n) = \log \sum_c p(y_n, c)

    The error is the rounding error.
    """
    size = rows_at_once(program, batch, _MEMORY)
    pieces = zip(*(part.split(size) for part in batch), strict=True)
    values = []
    for piece in pieces:
        nothing = torch.zeros(1, len(piece[0]), 0, dtype=program.dtype, device=program.device)
        values.append(program.log_joint(nothing, *piece)[0])
    value = torch.cat(values).detach().double()
    if bool((value.isnan() | (value == torch.inf)).any()):
        row = int((value.isnan() | (value == torch.inf)).nonzero()[0])
        raise FloatingPointError(
            f"log p(y) is {float(value[row])} for datum {row}: a log density must be a number; "
            "check the parameters of the observed sites there"
        )
    return _exact(value, program, "enumeration")


def _exact(value: Tensor, program: Program, method: str) -> LogMarginal:
    """Values that are exact up to rounding."""
    error = _ROUNDINGS * torch.finfo(program.dtype).eps * (1 + value.abs())
    missing = torch.full_like(value, torch.nan)
    points = torch.full_like(value, 1, dtype=torch.int64)
    return LogMarginal(value, error, missing, missing, points, bound=Bound.EXACT, method=method)


def _log_evidence(program: Program, batch: Batch) -> tuple[Tensor, Tensor]:
    """Log p(y) by the model's own method or from a quadratic log joint, with its error."""
    method = hooks_of(program.model).log_evidence
    if method is None:
        return _integrated(program, batch)
    value = method(*batch)
    if not isinstance(value, Tensor) or value.shape != batch[0].shape[:1]:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"the model's log_evidence should return a tensor of shape ({len(batch[0])},), one "
            f"number per datum, got {got}"
        )
    return value, torch.zeros_like(value)


def _integrated(program: Program, batch: Batch) -> tuple[Tensor, Tensor]:
    try:
        _require_quadratic(program, batch)
        quadratic = quadratic_of(program, batch)
        _require_quadratic_at_prior_draws(program, batch, quadratic)
        return quadratic.log_evidence(), quadratic.error
    except ValueError as error:
        raise ValueError(
            "ClosedForm needs a log joint that is quadratic in the latents, or a model with a "
            "method log_evidence(*batch); use pv.Quadrature() for up to three latents, or "
            f"pv.ImportanceSampling(). {error}"
        ) from error


def _require_quadratic(program: Program, batch: Batch) -> None:
    """Refuses a log joint unless the operations that compute it show that it is quadratic.

    Values at points cannot show it: a mixture looks quadratic where one component dominates, and a
    narrow spike is visible only at points on it.
    """
    for rows in zip(*(part.split(_ROWS) for part in batch), strict=True):
        degree, operation = degree_of(program, rows)
        if degree > 2:
            how = f"it takes '{operation}' of a latent" if operation else f"its degree is {degree}"
            raise ValueError(f"The log joint is not a quadratic function of the latents: {how}.")


def _require_quadratic_at_prior_draws(program: Program, batch: Batch, quadratic: Quadratic) -> None:
    """Refuses a log joint that differs from the quadratic at draws of the prior.

    This catches operations that were not seen, as when a program takes a latent to NumPy and back.
    """
    draws = max(_PRIOR_DRAWS, _ALL_DRAWS // len(batch[0]))
    size = max(1, _ROWS // draws)
    pieces = zip(*(part.split(size) for part in (*quadratic, *batch)), strict=True)
    with evaluating(program.model), torch.no_grad(), forked(0, "closed form.prior"):
        for loc, precision, peak, _, *rows in pieces:
            z = Prior(program, tuple(rows)).sample(draws)
            step = z - loc
            curve = (step * (precision @ step[..., None])[..., 0]).sum(dim=-1) / 2
            limit = _SLACK * torch.finfo(z.dtype).eps ** 0.5 * (1 + peak.abs() + curve)
            off = (program.log_joint(z, *rows) - peak + curve).abs()
            if not bool((off <= limit).all()):
                raise ValueError(
                    f"The log joint is {float(off.max()):.3g} nats off a quadratic function at a "
                    "draw of the prior."
                )
