r"""Paths through the latent space: along one latent at a time, and from one point to another.

The range of a latent is taken from the data, as quantiles of the aggregated posterior
:math:`\frac{1}{N} \sum_n q(z_d \mid y_n)`, and not from the prior. If a value occurs for no datum,
decoding this value shows nothing about the data.

In L dimensions, with L large, draws of N(0, I) lie near a sphere of radius :math:`\sqrt{L}`. The
midpoint between two of these draws is at a distance of about :math:`\sqrt{L / 2}` from the origin.
Almost no draws lie so close to the origin, so the decoder was hardly trained there. A path along
the sphere stays where the draws are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from .._types import Data, Estimate, ProgramLike
from ..data import Categories, Columns, Positive
from ..diagnostics.aggregate import UnknownDensity, single_information
from ..diagnostics.calibration import latent_names
from ..diagnostics.posterior_collapse import prior_variance_of
from ..evidence.weights import conditioned, draw_rows
from ..formatting import count_of
from ..guides import Posterior
from ..programs.pieces import flat, take_rows
from ..programs.traces import repeat_rows
from ..randomness import row_keys
from ..results import Result, at_rows
from .forward import decoded

_ANTIPODAL = 1e-6  # radians; if two points are closer to opposite, rounding directs the arc


@runtime_checkable
class Path(Protocol):
    """A path from one latent vector to another."""

    def __call__(self, a: Tensor, b: Tensor, t: Tensor) -> Tensor:
        """Returns the points at the fractions `t` of the path, `(steps, *batch, latents)`."""


@dataclass(frozen=True)
class Linear:
    r"""The straight line, :math:`z(t) = (1 - t) a + t b`."""

    def __call__(self, a: Tensor, b: Tensor, t: Tensor) -> Tensor:
        """Returns the points at the fractions `t` of the line."""
        shares = t.reshape(-1, *[1] * a.dim())
        return a + shares * (b - a)


@dataclass(frozen=True)
class Spherical:
    r"""An arc from a to b, along which direction and distance from the origin change evenly.

    .. math:: z(t) = [(1 - t) \|a\| + t \|b\|] \,
        \frac{\sin((1 - t) \Omega) \hat a + \sin(t \Omega) \hat b}{\sin \Omega}, \qquad
        \Omega = \angle(a, b)

    References:
        | Sampling Generative Networks (White, 2016)
        | https://arxiv.org/abs/1609.04468
    """

    def __call__(self, a: Tensor, b: Tensor, t: Tensor) -> Tensor:
        """Returns the points at the fractions `t` of the arc from `a` to `b`.

        Raises:
            ValueError: If `a` or `b` is the origin, or if `a` and `b` have opposite directions: the
                arc is then undefined.
        """
        a, b = torch.broadcast_tensors(a, b)
        shares = t.reshape(-1, *[1] * a.dim())
        radii = [point.norm(dim=-1, keepdim=True) for point in (a, b)]
        if any(bool((radius == 0).any()) for radius in radii):
            raise ValueError(
                "`a` and `b` must not be the origin, because an arc joins two directions and the "
                "origin has no direction: use pv.queries.Linear()"
            )
        start, end = a / radii[0], b / radii[1]
        # The angle is from both chords: near 0 and pi, an arc cosine would lose half of its digits.
        chords = [
            (end - start).norm(dim=-1, keepdim=True),
            (end + start).norm(dim=-1, keepdim=True),
        ]
        angle = 2 * torch.atan2(*chords)
        if bool((angle > torch.pi - _ANTIPODAL).any()):
            raise ValueError(
                "the two points are opposite, so there is no shortest arc: use pv.queries.Linear()"
            )
        direction = torch.where(
            angle > 0,
            (((1 - shares) * angle).sin() * start + (shares * angle).sin() * end)
            / angle.sin().where(angle > 0, 1.0),
            start,
        )
        return torch.lerp(radii[0], radii[1], shares) * direction


def interpolate(
    a: Float[Tensor, "*batch latents"],
    b: Float[Tensor, "*batch latents"],
    num_steps: int = 8,
    path: Path | None = None,
) -> Float[Tensor, "steps *batch latents"]:
    r"""Returns points on a path, ends included; decode them with `model.decode`.

    Arguments:
        a: First point of the path, `(*batch, latents)`, such as an embedding from :func:`encode`.
        b: Last point of the path, `(*batch, latents)`.
        num_steps: Number of points, at least two.
        path: :class:`Linear` (the default) or :class:`Spherical`.

    Returns:
        Evenly spaced points, `(steps, *batch, latents)`.

    Raises:
        ValueError: If there are fewer than two points, or the path is not defined.

    Example:
        >>> a, b = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])
        >>> interpolate(a, b, 3).tolist()
        [[2.0, 0.0], [1.0, 1.0], [0.0, 2.0]]
        >>> round(float(interpolate(a, b, 3, Spherical())[1].norm()), 5)
        2.0
    """
    if num_steps < 2:
        raise ValueError(
            f"`num_steps` must be at least 2, because both ends are included; got {num_steps}"
        )
    t = torch.linspace(0.0, 1.0, num_steps, dtype=a.dtype, device=a.device)
    return (path or Linear())(a, b, t)


LEVELS = (0.025, 0.1, 0.25, 0.5, 0.75, 0.9, 0.975)
"""Levels of the quantiles that a latent is moved to, if there are 60 data or more."""

_MIDDLE = (1 / 6, 5 / 6)  # levels that enclose the middle two thirds
_CERTAIN = 3.0  # standard deviations that stand for a change in probability from 0 to 1
_TINY = 1e-3  # smaller values are replaced by it before logarithms: decoded means may be below 0
_SHOWN = 5  # columns of a table that are drawn by default
_DRAWS = 2000  # the level of the 2.5% quantile then has a standard error of 0.4%


@dataclass(frozen=True, repr=False)
class Traversal(Result):
    """Decoded means along each latent, the most informative latent first.

    Arguments:
        order: The latents, by their positions in the model, most informative first, `(latents,)`.
        names: Names of the latents, in the order of `order`.
        information: Information that each latent by itself carries about the identity of the datum,
            `(latents,)`, in nats, in the order of `order`. If some are unknown (nan), latents are
            ordered by the spread of the posterior mean over the middle two thirds of the data.
        levels: Levels of the quantiles, between 0 and 1, `(steps,)`.
        values: Values that each latent was set to, `(latents, steps)`.
        decoded: Means of p(y | z), `(latents, steps, *datum)`, in the unit of the data.
        at: Value of each latent while another latent moves, `(latents,)`, in the model's order.
        table: The columns, if the data are a table.
    """

    order: Int64[Tensor, " latents"]
    names: tuple[str, ...]
    information: Estimate
    levels: tuple[float, ...]
    values: Float[Tensor, "latents steps"]
    decoded: Float[Tensor, "latents steps *datum"]
    at: Float[Tensor, " latents"]
    table: Columns | None = None

    _is_drawn_fast = False

    def summary(self) -> str:
        """Lists the latents and the information in each, the most informative first."""
        return (
            f"decoded along {count_of(len(self.names), 'latent')}, by information: "
            f"{', '.join(self.labels)}"
        )

    def plot(
        self, columns: Sequence[str] | None = None, image_shape: tuple[int, int] | None = None
    ) -> NDArray[Any]:
        """Plots the decoded means along each latent; needs matplotlib.

        Arguments:
            columns: For a table, names of the columns to show. Each latent has a row of panels,
                with one panel per column. By default at most five columns: the column that each
                latent moves most and, if there is room, the other columns that move most. For other
                data, names of all features.
            image_shape: Height and width, for images.

        Raises:
            ValueError: If a column is unknown.
        """
        from ..plots import plot_traversal, plot_walks

        if self.table is None:
            return plot_traversal(
                self.decoded, self.labels, self.levels, image_shape, names=columns
            )
        unknown = [name for name in columns or () if name not in self.table.names]
        if unknown:
            raise ValueError(
                f"`columns` must be names of the table; got {unknown}: choose from "
                f"{list(self.table.names)}"
            )
        places = (
            _most_moved(_movements(self.decoded, self.table))
            if columns is None
            else [self.table.names.index(name) for name in columns]
        )
        return plot_walks(self.decoded, self.labels, self.levels, self.table, places)

    @property
    def labels(self) -> tuple[str, ...]:
        """Name and information of each latent, for figures."""
        nats = self.information.value.tolist()
        pairs = zip(self.names, nats, strict=True)
        return tuple(name if nat != nat else f"{name}: {nat:.2f} nats" for name, nat in pairs)

    @property
    def span(self) -> Float[Tensor, " latents"]:
        """Largest change that each latent causes in any feature, in the unit of the data."""
        data = flat(self.decoded, 2)
        return (data.amax(dim=1) - data.amin(dim=1)).amax(dim=-1)


def _movements(
    decoded: Float[Tensor, "latents steps columns"], table: Columns
) -> Float[Tensor, "latents columns"]:
    """Computes how far each latent moves each column, in standard deviations of training rows.

    A change of a probability from 0 to 1, or of the most probable category, counts as 3 standard
    deviations.
    """
    moved = []
    for kind, walk in zip(table.kinds.values(), decoded.double().cpu().unbind(dim=-1), strict=True):
        if isinstance(kind, Categories):
            scaled = _CERTAIN * (walk - walk.amin(dim=1, keepdim=True)).clamp(max=1.0)
        else:
            scaled = standardized(walk, kind)
        moved.append(scaled.amax(dim=1) - scaled.amin(dim=1))
    return torch.stack(moved, dim=1)


def standardized(values: Float[Tensor, "*batch"], kind: Any) -> Float[Tensor, "*batch"]:
    """Divides a column's numbers by their standard deviation over the training rows.

    For positive numbers, logarithms are used throughout.
    """
    above = values.clamp(min=_TINY) if isinstance(kind, Positive) else values
    return torch.from_numpy(kind.standardized(above.numpy()))


def _most_moved(movements: Float[Tensor, "latents columns"]) -> list[int]:
    """Returns the positions of at most five columns to plot.

    These are the columns that each latent moves most and, if there is room, the other columns that
    move most.
    """
    by_latent = movements.argmax(dim=1).tolist()
    by_column = movements.amax(dim=0).argsort(descending=True).tolist()
    return sorted(list(dict.fromkeys([*by_latent, *by_column]))[:_SHOWN])


def traverse(
    model: ProgramLike,
    guide: ProgramLike,
    data: Data,
    *,
    at: Float[Tensor, " latents"] | None = None,
    levels: tuple[float, ...] | None = None,
    given: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> Traversal:
    r"""Moves each latent over its quantiles in the data, and decodes every step.

    .. math:: \mathbb{E}[y \mid z_d = F_d^{-1}(t), \ z_{-d} = a_{-d}], \qquad
        F_d(u) = \frac{1}{N} \sum_n q(z_d \le u \mid y_n)

    Latents are ordered by the information that each carries by itself, :math:`I_q(n; z_d)`
    (:func:`pyro_vae.diagnostics.collapse`). If the effect of a latent depends on the others,
    a traversal shows the effect for only one setting of the others: try several values of `at`.
    Covariates are those of the first datum.

    Arguments:
        model: A Pyro program `model(*batch)` with one plate over data.
        guide: A :class:`pyro_vae.Guide`, or a guide program written by hand.
        data: The data whose aggregated posterior gives the ranges, at least two.
        at: Values of the other latents, `(latents,)`, such as `encode(model, guide, y)[n]`; zeros
            by default.
        levels: Levels of the quantiles, between 0 and 1; by default from 2.5% to 97.5%. With fewer
            than 60 data, the default range is narrower, so that no single datum decides its ends.
        given: Values of the global latent sites, by name.
        seed: Seed of the draws that give the quantiles.

    Returns:
        The decoded means, the latents that were decoded, and the order of the latents. Quantiles
        are estimated from at least 2,000 draws: the standard error of their levels is at most
        0.011.

    Raises:
        ValueError: If a level is not between 0 and 1, or `at`, data and programs do not fit
            together.

    References:
        | beta-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework
          (Higgins et al., 2017)
        | https://openreview.net/forum?id=Sy2fzU9gl

    Example:
        >>> import torch
        >>> from pyro_vae import GlobalParameters, Guide, likelihoods, models
        >>> model = models.VAE(torch.nn.Linear(2, 3), likelihoods.Gaussian(), latent_dim=2)
        >>> traverse(model, Guide(model, GlobalParameters()), torch.zeros(9, 3)).decoded.shape
        torch.Size([2, 7, 3])
    """
    if levels is not None and not (levels and all(0 <= level <= 1 for level in levels)):
        raise ValueError(f"`levels` must be one or more numbers from 0 to 1; got {levels}")
    with conditioned(model, guide, data, seed, given) as (program, posterior, batch):
        if len(posterior) < 2:
            raise ValueError(f"`data` must have at least 2 rows; got {len(posterior)}")
        known = _information(posterior, program.latent_dim)
        levels = _levels(len(posterior)) if levels is None else levels
        draws = max(1, -(-_DRAWS // len(posterior)))
        z, _ = draw_rows(posterior, 0, row_keys(seed, "latents", *batch), draws)
        start = z.new_zeros(program.latent_dim) if at is None else at.to(z)
        if start.shape != (program.latent_dim,) or not bool(start.isfinite().all()):
            raise ValueError(
                "`at` must be one flat latent vector of "
                f"{count_of(program.latent_dim, 'finite number')}; got shape "
                f"{tuple(start.shape)}: pass a row of pv.encode(model, guide, y)"
            )
        spread = prior_variance_of(program, batch)
        order = _order(known.value, posterior.mean(), spread).to(z.device)
        values = _quantiles(z, levels)[order]
        points = moved(start, order, values).flatten(0, 1)
        rows = repeat_rows(take_rows(batch, slice(1)), len(points))
        means = decoded(program, points.unsqueeze(0), rows)[0].unflatten(0, values.shape)
    all_names = latent_names(program)
    names = tuple(all_names[latent] for latent in order.tolist())
    return Traversal(order, names, at_rows(known, order), tuple(levels), values, means, start)


def _levels(num_data: int) -> tuple[float, ...]:
    """Returns the default levels of quantiles; for few data, they exclude the outermost data."""
    end = min(1.5 / num_data, LEVELS[2])
    return tuple(min(max(level, end), 1 - end) for level in LEVELS)


def _information(posterior: Posterior, latents: int) -> Estimate:
    """Returns the information that each latent carries by itself; nan if a density is unknown."""
    try:
        return single_information(posterior)
    except UnknownDensity:
        nan = torch.full((latents,), torch.nan, dtype=torch.float64, device="cpu")
        return Estimate(nan, nan)


def _order(
    known: Float[Tensor, " latents"],
    means: Float[Tensor, "data latents"],
    prior: Float[Tensor, " latents"],
) -> Int64[Tensor, " latents"]:
    """Orders latents by information or, if any is unknown, by the spread of the posterior mean.

    The spread is relative to the variance of the prior. A single outlier with a far too narrow
    posterior can make the information unknown, and would inflate a variance. So the spread is taken
    over the middle two thirds of the data.
    """
    if not bool(known.isnan().any()):
        return known.argsort(descending=True)
    low, high = _quantiles(means.double().unsqueeze(0), _MIDDLE).unbind(dim=1)
    spread = (high - low).square() / prior.to(low)
    return spread.nan_to_num(nan=0.0).argsort(descending=True)


def _quantiles(z: Float[Tensor, "draws data latents"], levels: tuple[float, ...]) -> Tensor:
    """Computes the quantiles of each latent over all draws and data, `(latents, levels)`."""
    ordered = z.flatten(0, 1).sort(dim=0).values  # Tensor.quantile takes at most 16 million entries
    places = [round(level * (len(ordered) - 1)) for level in levels]
    return ordered[places].T


def moved(at: Tensor, order: Tensor, values: Float[Tensor, "latents steps"]) -> Tensor:
    """Returns copies of `at`, each with one latent set to one of its values.

    The result has the shape `(latents, steps, latents)`.
    """
    places = at.repeat(*values.shape, 1)
    which = order.reshape(-1, 1, 1).expand(*values.shape, 1)
    return places.scatter(-1, which, values.unsqueeze(-1))
