r"""Prior distributions of a latent vector.

The ELBO rewards a prior that is close to the aggregated posterior :math:`\bar q(z) = \frac{1}{N}
\sum_n q(z \mid y_n)`: the average KL term of a datum is :math:`I(n; z) + \mathrm{KL}(\bar q
\,\|\, p)`, where :math:`I` is the mutual information. With a standard normal prior the second term
lowers the ELBO whenever the aggregated posterior has a different shape. The other priors in this
module are learned with the model.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Protocol, runtime_checkable

import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.distributions import transforms
from torch import Tensor, nn
from torch.distributions import constraints

from .._types import Distribution, Size
from ..formatting import count_of
from ..registry import registered


class Mixture(dist.TorchDistribution):
    r"""A mixture of distributions of a vector, :math:`p(z) = \sum_k \pi_k \, p_k(z)`.

    Arguments:
        log_shares: :math:`\log \pi_k`, `(components,)`, normalized.
        components: Distributions of batch shape `(components,)` and one event dimension.
        batch_shape: Batch shape of the result.

    Example:
        >>> components = dist.Normal(torch.tensor([[-1.0], [1.0]]), 1.0).to_event(1)
        >>> Mixture(torch.tensor([0.5, 0.5]).log(), components).log_prob(torch.zeros(3, 1))
        tensor([-1.4189, -1.4189, -1.4189])
    """

    has_rsample = False
    support = constraints.real_vector
    # the components check their own parameters
    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(
        self, log_shares: Tensor, components: Distribution, batch_shape: Sequence[int] = ()
    ) -> None:
        self.log_shares, self.components = log_shares, components
        super().__init__(torch.Size(batch_shape), components.event_shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        """Returns the weighted average of the components' means."""
        mean = (self.log_shares.exp()[:, None] * self.components.mean).sum(dim=0)
        return mean.expand(*self.batch_shape, -1)

    def expand(self, batch_shape: Size, _instance: object = None) -> "Mixture":
        """Returns the same distribution with another batch shape."""
        return Mixture(self.log_shares, self.components, batch_shape)

    def sample(self, sample_shape: Size = ()) -> Tensor:
        """Chooses a component at random for every draw, and draws a vector from this component."""
        shape = torch.Size([*sample_shape, *self.batch_shape])
        with torch.no_grad():
            chosen = dist.Categorical(logits=self.log_shares).sample(shape)
            draws = self.components.sample(shape)  # (*shape, components, latents)
        index = chosen[..., None, None].expand(*shape, 1, draws.shape[-1])
        return draws.gather(-2, index).squeeze(-2)

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log density, by a log-sum-exp over the components."""
        parts = self.components.log_prob(value.unsqueeze(-2)) + self.log_shares
        return _at_least(parts.logsumexp(dim=-1), self.batch_shape)


class Flow(dist.TorchDistribution):
    r"""A standard normal transformed by a flow: :math:`z = \mu + \sigma f^{-1}(\epsilon)`.

    .. math:: \log p(z) = \log \mathcal{N}(\epsilon; 0, I) + \sum_t \log |\det J_{f_t}|
        - \sum_i \log \sigma_i, \qquad \epsilon = f((z - \mu) / \sigma)

    Here :math:`f` is the composition of all layers :math:`f_t`. The layers map z to noise, because
    computing a density then takes only one pass through the networks.

    Arguments:
        loc: :math:`\mu`, `(latents,)`.
        scale: :math:`\sigma`, `(latents,)`.
        layers: The layers :math:`f_1, \ldots, f_T`, each as a function that makes one of Pyro's
            transforms for a given batch shape.
        batch_shape: Batch shape of the result.
    """

    has_rsample = True
    support = constraints.real_vector
    # any center and scale are allowed
    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(
        self, loc: Tensor, scale: Tensor, layers: Sequence[Any], batch_shape: Sequence[int] = ()
    ) -> None:
        self.loc, self.scale, self.layers = loc, scale, layers
        super().__init__(torch.Size(batch_shape), loc.shape, validate_args=False)

    def expand(self, batch_shape: Size, _instance: object = None) -> "Flow":
        """Returns the same distribution with another batch shape."""
        return Flow(self.loc, self.scale, self.layers, batch_shape)

    def sample(self, sample_shape: Size = ()) -> Tensor:
        """Returns draws without a gradient."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    def rsample(self, sample_shape: Size = ()) -> Tensor:
        """Returns draws that carry a gradient: noise is mapped back through the layers."""
        shape = torch.Size([*sample_shape, *self.batch_shape])
        value = torch.randn(*shape, *self.loc.shape, dtype=self.loc.dtype, device=self.loc.device)
        for layer in reversed(self.layers):
            value = layer(shape).inv(value)
        return self.loc + self.scale * value

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log density of each given point, in one pass through the layers."""
        value = (value - self.loc) / self.scale
        total = -self.scale.log().sum().expand(value.shape[:-1])
        for layer in self.layers:
            transform = layer(value.shape[:-1])
            transformed = transform(value)
            log_jacobian = transform.log_abs_det_jacobian(value, transformed)
            by_entry = transform.domain.event_dim == 0  # acts on each entry separately
            total = total + (log_jacobian.sum(dim=-1) if by_entry else log_jacobian)
            value = transformed
        noise = dist.Normal(torch.zeros_like(self.loc), torch.ones_like(self.loc)).to_event(1)
        return _at_least(total + noise.log_prob(value), self.batch_shape)


class Unflattened(dist.TorchDistribution):
    """A distribution whose first batch dimension is split into several, such as data and times.

    Arguments:
        flat: The distribution, of batch shape `(rows, *rest)`.
        sizes: Lengths of the dimensions that take the place of the first; their product is `rows`.
    """

    # `flat` checks its own parameters
    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(self, flat: Distribution, sizes: Size) -> None:
        self.flat, self.sizes, self.has_rsample = flat, torch.Size(sizes), flat.has_rsample
        shape = self.sizes + flat.batch_shape[1:]
        super().__init__(shape, flat.event_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint | None:
        """Returns the support of the distribution."""
        return self.flat.support

    @property
    def mean(self) -> Tensor:
        """Returns the means."""
        return self.flat.mean.unflatten(0, self.sizes)

    def expand(self, batch_shape: Size, _instance: object = None) -> "Unflattened":
        """Returns the distribution unchanged; refuses all batch shapes but the present one."""
        if torch.Size(batch_shape) != self.batch_shape:
            raise ValueError(
                f"the batch shape must stay {tuple(self.batch_shape)}; got {tuple(batch_shape)}"
            )
        return self

    def sample(self, sample_shape: Size = ()) -> Tensor:
        """Returns draws without a gradient."""
        return self.flat.sample(torch.Size(sample_shape)).unflatten(len(sample_shape), self.sizes)

    def rsample(self, sample_shape: Size = ()) -> Tensor:
        """Returns draws that carry a gradient."""
        return self.flat.rsample(torch.Size(sample_shape)).unflatten(len(sample_shape), self.sizes)

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log density of values, after expanding them to the batch shape."""
        shape = self.batch_shape + self.event_shape
        value = value.expand(torch.broadcast_shapes(value.shape, shape))
        dim = value.dim() - len(shape)
        flat = self.flat.log_prob(value.flatten(dim, dim + len(self.sizes) - 1))
        return flat.unflatten(dim, self.sizes)


def _at_least(value: Tensor, shape: torch.Size) -> Tensor:
    """Expands log densities to the batch shape, repeating them along missing dimensions."""
    return value.expand(torch.broadcast_shapes(value.shape, shape))


class Prior(nn.Module):
    """The base of priors, which are distributions over one latent vector."""

    latent_dim: int | None = None
    """Number of entries of z that the prior is for; None if the prior works for any number."""

    def setup(self, zero: Tensor) -> None:
        """Moves the prior to the dtype and device of `zero`, a tensor of zeros `(latents,)`.

        Raises:
            ValueError: If the prior was built for a different number of latents.
        """
        self.to(device=zero.device, dtype=zero.dtype)
        if self.latent_dim not in (None, len(zero)):
            raise ValueError(
                f"this {type(self).__name__} is for {count_of(self.latent_dim, 'latent')}, but the "
                f"model has {count_of(len(zero), 'latent')}: build the prior with "
                f"`latent_dim={len(zero)}`"
            )

    def forward(self, zero: Tensor) -> Distribution:
        """Returns p(z), of event shape `(latents,)`, with the dtype and device of `zero`."""
        raise NotImplementedError


@registered()
class StandardNormal(Prior):
    r"""The standard normal, :math:`z \sim \mathcal{N}(0, I)`."""

    def forward(self, zero: Tensor) -> Distribution:
        """Returns independent standard normals."""
        return dist.Normal(zero, torch.ones_like(zero)).to_event(1)


@registered()
class MixtureOfNormals(Prior):
    r"""A mixture of normals with learned weights, means and standard deviations.

    .. math:: p(z) = \sum_{k=1}^{K} \pi_k \, \mathcal{N}(z \mid \mu_k, \operatorname{diag}
        \sigma_k^2)

    A :class:`pyro_vae.models.MixtureVAE` has the same p(z), but there the component is a latent
    site.

    Arguments:
        components: Number of normals, :math:`K`.
        latent_dim: Number of entries of z.
        spread: Standard deviation of the random initial means. Components with equal initial values
            would stay equal.

    Raises:
        ValueError: If there is no component or no latent.

    References:
        | Stick-Breaking, Mixture and Other Priors: Approximate Inference for Deep Latent Gaussian
          Mixtures (Nalisnick, Hertel & Smyth, 2016)
        | http://bayesiandeeplearning.org/2016/papers/BDL_20.pdf

    Example:
        >>> prior = MixtureOfNormals(components=3, latent_dim=2)
        >>> prior(torch.zeros(2)).log_prob(torch.zeros(5, 2)).shape
        torch.Size([5])
    """

    def __init__(self, components: int, latent_dim: int, *, spread: float = 1.0) -> None:
        super().__init__()
        self.components, self.latent_dim, self.spread = components, latent_dim, spread
        self.logits = nn.Parameter(torch.zeros(components))
        self.loc = nn.Parameter(torch.zeros(components, latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(components, latent_dim))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Sets equal weights, unit variances, and new random means."""
        self.logits.zero_()
        self.log_scale.zero_()
        self.loc.normal_().mul_(self.spread)

    def log_shares(self) -> Float[Tensor, " components"]:
        r"""Returns the log weights of the components, normalized."""
        return self.logits.log_softmax(dim=-1)

    def normals(self) -> Distribution:
        """Returns the components, of batch shape `(components,)`."""
        return dist.Normal(self.loc, self.log_scale.exp()).to_event(1)

    def forward(self, zero: Tensor) -> Distribution:
        """Returns the mixture of normals as the distribution p(z)."""
        return Mixture(self.log_shares(), self.normals())


@runtime_checkable
class AmortizedMap(Protocol):
    """An encoder that :class:`VampPrior` can use, such as :class:`pyro_vae.Encoder`."""

    def setup(self, num_parameters: int, initial: Tensor) -> None:
        """Creates the modules that map a datum to the given number of parameters."""

    def __call__(self, batch: tuple[Tensor, ...], rows: None) -> Tensor:
        """Returns the parameters of each datum's distribution, `(batch, parameters)`."""


@runtime_checkable
class NormalFamily(Protocol):
    """A family that :class:`VampPrior` can use, such as :class:`pyro_vae.DiagonalNormal`."""

    def num_parameters(self, latent_dim: int) -> int:
        """Returns the number of parameters per datum, given the number of latents."""

    def initial(self, loc: Tensor, scale: float = 1.0) -> Tensor:
        """Returns the parameters of a normal with mean `loc` and standard deviation `scale`."""

    def __call__(self, parameters: Tensor) -> Distribution:
        """Returns the family's distributions with the given parameters, one for each datum."""


@registered(pseudo_inputs="pseudo_inputs.shape")
class VampPrior(Prior):
    r"""A mixture of an encoder's posteriors at learned pseudo-inputs.

    .. math:: p(z) = \sum_{k=1}^{K} \pi_k \, q_\phi(z \mid u_k)

    The encoder must be the guide's encoder, the same object. Make it first, pass it to the
    prior, and then pass it to :class:`pyro_vae.Guide` with the same family. The encoder's
    parameters then belong to both model and guide, and are trained in both roles. Only then does
    the prior follow the aggregated posterior. With another guide, or in a copy of the model
    without the guide, the prior is a mixture with a separate encoder.

    Arguments:
        encoder: The encoder, a :class:`pyro_vae.Encoder`.
        pseudo_inputs: Initial pseudo-inputs: rows of data, `(components, *datum)`. If only this
            shape is given, the initial pseudo-inputs are standard normal numbers.
        family: The family of the guide, such as :class:`pyro_vae.DiagonalNormal`; it must have no
            parameters of its own.

    Raises:
        TypeError: If the encoder or the family is of the wrong type.
        ValueError: If there is no pseudo-input, or a pseudo-input is not finite.

    References:
        | VAE with a VampPrior (Tomczak & Welling, 2018)
        | https://arxiv.org/abs/1705.07120

    Example:
        >>> from pyro_vae import DiagonalNormal, Encoder, Guide, likelihoods, models, nets
        >>> encoder = Encoder(nets.MLPEncoder(3))
        >>> prior = VampPrior(encoder, torch.randn(5, 3), DiagonalNormal())
        >>> model = models.VAE(nets.MLPDecoder(2, 3), likelihoods.Gaussian(), 2, prior)
        >>> guide = Guide(model, encoder, DiagonalNormal())
        >>> model.sample(4).shape
        torch.Size([4, 3])
    """

    def __init__(
        self, encoder: nn.Module, pseudo_inputs: Tensor | Sequence[int], family: object
    ) -> None:
        super().__init__()
        if not isinstance(encoder, AmortizedMap):
            raise TypeError(
                "`encoder` of VampPrior must be an inference map such as pv.Encoder(net); got "
                f"{type(encoder).__name__}: wrap the net in pv.Encoder(net), and pass this same "
                "Encoder to pv.Guide"
            )
        if not isinstance(family, NormalFamily) or isinstance(family, nn.Module):
            raise TypeError(
                "`family` of VampPrior must be a family without parameters of its own; got "
                f"{type(family).__name__}: use pv.DiagonalNormal()"
            )
        if isinstance(pseudo_inputs, Tensor):
            start = pseudo_inputs.detach().clone()
        else:
            start = torch.randn(*pseudo_inputs)
        if start.dim() < 2 or len(start) == 0 or not bool(start.isfinite().all()):
            raise ValueError(
                "`pseudo_inputs` must be finite rows of data, of shape (components, *datum); got "
                f"shape {tuple(start.shape)} with "
                f"{count_of(int((~start.isfinite()).sum()), 'nan or infinite entry')}"
            )
        self.encoder, self.family = encoder, family
        self.pseudo_inputs = nn.Parameter(start)
        self.logits = nn.Parameter(start.new_zeros(len(start)))

    def setup(self, zero: Tensor) -> None:
        """Creates the layers of the encoder, which the guide will use, too."""
        super().setup(zero)
        self.encoder.setup(self.family.num_parameters(len(zero)), self.family.initial(zero))

    def forward(self, zero: Tensor) -> Distribution:
        """Returns the mixture of the encoder's posteriors at the pseudo-inputs."""
        parameters = self.encoder((self.pseudo_inputs,), None)
        return Mixture(self.logits.log_softmax(dim=-1), self.family(parameters))


@runtime_checkable
class Layers(Protocol):
    """A kind of layer for a :class:`FlowPrior`, such as :class:`pyro_vae.AffineAutoregressive`."""

    def layer(self, latent_dim: int, context: int) -> nn.Module:
        """Returns one of Pyro's conditional transforms, initialized close to the identity."""


@registered()
class FlowPrior(Prior):
    r"""A standard normal, transformed by a flow, :math:`z = \mu + \sigma f^{-1}(\epsilon)`.

    .. math:: \log p(z) = \log \mathcal{N}(\epsilon; 0, I) + \log |\det J_f|
        - \sum_i \log \sigma_i, \qquad \epsilon = f((z - \mu) / \sigma)

    The layers map z to noise. The density, which training needs, then takes one pass through the
    networks. A draw takes one pass per latent with autoregressive layers, and one pass
    with couplings. The prior starts as N(0, I).

    Arguments:
        latent_dim: Number of entries of z.
        transform: The kind of layer: :class:`pyro_vae.SplineAutoregressive`,
            :class:`pyro_vae.AffineAutoregressive`, :class:`pyro_vae.AffineCoupling` or, for one
            latent, :class:`pyro_vae.ElementwiseSpline`.
        num_transforms: Number of layers. The order of the latents is reversed between layers.

    Raises:
        TypeError: If the transform is not a kind of layer.
        ValueError: If there is no layer, or the transform does not work for this number of latents.

    References:
        | Variational Lossy Autoencoder (Chen et al., 2017)
        | https://arxiv.org/abs/1611.02731
        | Masked Autoregressive Flow for Density Estimation (Papamakarios et al., 2017)
        | https://arxiv.org/abs/1705.07057

    Example:
        >>> from pyro_vae import SplineAutoregressive
        >>> prior = FlowPrior(2, SplineAutoregressive(hidden=(16,)))
        >>> prior(torch.zeros(2)).log_prob(torch.zeros(5, 2)).shape
        torch.Size([5])
    """

    def __init__(self, latent_dim: int, transform: object, num_transforms: int = 2) -> None:
        super().__init__()
        if not isinstance(transform, Layers):
            raise TypeError(
                "`transform` of FlowPrior must describe the layers, as pv.SplineAutoregressive() "
                f"or pv.ElementwiseSpline() does; got {type(transform).__name__}"
            )
        if num_transforms < 1:
            raise ValueError(
                f"`num_transforms` of FlowPrior must be at least 1; got {num_transforms}"
            )
        self.latent_dim, self.transform = latent_dim, transform
        self.num_transforms = num_transforms
        self.loc = nn.Parameter(torch.zeros(latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(latent_dim))
        # The layers are conditional transforms; here they are conditioned on a constant.
        self.layers = nn.ModuleList(transform.layer(latent_dim, 1) for _ in range(num_transforms))

    def forward(self, zero: Tensor) -> Distribution:
        """Returns the standard normal transformed by the flow."""
        layers: list[Any] = []
        for position, layer in enumerate(self.layers):
            if position > 0:
                layers.append(partial(_reversal, self.loc))
            layers.append(partial(_conditioned, layer, self.loc))
        return Flow(self.loc, self.log_scale.exp(), layers)


def _conditioned(layer: Any, like: Tensor, shape: Sequence[int]) -> Any:
    """Returns a new transform of a layer at every call, because transforms cache their inputs."""
    return layer.condition(like.new_ones(*shape, 1))


def _reversal(like: Tensor, _shape: Sequence[int]) -> Any:
    """Returns a transform that reverses the order of the entries of a vector."""
    return transforms.Permute(torch.arange(len(like) - 1, -1, -1, device=like.device))
