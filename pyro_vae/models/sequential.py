"""State-space models of time series, as variational autoencoders."""

from collections.abc import Sequence
from functools import reduce

import pyro
import torch
from jaxtyping import Float
from torch import Tensor, nn

from .._types import Distribution
from ..formatting import count_of
from ..likelihoods import Likelihood
from ..likelihoods.base import has_own_density
from ..programs import PartlyObserved
from ..randomness import forked_if
from ..registry import registered
from .base import Decoded
from .conditional import as_normal, given_latents, latents_of
from .priors import Prior, StandardNormal, Unflattened


def padded(
    series: Sequence[Tensor], length: int | None = None
) -> Float[Tensor, "batch length *features"]:
    """Pads series of different lengths into one tensor, with nan after their ends.

    Arguments:
        series: The series, each `(times, *features)`. The result has the highest precision that
            any series has. Integers become floating-point numbers, because no integer is nan.
        length: Number of time steps of the result; by default that of the longest series.

    Raises:
        ValueError: If no series has a time step, if the series differ in the shape of their
            features, or if a series is longer than `length`.

    Example:
        >>> padded([torch.ones(1, 2), torch.ones(3, 2)])[:, :, 0]
        tensor([[1., nan, nan],
                [1., 1., 1.]])
    """
    shapes = [tuple(part.shape) for part in series]
    longest = max((shape[0] for shape in shapes), default=0)
    length = longest if length is None else length
    if longest == 0 or length < longest or len({shape[1:] for shape in shapes}) > 1:
        raise ValueError(
            "`series` must have at least one series with a time step; all series must have shape "
            "(times, features), the same number of features, and at most "
            f"length={count_of(length, 'time step')}; got {len(shapes)} series of shapes "
            f"{shapes[:5]} (at most 5 shown)"
        )
    dtype = reduce(torch.promote_types, (part.dtype for part in series))
    dtype = dtype if dtype.is_floating_point else torch.get_default_dtype()
    whole = series[0].new_full((len(series), length, *shapes[0][1:]), torch.nan, dtype=dtype)
    for row, part in zip(whole, series, strict=True):
        row[: len(part)] = part
    return whole


@registered(latent_dim="state_dim", prior="latent_prior")
class SequentialVAE(Decoded):
    r"""A state-space model of time series, a Pyro program; each datum is a whole series.

    .. math:: z_1 \sim p(z_1), \qquad z_t \mid z_{t-1} \sim \mathcal{N}(\mu(z_{t-1}),
        \sigma(z_{t-1})^2), \qquad y_t \mid z_t \sim p_\theta(y_t \mid z_t)

    Series are independent of each other; the times within a series are not. `model(y)` takes
    `(batch, length, *features)`, with the latent sites `z_1`, ..., `z_T` and one observed site `y`.
    A nan in y stands for a missing entry: after the end of a shorter series (:func:`padded`), at a
    time without a measurement, or in a single feature. States after the end follow the prior given
    the last state. This prior integrates to one, so the evidence of a series does not depend on its
    padding. Bounds and importance weights depend on the padding slightly, since the guide has to
    match the prior after the end.

    The flat vector of a datum has `length * latent_dim` entries, so mean-field and low-rank
    families suit long series. :class:`pyro_vae.nets.GRUEncoder` reads a series backwards.

    Arguments:
        transition: The distribution of `z_t` given `z_{t-1}`: a :class:`NormalGiven`, or a network
            that gives all means and then all unconstrained standard deviations, `2 * latents`
            numbers.
        decoder: A module that maps states `(batch, latents)` to the parameters of the likelihood at
            one time.
        likelihood: Turns the decoder's output into p(y_t | z_t).
        latent_dim: Number of entries of one state.
        length: Time steps T of a series, padding included.
        prior: The prior of the first state; standard normal by default.

    Raises:
        ValueError: If the length is below one, if the likelihood models missingness, or if
            transition and decoder do not fit the states; when called, if a series does not have the
            shape that the model gives.

    References:
        | Structured Inference Networks for Nonlinear State Space Models
          (Krishnan, Shalit & Sontag, 2017)
        | https://arxiv.org/abs/1609.09869
        | A New Approach to Linear Filtering and Prediction Problems (Kalman, 1960)
        | https://doi.org/10.1115/1.3662552

    Example:
        >>> from pyro_vae import likelihoods
        >>> from pyro_vae.models import NormalGiven
        >>> walk = NormalGiven(nn.Identity(), sigma=0.1)
        >>> model = SequentialVAE(walk, nn.Linear(2, 3), likelihoods.Gaussian(), 2, length=5)
        >>> model.sample(4).shape, model.decode(torch.zeros(7, 10)).shape
        (torch.Size([4, 5, 3]), torch.Size([7, 5, 3]))
    """

    def __init__(
        self,
        transition: nn.Module,
        decoder: nn.Module,
        likelihood: Likelihood,
        latent_dim: int,
        length: int,
        prior: Prior | None = None,
    ) -> None:
        super().__init__(decoder, likelihood)
        if length < 1:
            raise ValueError(
                f"`length` must be the number of time steps of a series, at least 1; got {length}"
            )
        if has_own_density(likelihood):
            raise ValueError(
                "the likelihood of a SequentialVAE must not model which entries are "
                "missing, because here nan also marks the padding after the end of a series; got "
                f"{type(likelihood).__name__}: pass a likelihood such as Gaussian()"
            )
        self.state_dim, self.length = latent_dim, length
        self.latent_dim = length * latent_dim
        self.transition = as_normal(transition)
        self.latent_prior = StandardNormal() if prior is None else prior
        found = latents_of(self.transition, self.zero.new_zeros(2, latent_dim))
        if found != latent_dim:
            raise ValueError(
                f"the transition must give {count_of(latent_dim, 'latent')}, as many as a state "
                f"has; got {found}: change the transition's last layer"
            )
        self._check_decoder(latent_dim)
        self.latent_prior.setup(self.zero.expand(latent_dim))

    def states(self, z: Float[Tensor, "*draws latents"]) -> Float[Tensor, "..."]:
        """Splits flat latents into the states of all times, `(*draws, length, latent_dim)`."""
        return z.unflatten(-1, (self.length, self.state_dim))

    def prior(self) -> Distribution:
        """Returns p(z_1); the event is a whole vector."""
        return self.latent_prior(self.zero.expand(self.state_dim))

    def latents(self, rows: int, *given: Tensor) -> Float[Tensor, "*particles rows latents"]:
        """Samples the states one after another, and returns them as flat vectors."""
        z: list[Tensor] = [pyro.sample("z_1", self.prior())]
        for time in range(2, self.length + 1):
            z.append(pyro.sample(f"z_{time}", given_latents(self.transition, z[-1])))
        return torch.cat(z, dim=-1)

    def conditional(self, z: Float[Tensor, "rows latents"], *given: Tensor) -> Distribution:
        """Returns p(y | z) for every series."""
        self.likelihood.check_given(given)
        output, more = self._decoded(z, given)
        flat = self.likelihood.distribution(output, *more)
        features = Unflattened(flat, (len(z), self.length))
        series = PartlyObserved(features, self.likelihood.fill(output))
        return series.to_event(len(series.batch_shape) - 1)

    def expectation(
        self, z: Float[Tensor, "rows latents"], *given: Tensor
    ) -> Float[Tensor, "rows *datum"]:
        """Returns the mean of p(y | z) for every series."""
        output, more = self._decoded(z, given)
        return self.likelihood.mean(output, *more).unflatten(0, (-1, self.length))

    def _decoded(self, z: Tensor, given: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Returns decoder outputs and further tensors, with a row for each time of each series."""
        for part in given:
            if part.shape[1:2] != (self.length,):
                raise ValueError(
                    "further inputs must have shape (batch, length, ...), with "
                    f"length={self.length}; got shape {tuple(part.shape)}"
                )
        more = tuple(part.flatten(0, 1) for part in given)
        return self.decoder(self.states(z).flatten(0, 1)), more

    def rows_of_decoder(self, y: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
        """Returns data and further tensors, with a row for each time of each series."""
        return tuple(part.flatten(0, 1) for part in (y, *given))

    def forecast(
        self, z: Float[Tensor, "*draws latents"], steps: int, *, seed: int | None = None
    ) -> Float[Tensor, "..."]:
        """Returns draws of the data at times T + 1, T + 2, ..., one for each draw of the states.

        T is the model's `length`. With draws from the posterior of a series,
        `guide.sample(y, num_samples)`, these are draws of the future given the past. For a series
        that ends before T, the states from its end up to T are already in `z`:
        `model.sample_data(z)` draws the data of these times.

        Arguments:
            z: Draws of the states, as flat vectors.
            steps: Number of time steps to forecast.
            seed: As in :meth:`sample`.

        Returns:
            `(*draws, steps, *features)`.
        """

        def future(z: Tensor) -> Tensor:
            state, data = self.states(z)[:, -1], []
            for _ in range(steps):
                state = self.transition(state).sample()
                data.append(self.likelihood(self.decoder(state)).sample())
            return torch.stack(data, dim=1)

        with forked_if(seed, "sample"):
            return self._by_rows(future, z, ())
