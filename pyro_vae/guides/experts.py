r"""An encoder for incomplete tables: a product of experts, one per observed column, and a network.

In a linear Gaussian model every observed column adds one term to the posterior precision of z, and
one to the product of precision and mean. A missing column adds nothing. A network whose input is a
zero-filled row and a mask has to learn this sum for each of :math:`2^D` patterns of missing
columns, and a few hundred rows are too few for that. Here the sum is built in, and the network
learns only the nonlinear part.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .._types import Batch
from ..nets import ColumnInputs
from ..programs import Program
from ..registry import registered
from .families import ClosestNormal, Family, require_closest_normal
from .maps import Encoder


@registered()
class ProductOfExperts(Encoder):
    r"""Amortized map for tables: the posterior of a linear model, plus a network's correction.

    .. math:: P_n = I + \sum_{d \in O_n} h_d a_d a_d^\top, \qquad
        m_n = P_n^{-1} \sum_{d \in O_n} (g_d x_{nd} + c_d) a_d, \qquad
        \lambda_n = \lambda(m_n, P_n) + \mathrm{net}(y_n)

    where :math:`O_n` are the observed columns, :math:`x_{nd}` are their entries (numbers, or
    indicators of categories), and :math:`\lambda(m, P)` are the parameters of the family's member
    closest to :math:`\mathcal{N}(m, P^{-1})`. The slopes :math:`a_d`, gains :math:`g_d`, offsets
    :math:`c_d` and weights :math:`h_d` are trained together with the network, whose last layer
    starts at zero. If these four are set from a factor analysis, then :math:`\mathcal{N}(m_n,
    P_n^{-1})` is the exact posterior of the factor analysis, whichever entries are missing.

    Arguments:
        net: A network for table rows with missing entries; it returns features, and the map adds
            the last layer.
        latent_dim: Number of entries of z.

    Raises:
        TypeError: When the guide is made, if its family has no method `closest_normal`.

    References:
        | Multimodal Generative Models for Scalable Weakly-Supervised Learning (Wu & Goodman, 2018)
        | https://arxiv.org/abs/1802.05335

    Example:
        >>> from pyro_vae.nets import MLPEncoder
        >>> net = ColumnInputs(MLPEncoder(ColumnInputs.width([0, 0])), [0, 0])
        >>> ProductOfExperts(net, latent_dim=1).natural(torch.zeros(3, 2))[1].shape
        torch.Size([3, 1, 1])
    """

    net: ColumnInputs
    _family: tuple[ClosestNormal]  # in a tuple: the family is not part of the map

    def __init__(self, net: ColumnInputs, latent_dim: int) -> None:
        super().__init__(net)
        self.latent_dim, features = latent_dim, len(net.columns)
        self.slopes = nn.Parameter(torch.zeros(features, latent_dim))
        self.gain = nn.Parameter(torch.ones(features))
        self.offset = nn.Parameter(torch.zeros(features))
        self.log_weight = nn.Parameter(torch.zeros(features))

    def attach(self, program: Program, family: Family) -> None:
        """Stores the family.

        Raises:
            TypeError: If the family has no method `closest_normal`.
        """
        self._family = (require_closest_normal(self, family),)

    @torch.no_grad()
    def setup(self, num_parameters: int, initial: Float[Tensor, " parameters"]) -> None:
        """Adds the network's last layer, with all weights zero."""
        is_new = self.num_parameters != num_parameters
        super().setup(num_parameters, initial)
        if is_new and isinstance(self.head, nn.Linear):
            self.head.weight.zero_()
            self.head.bias.zero_()

    @torch.no_grad()
    def set_experts(
        self,
        slopes: Float[Tensor, "features latents"],
        gain: Float[Tensor, " features"],
        offset: Float[Tensor, " features"],
        weight: Float[Tensor, " features"],
    ) -> None:
        """Sets the slope vector, gain, offset and weight of every column's expert."""
        self.slopes.copy_(slopes)
        self.gain.copy_(gain)
        self.offset.copy_(offset)
        self.log_weight.copy_(weight.log())

    def natural(
        self, y: Float[Tensor, "batch columns"]
    ) -> tuple[Float[Tensor, "batch latents"], Float[Tensor, "batch latents latents"]]:
        """Mean and precision of the linear model's posterior for every row."""
        x, observed = self.net.numbers(y)
        products = (self.slopes[:, :, None] * self.slopes[:, None, :]).flatten(1)
        identity = torch.eye(self.latent_dim, dtype=x.dtype, device=x.device)
        weights = observed * self.log_weight.exp()
        precision = identity + (weights @ products).unflatten(1, identity.shape)
        linear = (observed * (self.gain * x + self.offset)) @ self.slopes
        loc = torch.cholesky_solve(linear[..., None], torch.linalg.cholesky(precision))[..., 0]
        return loc, precision

    def forward(self, batch: Batch, rows: Int[Tensor, " batch"] | None) -> Tensor:
        """Parameters of q: those of the product of experts, plus the network's output."""
        correction = super().forward(batch, rows)
        closest: Tensor = self._family[0].closest_normal(*self.natural(batch[0]))
        return closest + correction
