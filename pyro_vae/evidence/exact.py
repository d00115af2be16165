"""Marginal likelihoods in closed form.

If the log joint is a quadratic function of a datum's latents, :mod:`pyro_vae.guides.closed_form`
finds and verifies the quadratic, and a determinant gives the integral. Other models can provide the
exact answer by a method `log_evidence`.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .._types import Batch
from ..guides.closed_form import Quadratic, quadratic_of
from ..programs import Prior, Program, evaluating
from ..programs.hooks import hooks_of
from ..programs.pieces import in_pieces
from ..programs.polynomials import degree_of
from ..randomness import forked
from .results import Bound, LogMarginal
from .weights import Inference, require_evidence, rows_at_once

_ROUNDINGS = 16.0  # assumed rounding error of a log density of many terms, in units of eps
_PRIOR_DRAWS = 16  # least number of prior draws per datum at which the quadratic is checked
_ALL_DRAWS = 1000  # least number for all data together, so that rare events of the prior are seen
_ROWS = 16_384  # rows that the program evaluates at once; only memory depends on this number
_SLACK = 8.0  # relative tolerance of the check, in units of the square root of eps


@dataclass(frozen=True)
class ClosedForm:
    r"""Computes log p(y) exactly, for linear Gaussian programs and models with `log_evidence`.

    .. math:: \log p(y_n) = \log p(y_n, m_n) + \tfrac{1}{2} (L \log 2 \pi - \log \det P_n)

    The log joint must be a quadratic function of the :math:`L` flat latents. Its maximum is at
    :math:`m_n` and its second derivatives are :math:`-P_n`. The operations that a run of the
    program performs show whether the log joint is quadratic. The values of the log joint at several
    points verify this for every datum. If the model has a method `log_evidence(*batch)` that
    returns `(batch,)`, that method is used instead, unchecked; check it with
    :func:`pyro_vae.cross_check`.

    The error is the rounding error plus the observed deviation of the log joint from the quadratic
    near its maximum.

    Raises:
        ValueError: When called, if the log joint is not quadratic and the model has no method
            `log_evidence`.
        FloatingPointError: When called, if `log_evidence` returns nan or plus infinity.

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
        """Computes log p(y) of every datum; the guide and the seed are not used."""
        program, _, batch = inference
        value, error = (part.detach().double() for part in _log_evidence(program, batch))
        exact = _exact(value, program, "closed form")
        return replace(exact, error=exact.error + error)


def summed_out(program: Program, batch: Batch) -> LogMarginal:
    r"""Computes log p(y) of a program whose local latent sites :math:`c` are all discrete.

    .. math:: \log p(y_n) = \log \sum_c p(y_n, c)

    The result's error is the rounding error.
    """
    values = []
    for piece in in_pieces(rows_at_once(program, batch), *batch):
        nothing = torch.zeros(1, len(piece[0]), 0, dtype=program.dtype, device=program.device)
        values.append(program.log_joint(nothing, *piece)[0])
    value = torch.cat(values).detach().double()
    require_evidence(value, "log p(y)", "the parameters of the observed sites")
    return _exact(value, program, "enumeration")


def _exact(value: Tensor, program: Program, method: str) -> LogMarginal:
    """Makes a result from values that are exact up to rounding."""
    error = _ROUNDINGS * torch.finfo(program.dtype).eps * (1 + value.abs())
    missing = torch.full_like(value, torch.nan)
    points = torch.full_like(value, 1, dtype=torch.int64)
    return LogMarginal(value, error, missing, missing, points, bound=Bound.EXACT, method=method)


def _log_evidence(program: Program, batch: Batch) -> tuple[Tensor, Tensor]:
    """Computes log p(y) of every datum, and its error.

    The model's method `log_evidence` is used if there is one. Otherwise, the log joint must be
    quadratic in the latents, and gives log p(y) in closed form.
    """
    method = hooks_of(program.model).log_evidence
    if method is None:
        return _integrated(program, batch)
    value = method(*batch)
    if not isinstance(value, Tensor) or value.shape != batch[0].shape[:1]:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"the model's log_evidence must return a tensor of shape ({len(batch[0])},), one "
            f"number per datum; got {got}"
        )
    require_evidence(value, "log p(y)", "the model's log_evidence")
    return value, torch.zeros_like(value)


def _integrated(program: Program, batch: Batch) -> tuple[Tensor, Tensor]:
    """Integrates a quadratic log joint; returns log p(y) of every datum, and its error."""
    try:
        _require_quadratic(program, batch)
        quadratic = quadratic_of(program, batch)
        _require_quadratic_at_prior_draws(program, batch, quadratic)
        return quadratic.log_evidence(), quadratic.error
    except ValueError as error:
        raise ValueError(
            "pv.ClosedForm() requires a log joint that is quadratic in the latents, or a model "
            f"with a method log_evidence(*batch). {error} For log p(y), use pv.Quadrature() for up "
            "to three latents, or pv.ImportanceSampling()."
        ) from error


def _require_quadratic(program: Program, batch: Batch) -> None:
    """Refuses a log joint unless the program's operations prove that the log joint is quadratic.

    Values of the log joint at a few points are no proof. A mixture looks quadratic where one
    component dominates, and a narrow spike is visible only at points on the spike.
    """
    for rows in in_pieces(_ROWS, *batch):
        degree, operation = degree_of(program, rows)
        if degree > 2:
            how = f"'{operation}' of a latent" if operation else f"a term of degree {degree:g}"
            raise ValueError(
                f"The log joint is not a quadratic function of the latents: it contains {how}."
            )


def _require_quadratic_at_prior_draws(program: Program, batch: Batch, quadratic: Quadratic) -> None:
    """Refuses a log joint that differs from the fitted quadratic at draws of the prior.

    This detects operations that cannot be traced, such as those on a latent converted to NumPy.
    """
    draws = max(_PRIOR_DRAWS, _ALL_DRAWS // len(batch[0]))
    with evaluating(program.model), torch.no_grad(), forked(0, "closed form.prior"):
        for loc, precision, peak, _, *rows in in_pieces(_ROWS // draws, *quadratic, *batch):
            z = Prior(program, tuple(rows)).sample(draws)
            step = z - loc
            curve = (step * (precision @ step[..., None])[..., 0]).sum(dim=-1) / 2
            limit = _SLACK * torch.finfo(z.dtype).eps ** 0.5 * (1 + peak.abs() + curve)
            off = (program.log_joint(z, *rows) - peak + curve).abs()
            if not bool((off <= limit).all()):
                raise ValueError(
                    f"At a draw of the prior, the log joint differs by {float(off.max()):.3g} nats "
                    "from a quadratic function of the latents."
                )
