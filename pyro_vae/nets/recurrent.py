"""Recurrent networks for time series."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..registry import registered
from .scaling import InputScale


@registered()
class GRUEncoder(nn.Module):
    r"""Recurrent encoder that reads a series backwards: :math:`h_t = \mathrm{GRU}(y_t, h_{t+1})`.

    In a state-space model the posterior factorizes as :math:`\prod_t p(z_t \mid z_{t-1}, y_{t
    \ldots T})`: given the previous state, a state depends only on present and future data. At every
    time the network sees zeros in place of missing entries, and a mask of the observed entries. So
    padding at the end looks the same as missing times in between. The recurrent states of all times
    are concatenated to `length * hidden` features, so that the parameters of every z can depend on
    all times.

    Arguments:
        features: Number of features per time step.
        hidden: Width of the recurrent state.
        length: Number of time steps of a series, padding included.

    Raises:
        ValueError: When called, if the series are not of shape `(batch, length, features)`.

    References:
        | Structured Inference Networks for Nonlinear State Space Models
          (Krishnan, Shalit & Sontag, 2017)
        | https://arxiv.org/abs/1609.09869

    Example:
        >>> encoder = GRUEncoder(features=3, hidden=8, length=5)
        >>> encoder(torch.full((2, 5, 3), torch.nan)).shape
        torch.Size([2, 40])
    """

    def __init__(self, features: int, hidden: int, length: int) -> None:
        super().__init__()
        self.features, self.hidden, self.length = features, hidden, length
        self.num_features = length * hidden
        self.net = nn.GRU(2 * features, hidden, batch_first=True)
        self.units = InputScale(self, self.net, series=True)

    def forward(self, y: Float[Tensor, "batch times features"]) -> Float[Tensor, "batch all"]:
        """Returns the recurrent states of all times, concatenated."""
        if y.shape[1:] != (self.length, self.features):
            raise ValueError(
                f"each series must have shape {(self.length, self.features)} (times, features); "
                f"got shape {tuple(y.shape[1:])}: give all series the same length with "
                "pv.models.padded(series)"
            )
        y, observed = self.units(y), ~y.isnan()
        seen = torch.cat([y.masked_fill(~observed, 0.0), observed.to(y)], dim=-1)
        states, _ = self.net(seen.flip(1))
        return states.flip(1).flatten(start_dim=1)
