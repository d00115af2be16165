"""Distributions that priors and models are made of."""

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from .._types import Distribution


class Mixture(dist.TorchDistribution):
    r"""A mixture of distributions of a vector, :math:`p(z) = \sum_k \pi_k \, p_k(z)`.

    Arguments:
        log_shares: :math:`\log \pi_k`, `(components,)`, normalized.
        components: Distributions of batch shape `(components,)` and one event dimension.
        batch_shape: How often it is repeated.

    Example:
        >>> components = dist.Normal(torch.tensor([[-1.0], [1.0]]), 1.0).to_event(1)
        >>> Mixture(torch.tensor([0.5, 0.5]).log(), components).log_prob(torch.zeros(3, 1))
        tensor([-1.4189, -1.4189, -1.4189])
    """

    has_rsample = False
    support = constraints.real_vector

    def __init__(
        self, log_shares: Tensor, components: Distribution, batch_shape: Sequence[int] = ()
    ) -> None:
        self.log_shares, self.components = log_shares, components
        super().__init__(torch.Size(batch_shape), components.event_shape, validate_args=False)

    @property
    def arg_constraints(self) -> dict[str, constraints.Constraint]:
        """None: the components check their own."""
        return {}

    @property
    def mean(self) -> Tensor:
        """The average of the means."""
        mean = (self.log_shares.exp()[:, None] * self.components.mean).sum(dim=0)
        return mean.expand(*self.batch_shape, -1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Mixture":
        """The same, repeated."""
        return Mixture(self.log_shares, self.components, batch_shape)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008 (torch's signature)
        """A component for every draw, and a draw of it."""
        shape = torch.Size([*sample_shape, *self.batch_shape])
        with torch.no_grad():
            chosen = dist.Categorical(logits=self.log_shares).sample(shape)
            draws = self.components.sample(shape)  # (*shape, components, latents)
        index = chosen[..., None, None].expand(*shape, 1, draws.shape[-1])
        return draws.gather(-2, index).squeeze(-2)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, by a log-sum-exp over the components."""
        parts = self.components.log_prob(value.unsqueeze(-2)) + self.log_shares
        return _at_least(parts.logsumexp(dim=-1), self.batch_shape)


class Bent(dist.TorchDistribution):
    r"""A standard normal, pulled back: :math:`z = \mu + \sigma f^{-1}(\epsilon)`.

    .. math:: \log p(z) = \log \mathcal{N}(\epsilon; 0, I) + \sum_t \log |\det J_{f_t}|
        - \sum_i \log \sigma_i, \qquad \epsilon = f((z - \mu) / \sigma)

    The layers run from z to noise, the direction that is one pass through the nets.

    Arguments:
        loc: :math:`\mu`, `(latents,)`.
        scale: :math:`\sigma`, `(latents,)`.
        layers: Functions from a shape to one of Pyro's transforms, :math:`f_1, \ldots, f_T`.
        batch_shape: How often it is repeated.
    """

    has_rsample = True
    support = constraints.real_vector

    def __init__(
        self, loc: Tensor, scale: Tensor, layers: Sequence[Any], batch_shape: Sequence[int] = ()
    ) -> None:
        self.loc, self.scale, self.layers = loc, scale, layers
        super().__init__(torch.Size(batch_shape), loc.shape, validate_args=False)

    @property
    def arg_constraints(self) -> dict[str, constraints.Constraint]:
        """None."""
        return {}

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Bent":
        """The same, repeated."""
        return Bent(self.loc, self.scale, self.layers, batch_shape)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008 (torch's signature)
        """Draws without a gradient."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Noise, taken back through the layers."""
        shape = torch.Size([*sample_shape, *self.batch_shape])
        value = torch.randn(*shape, *self.loc.shape, dtype=self.loc.dtype, device=self.loc.device)
        for layer in reversed(self.layers):
            value = layer(shape).inv(value)
        return self.loc + self.scale * value

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of any point, in one pass through the layers."""
        value = (value - self.loc) / self.scale
        total = -self.scale.log().sum().expand(value.shape[:-1])
        for layer in self.layers:
            transform = layer(value.shape[:-1])
            bent = transform(value)
            log_jacobian = transform.log_abs_det_jacobian(value, bent)
            by_entry = transform.domain.event_dim == 0  # a transform of one entry at a time
            total = total + (log_jacobian.sum(dim=-1) if by_entry else log_jacobian)
            value = bent
        noise = dist.Normal(torch.zeros_like(self.loc), torch.ones_like(self.loc)).to_event(1)
        return _at_least(total + noise.log_prob(value), self.batch_shape)


class Unfolded(dist.TorchDistribution):
    """Independent features whose first batch dimension stands for two, such as data and times.

    Arguments:
        features: Distributions of batch shape `(rows * times, *datum)`, with no event dimension.
        times: Length of the second dimension of what they stand for, `(rows, times, *datum)`.
    """

    def __init__(self, features: Distribution, times: int) -> None:
        self.features, self.times = features, times
        many, *datum = features.batch_shape
        shape = torch.Size([many // times, times, *datum])
        super().__init__(shape, features.event_shape, validate_args=False)

    @property
    def arg_constraints(self) -> dict[str, constraints.Constraint]:
        """None: the features check their own."""
        return {}

    @property
    def support(self) -> constraints.Constraint | None:
        """That of the features."""
        return self.features.support

    @property
    def mean(self) -> Tensor:
        """That of the features."""
        return self._unfold(self.features.mean, 0)

    def _unfold(self, value: Tensor, dim: int) -> Tensor:
        return value.unflatten(dim, (-1, self.times))

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Unfolded":
        """The same, for it cannot have more rows than its features."""
        if torch.Size(batch_shape) != self.batch_shape:
            raise ValueError(f"has {tuple(self.batch_shape)}, cannot be {tuple(batch_shape)}")
        return self

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008 (torch's signature)
        """Draws of all features."""
        return self._unfold(self.features.sample(sample_shape), len(torch.Size(sample_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of each feature."""
        dim = value.dim() - len(self.batch_shape)
        return self._unfold(self.features.log_prob(value.flatten(dim, dim + 1)), dim)


def _at_least(value: Tensor, shape: torch.Size) -> Tensor:
    return value.expand(torch.broadcast_shapes(value.shape, shape))
