r"""Normalizing flows: a normal distribution, transformed by invertible maps.

A flow draws :math:`\epsilon \sim \mathcal{N}(0, I)` and returns :math:`z = \mu + \sigma \odot
f(\epsilon; c)`, where :math:`f = f_T \circ \dots \circ f_1` is invertible with a known Jacobian. By
the change of variables

.. math:: \log q(z) = \log \mathcal{N}(\epsilon; 0, I) - \sum_i \log \sigma_i
    - \sum_t \log |\det J_{f_t}|, \qquad \epsilon = f^{-1}((z - \mu) / \sigma; c)

The nets inside :math:`f` belong to the family, and are shared by all data. Each datum has its own
:math:`(\mu, \log \sigma, c)`: the nets take :math:`c`, the context, as a further input, so the flow
has a different shape for every datum. Every layer has a computable inverse, so that the density can
be computed at any point, not only at the flow's own draws.

In an autoregressive or coupling layer, an entry depends on earlier entries only. Every second layer
therefore receives the entries in reverse order, so that each entry can depend on all others.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, runtime_checkable

import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.distributions import transforms
from pyro.nn import ConditionalAutoRegressiveNN, ConditionalDenseNN, DenseNN
from torch import Tensor, nn
from torch.distributions import Transform

from .._types import Distribution
from ..formatting import count_of
from ..programs.modes import capturing
from ..registry import arguments_of, registered
from .families import Latents, TrainableFamily
from .reparameterization import sobol_normals

_MEAN_POINTS = 512  # doubled by mirroring; see NormalizingFlow.mean
_VALUES_AT_ONCE = 2**18  # points times data in memory during `mean`


@runtime_checkable
class FlowTransform(Protocol):
    """A kind of layer for :class:`NormalizingFlow`."""

    def layer(self, latent_dim: int, context: int) -> nn.Module:
        """Returns a new layer, one of Pyro's conditional transforms, close to the identity."""


@dataclass(frozen=True)
class _Layers:
    """Base class of layers whose parameters come from a network."""

    hidden: tuple[int, ...] = (64,)

    def __post_init__(self) -> None:
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(
                f"`hidden` of {type(self).__name__} must have at least one layer, and every layer "
                f"at least one unit; got hidden={self.hidden}: pass the width of each layer, as in "
                "hidden=(64,)"
            )


@dataclass(frozen=True)
class _SplineLayers(_Layers):
    """Base class of layers that are splines."""

    bins: int = 8
    bound: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        # Pyro gives every bin at least a thousandth of the width, so there is room for 1,000 bins.
        if not 2 <= self.bins <= 500 or not self.bound > 0:
            raise ValueError(
                f"`bins` of {type(self).__name__} must be between 2 and 500, and `bound` must be "
                f"positive; got bins={self.bins} and bound={self.bound}"
            )


@registered()
@dataclass(frozen=True)
class AffineAutoregressive(_Layers):
    r"""Layers :math:`y_i = \sigma_i(x_{<i}, c) \, x_i + \mu_i(x_{<i}, c)`.

    Here :math:`x_{<i}` are the entries before :math:`x_i`, and :math:`c` is the context of the
    datum. A draw takes one pass through the networks; the density at a given point takes one pass
    per latent.

    Arguments:
        hidden: Width of each hidden layer, at least the number of latents.

    References:
        | Improving Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016)
        | https://arxiv.org/abs/1606.04934
    """

    def layer(self, latent_dim: int, context: int) -> nn.Module:
        """Returns a new layer, which is close to the identity before training."""
        net = _autoregressive(self, self.hidden, latent_dim, context, [1, 1])
        return transforms.ConditionalAffineAutoregressive(net)


@registered()
@dataclass(frozen=True)
class SplineAutoregressive(_SplineLayers):
    r"""Layers :math:`y_i = g(x_i; x_{<i}, c)`, with :math:`g` a monotonic rational spline.

    Here :math:`x_{<i}` are the entries before :math:`x_i`, and :math:`c` is the context of the
    datum. A draw takes one pass through the networks; the density at a given point takes one pass
    per latent.

    Arguments:
        hidden: Width of each hidden layer, at least the number of latents.
        bins: Number of bins of a spline.
        bound: The splines act between -bound and bound, in standard deviations of the normal that
            they transform. Outside this interval they are the identity.

    References:
        | Neural Spline Flows (Durkan et al., 2019)
        | https://arxiv.org/abs/1906.04032
        | Invertible Generative Modeling using Linear Rational Splines (Dolatabadi et al., 2020)
        | https://arxiv.org/abs/2001.05168
    """

    def layer(self, latent_dim: int, context: int) -> nn.Module:
        """Returns a new layer, which is close to the identity before training."""
        sizes = _spline_sizes(self.bins)
        net = _autoregressive(self, self.hidden, latent_dim, context, sizes)
        _set_slopes_to_one(net.layers[-1], self.bins)
        return transforms.ConditionalSplineAutoregressive(
            latent_dim, net, count_bins=self.bins, bound=self.bound
        )


@registered()
@dataclass(frozen=True)
class AffineCoupling(_Layers):
    r"""Layers that transform half of the entries: :math:`y_B = \sigma(x_A, c) x_B + \mu(x_A, c)`.

    :math:`A` and :math:`B` are the two halves of the entries, and :math:`c` is the context of the
    datum. A layer leaves :math:`x_A` unchanged, so use at least two layers. A coupling layer is
    less flexible than an autoregressive layer. A draw takes one pass through the networks, and so
    does the density at a given point, however many latents there are.

    Arguments:
        hidden: Width of each hidden layer.

    References:
        | Density Estimation Using Real NVP (Dinh et al., 2017)
        | https://arxiv.org/abs/1605.08803
    """

    def layer(self, latent_dim: int, context: int) -> nn.Module:
        """Returns a new layer, which is close to the identity before training."""
        _check_two(self, latent_dim)
        fixed = latent_dim // 2
        moved = latent_dim - fixed
        net = ConditionalDenseNN(fixed, context, list(self.hidden), [moved, moved], nn.ELU())
        _shrink(net.layers[-1])
        return transforms.ConditionalAffineCoupling(fixed, net)


@registered()
@dataclass(frozen=True)
class ElementwiseSpline(_SplineLayers):
    r"""Layers :math:`y_i = g_i(x_i; c)`: every latent is transformed independently.

    This gives a mean-field family whose marginals need not be normal. It is the only kind of layer
    that works for a single latent. A draw takes one pass through the networks, and so does the
    density at a given point. :math:`c` is the context of the datum.

    Arguments:
        hidden: Width of each hidden layer.
        bins: Number of bins of a spline.
        bound: The splines act between -bound and bound, in standard deviations of the normal that
            they transform. Outside this interval they are the identity.

    References:
        | Neural Spline Flows (Durkan et al., 2019)
        | https://arxiv.org/abs/1906.04032
    """

    def layer(self, latent_dim: int, context: int) -> nn.Module:
        """Returns a new layer, which is close to the identity before training."""
        sizes = [latent_dim * size for size in _spline_sizes(self.bins)]
        net = DenseNN(context, list(self.hidden), sizes, nn.ELU())
        _shrink(net.layers[-1])
        _set_slopes_to_one(net.layers[-1], self.bins)
        return transforms.ConditionalSpline(net, latent_dim, self.bins, bound=self.bound)


@registered()
class NormalizingFlow(TrainableFamily):
    r"""A normal transformed by layers of one kind, :math:`z = \mu + \sigma \odot f(\epsilon; c)`.

    Its parameters per datum are :math:`(\mu, \log \sigma, c)`. The networks in :math:`f` belong to
    the family and are trained together with the guide's other parameters. A :class:`pyro_vae.Guide`
    creates the networks, with weights that make the layers close to the identity. If a datum's
    parameters are fitted with the networks fixed, the fit can only use shapes that the networks
    have learned. With untrained networks the fit finds little more than the mean-field optimum.

    Arguments:
        transform: The kind of layer: :class:`AffineAutoregressive` (default),
            :class:`SplineAutoregressive`, :class:`AffineCoupling` or :class:`ElementwiseSpline`.
        num_transforms: Number of layers.
        context: Number of entries of :math:`c`.

    Raises:
        ValueError: If `num_transforms` or `context` is below 1. In :meth:`setup`, if the transform
            does not work for the number of latents.

    References:
        | Variational Inference with Normalizing Flows (Rezende & Mohamed, 2015)
        | https://arxiv.org/abs/1505.05770

    Example:
        >>> family = NormalizingFlow(AffineCoupling(hidden=(16,)), num_transforms=2, context=4)
        >>> family.setup(latent_dim=3)
        >>> parameters = family.initial(torch.zeros(3)).expand(5, -1)
        >>> q = family(parameters)
        >>> q.batch_shape, q.event_shape, family.mean(parameters).shape
        (torch.Size([5]), torch.Size([3]), torch.Size([5, 3]))
    """

    def __init__(
        self,
        transform: FlowTransform | None = None,
        *,
        num_transforms: int = 2,
        context: int = 8,
    ) -> None:
        super().__init__()
        if num_transforms < 1 or context < 1:
            raise ValueError(
                "`num_transforms` and `context` must be at least 1; got "
                f"num_transforms={num_transforms} and context={context}: use DiagonalNormal() for "
                "no transforms, or pass `context=1` for the smallest context"
            )
        self.transform = AffineAutoregressive() if transform is None else transform
        self.num_transforms, self.context = num_transforms, context
        self.layers = nn.ModuleList()

    def extra_repr(self) -> str:
        """Text for `repr`: the arguments of the family."""
        return ", ".join(f"{name}={value}" for name, value in arguments_of(self).items())

    def setup(self, latent_dim: int) -> None:
        """Creates the networks, with weights from torch's random stream.

        Raises:
            ValueError: If the networks exist already, or the transform does not work for this
                number of latents.
        """
        if self.latent_dim:
            raise ValueError(
                "this NormalizingFlow is already set up for "
                f"{count_of(self.latent_dim, 'latent')}, and its networks may already be trained: "
                "create a new NormalizingFlow"
            )
        layers = [
            self.transform.layer(latent_dim, self.context) for _ in range(self.num_transforms)
        ]
        self.layers.extend(layers)
        self.latent_dim = latent_dim

    def num_parameters(self, latent_dim: Latents) -> int:
        """Number of parameters: two per latent, plus the size of the context."""
        return 2 * latent_dim + self.context

    def initial(self, loc: Float[Tensor, " latents"], scale: float = 1.0) -> Tensor:
        """Parameters for which the flow is close to N(loc, scale^2 I), with a context of ones.

        With new networks the log density of a draw deviates by about 0.01 nats from that of the
        normal. With a context of zeros the weights that multiply the context would get no gradient.
        """
        return torch.cat([loc, torch.full_like(loc, scale).log(), loc.new_ones(self.context)])

    def forward(self, parameters: Float[Tensor, "*batch parameters"]) -> Distribution:
        """Returns the flow's distribution with the given parameters.

        At draws from this distribution object the log density costs nothing extra. The docstring of
        each transform says what the log density costs at other points.

        Raises:
            ValueError: If called before :meth:`setup`, or with a wrong number of parameters.
        """
        self._check(parameters)
        loc, log_scale, context = self._split(parameters)
        normal = dist.Normal(torch.zeros_like(loc), torch.ones_like(loc)).to_event(1)
        return dist.TransformedDistribution(normal, self._transforms(loc, log_scale, context))

    def mean(
        self, parameters: Float[Tensor, "*batch parameters"]
    ) -> Float[Tensor, "*batch latents"]:
        r"""Mean of every datum's distribution, by quasi-Monte Carlo.

        .. math:: \mathrm{E}[z] \approx \frac{1}{2 M} \sum_m
            \left[ z(\epsilon_m) + z(-\epsilon_m) \right], \qquad M = 512

        The :math:`\epsilon_m` are fixed (scrambled Sobol points), the same for every datum, so the
        mean depends on nothing but the parameters. The order and the number of rows do not matter,
        and no random stream is touched. The result is exact for a linear flow. No standard error is
        given, because the points are not random. In tests with a skewness of about one the error
        was below 0.01 standard deviations for 3 latents and below 0.02 for 20 latents. With a
        skewness of five and 20 latents it was 0.06.
        """
        self._check(parameters)
        flat = parameters.reshape(-1, parameters.shape[-1])
        points = _normal_points(self.latent_dim).to(flat)
        parts = [flat] if capturing() else flat.split(_VALUES_AT_ONCE // len(points))
        means = torch.cat([self._mean(part, points) for part in parts])
        return means.reshape(*parameters.shape[:-1], self.latent_dim)

    def _mean(self, parameters: Tensor, points: Tensor) -> Tensor:
        """Mean of the flow for each row of parameters, averaged over the transformed `points`."""
        loc, log_scale, context = self._split(parameters)
        z = points.unsqueeze(1).expand(-1, len(parameters), -1)  # (points, rows, latents)
        for transform in self._transforms(loc, log_scale, context):
            z = transform(z)
        return z.mean(dim=0)

    def _split(self, parameters: Tensor) -> tuple[Tensor, ...]:
        return parameters.split([self.latent_dim, self.latent_dim, self.context], dim=-1)

    def _transforms(self, loc: Tensor, log_scale: Tensor, context: Tensor) -> list[Transform]:
        """Builds new layers and a new final affine map, because transforms cache their inputs."""
        stack: list[Transform] = []
        for position, layer in enumerate(self.layers):
            transform = layer.condition(context)  # type: ignore[operator]
            is_odd = position % 2 == 1
            stack += [_reversal(loc), transform, _reversal(loc)] if is_odd else [transform]
        # With a cache, the inverse returns the very tensor that the last layer drew, which
        # the layers find in their own caches.
        affine = transforms.AffineTransform(loc, log_scale.exp(), event_dim=1, cache_size=1)
        return [*stack, affine]

    def _check(self, parameters: Tensor) -> None:
        if not self.latent_dim:
            raise ValueError(
                "this NormalizingFlow has no networks yet: pass it to pv.Guide, which sets it up, "
                "or call setup(latent_dim) once"
            )
        expected = self.num_parameters(self.latent_dim)
        if parameters.shape[-1] != expected:
            raise ValueError(
                f"the parameters of this NormalizingFlow must have {count_of(expected, 'entry')} "
                f"per datum, 2 for each of {count_of(self.latent_dim, 'latent')}, plus "
                f"{self.context} for the context; got {count_of(parameters.shape[-1], 'entry')} "
                f"(shape {tuple(parameters.shape)}): compute the number with "
                "num_parameters(latent_dim)"
            )


class _AutoregressiveNet(ConditionalAutoRegressiveNN):
    """Pyro's autoregressive network, which here casts its inputs to the context's dtype.

    The cast is needed because Pyro starts the inversion of a layer at zeros of the default dtype.
    """

    def forward(self, x: Tensor, context: Tensor) -> Sequence[Tensor] | Tensor:
        """Computes the layer's parameters for each latent from earlier latents and the context."""
        return super().forward(x.to(context.dtype), context)


def _autoregressive(
    transform: FlowTransform,
    hidden: tuple[int, ...],
    latent_dim: int,
    context: int,
    sizes: list[int],
) -> _AutoregressiveNet:
    """Returns a new autoregressive network, whose outputs are all near zero."""
    _check_two(transform, latent_dim)
    if min(hidden) < latent_dim:
        raise ValueError(
            f"the hidden layers of {type(transform).__name__} must have at least "
            f"{count_of(latent_dim, 'unit')}, one for each latent; got hidden={hidden}: pass "
            f"`hidden=({latent_dim},)` or wider layers"
        )
    order: Any = torch.arange(latent_dim)  # in place of Pyro's default order, which is random
    net = _AutoregressiveNet(latent_dim, context, list(hidden), sizes, order, nonlinearity=nn.ELU())
    _shrink(net.layers[-1])
    return net


@torch.no_grad()
def _shrink(last: nn.Module) -> None:
    """Scales down a network's last layer, so that the outputs are near zero.

    The weights do not become exactly zero, because inner layers would then get no gradient.
    """
    assert isinstance(last, nn.Linear)
    last.weight.mul_(0.01)
    last.bias.zero_()


@torch.no_grad()
def _set_slopes_to_one(last: nn.Module, bins: int) -> None:
    """Sets the biases of a last layer so that the splines have slope 1 at every knot."""
    assert isinstance(last, nn.Linear)
    sizes = _spline_sizes(bins)
    first, number = sum(sizes[:2]), sizes[2]
    # The slope is softplus(output) + 0.001, where 0.001 is Pyro's smallest slope.
    last.bias.view(sum(sizes), -1)[first : first + number] = math.log(math.expm1(0.999))


def _spline_sizes(bins: int) -> list[int]:
    """How many parameters of each kind a spline has.

    The kinds are, in this order: widths and heights of the bins, slopes at the inner knots, and
    positions of the points that divide each bin in two.
    """
    return [bins, bins, bins - 1, bins]


def _reversal(like: Tensor) -> Transform:
    """Returns a transform that reverses the order of a vector's entries."""
    return transforms.Permute(torch.arange(like.shape[-1], device=like.device).flip(0))


@cache
def _normal_points(latent_dim: int) -> Float[Tensor, "points latents"]:
    """Fixed quasi-random points for N(0, I), followed by their mirror images, in float64."""
    points = sobol_normals(_MEAN_POINTS, latent_dim, seed=0)
    return torch.cat([points, -points])


def _check_two(transform: FlowTransform, latent_dim: int) -> None:
    if latent_dim < 2:
        raise ValueError(
            f"{type(transform).__name__} transforms each latent given other latents, so there "
            f"must be at least 2 latents; got {latent_dim}: use "
            "NormalizingFlow(ElementwiseSpline()) or DiagonalNormal()"
        )
