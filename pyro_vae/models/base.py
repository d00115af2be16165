"""The base of the generative models: running, sampling, decoding and checks."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Annotated, Any

import pyro
import torch
from jaxtyping import Float
from pyro import poutine
from torch import Tensor, nn

from .._annotations import Interval
from .._arguments import shown
from .._types import Distribution
from ..formatting import count_of
from ..likelihoods import DecodedSigma, LearnedSigma, Likelihood
from ..nets import Concatenated
from ..nets.inputs import require_tensor
from ..nets.scaling import OutputScale, forget_units, scale_of, standard_of
from ..programs import evaluating
from ..programs.missing import sample_missing
from ..programs.modes import NamedModule
from ..programs.pieces import in_pieces
from ..randomness import forked_if
from ..registry import is_registered
from .priors import Unflattened

_ROWS_AT_ONCE = 4096  # rows decoded at a time; affects memory only


class Generative(NamedModule):
    """A Pyro program that has one plate over data, and can also generate data.

    A subclass defines how the latents of a datum are sampled (:meth:`latents`), and the
    distribution of a datum given its latents (:meth:`conditional`, :meth:`expectation`). The
    latents of a datum are always one flat vector, all sites concatenated in the order in which they
    are sampled: `model.decode(z)` takes what `guide.sample(y)` returns.
    """

    zero: Tensor
    latent_dim: int

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self.register_buffer("zero", torch.zeros((), dtype=like.dtype, device=like.device))

    def latents(self, rows: int, *given: Tensor) -> Float[Tensor, "*particles rows latents"]:
        """Samples the latent sites inside the plate over data; returns one flat vector per row."""
        raise NotImplementedError

    def conditional(self, z: Float[Tensor, "rows latents"], *given: Tensor) -> Distribution:
        """Returns p(y | z) for every row; the event is a whole datum."""
        raise NotImplementedError

    def expectation(
        self, z: Float[Tensor, "rows latents"], *given: Tensor
    ) -> Float[Tensor, "rows *datum"]:
        """Returns the mean of p(y | z) for every row."""
        raise NotImplementedError

    def prototype(self) -> Any:
        """Returns two rows shaped like data: the means of p(y | z) at z = 0.

        The result is a tuple if the model takes further tensors besides the data.
        """
        return self.decode(self.zero.new_zeros(2, self.latent_dim))

    def forward(self, y: Float[Tensor, "batch *datum"], *given: Tensor) -> Tensor:
        """Runs the program on data, and returns the latents as flat vectors."""
        with pyro.plate("data", len(y)):
            z = self.latents(len(y), *given)
            conditional = self._given_particles(z, *given)
            if y.shape[1:] != conditional.event_shape:
                raise ValueError(
                    "each row of the data must have the shape that the decoder gives, "
                    f"{tuple(conditional.event_shape)}; got shape {tuple(y.shape[1:])} in "
                    f"{count_of(len(y), 'row')}: change the size of the decoder's last layer, or "
                    "reshape the data"
                )
            pyro.sample("y", conditional, obs=y)
        return z

    def _given_particles(self, z: Tensor, *given: Tensor) -> Distribution:
        """Returns p(y | z); z has further dimensions on the left if Pyro vectorizes particles.

        Decoders and likelihoods only take rows, so the draws of all particles are passed to them
        as the rows of one batch.
        """
        if z.dim() == 2:
            return self.conditional(z, *given)
        shape = z.shape[:-1]
        last = len(shape) - 1
        rows = (part.expand(*shape, *part.shape[1:]).flatten(0, last) for part in given)
        return Unflattened(self.conditional(z.flatten(0, last), *rows), shape)

    def decode(self, z: Float[Tensor, "*draws latents"], *given: Tensor) -> Float[Tensor, "..."]:
        """Returns the mean of p(y | z) without a gradient; z may have any leading dimensions.

        Every tensor in `given` must have `z.shape[-2]` rows.
        """
        return self._by_rows(self.expectation, z, given)

    def sample(
        self,
        num_samples: Annotated[int, Interval(0)],
        *given: Tensor,
        seed: int | None = None,
    ) -> Float[Tensor, "draws *datum"]:
        """Samples p(y): draws z from the prior, and then y from p(y | z).

        Arguments:
            num_samples: Number of draws.
            given: Further inputs of the program besides the data, one row per draw.
            seed: With a seed the draws are the same every time, and torch's global random state is
                unchanged. Without a seed the draws come from that state.
        """
        with forked_if(seed, "sample"):
            return self.sample_data(self.sample_latents(num_samples, *given), *given)

    def sample_latents(
        self, num_samples: Annotated[int, Interval(0)], *given: Tensor
    ) -> Float[Tensor, "draws latents"]:
        """Returns draws from the prior as flat vectors, without a gradient."""
        if num_samples == 0:
            return self.zero.new_zeros(0, self.latent_dim)
        plate = pyro.plate("data", num_samples)
        with evaluating(self), torch.no_grad(), poutine.block(), plate:
            return self.latents(num_samples, *given)

    def sample_data(
        self, z: Float[Tensor, "*draws latents"], *given: Tensor
    ) -> Float[Tensor, "..."]:
        """Returns one draw from p(y | z) for each z."""
        return self._by_rows(lambda *rows: self.conditional(*rows).sample(), z, given)

    def sample_missing(
        self, z: Float[Tensor, "*draws latents"], *given: Tensor
    ) -> Float[Tensor, "..."]:
        """Returns one draw of a datum for each z, from which missing entries can be filled.

        If the model has a likelihood of missingness (:class:`pyro_vae.likelihoods.SelfMasking`),
        every entry is drawn as if it were missing. Otherwise the draw is from p(y | z).
        """

        def draws(*rows: Tensor) -> Tensor:
            conditional = self.conditional(*rows)
            missing = sample_missing(conditional)
            return conditional.sample() if missing is None else missing

        return self._by_rows(draws, z, given)

    def _by_rows(
        self, answer: Callable[..., Tensor], z: Tensor, given: tuple[Tensor, ...]
    ) -> Tensor:
        """Applies a function of the latents to blocks of rows, without a gradient.

        If there are no rows, an empty block gives the shape of the result.
        """
        _check_latents(z, self.latent_dim, self.zero.dtype)
        draws = z.shape[:-1]
        _check_rows_given(given, draws)
        rows = [z.reshape(-1, z.shape[-1])]
        rows += [part.expand(*draws, *part.shape[1:]).flatten(0, len(draws) - 1) for part in given]
        with evaluating(self), torch.no_grad():
            flat = torch.cat([answer(*part) for part in in_pieces(_ROWS_AT_ONCE, *rows)])
        return flat.view(*draws, *flat.shape[1:])

    def check(self, y: Tensor, names: tuple[str, ...] | None = None) -> None:
        """Refuses data outside the model's support; the message says what to do."""
        if y.dtype != self.zero.dtype:
            other = f", or the model with model.to({y.dtype})" if y.is_floating_point() else ""
            raise ValueError(
                f"the data have dtype {y.dtype}, but the model has dtype {self.zero.dtype}: "
                f"convert the data with torch.as_tensor(y).to({self.zero.dtype}){other}"
            )


def _check_latents(z: object, latents: int, dtype: torch.dtype) -> None:
    """Refuses tensors that cannot be latents of the model; names the first row with nan or inf."""
    expected = f"`z` must be a tensor of {dtype} and shape (..., {latents}); got {shown(z)}"
    if not isinstance(z, Tensor) or z.dtype != dtype:
        raise TypeError(f"{expected}: pass torch.as_tensor(z, dtype={dtype})")
    if z.shape[-1:] != (latents,):
        raise ValueError(f"{expected}: pass all latents of a datum, as guide.mean(y) gives them")
    bad = ~z.isfinite().all(dim=-1)
    if bool(bad.any()):
        place = ", ".join(str(index) for index in bad.nonzero()[0].tolist())
        raise ValueError(
            f"`z` must be finite; got nan or infinity in {int(bad.sum())} of "
            f"{count_of(bad.numel(), 'row')} (first in z[{place or '...'}]): leave out these rows, "
            "or check how they were computed"
        )


def _check_rows_given(given: tuple[Tensor, ...], draws: Sequence[int]) -> None:
    """Refuses further inputs that do not have one row for each row of the latents."""
    for part in given:
        if not isinstance(part, Tensor) or part.shape[:1] != tuple(draws[-1:]) or not draws:
            raise ValueError(
                "every further input must be a tensor with one row for each row of `z`, whose "
                f"shape is ({', '.join([*map(str, draws), 'latents'])}); got {shown(part)}: pass "
                "`z` and the further inputs for the same rows"
            )


class Decoded(Generative):
    """A generative model that consists of a prior, a decoder and a likelihood."""

    def __init__(self, decoder: nn.Module, likelihood: Likelihood) -> None:
        super().__init__(next(decoder.parameters(), torch.zeros(())))
        self.decoder, self.likelihood = decoder, likelihood

    def _check_decoder(self, latents: int) -> None:
        """Decodes two rows as a check; refuses a decoder that cannot decode z of the given size."""

        def look(decoder: nn.Module, _: object, outputs: object) -> None:
            require_tensor(outputs, "decoder", decoder)

        is_script = isinstance(self.decoder, torch.jit.ScriptModule)  # cannot have a hook
        try:
            with nullcontext() if is_script else self.decoder.register_forward_hook(look):
                rows = self.prototype()
        except (RuntimeError, ValueError, IndexError) as error:
            raise ValueError(
                f"the decoder cannot decode z of shape (2, {latents}): {error}"
            ) from error
        y = rows[0] if isinstance(rows, tuple) else rows
        self.likelihood.check_learned(tuple(y.shape[1:]))

    def _decoded(self, z: Tensor, given: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Returns the decoder's outputs, and those further tensors that the likelihood takes."""
        return self.decoder(z), given

    def conditional(self, z: Float[Tensor, "rows latents"], *given: Tensor) -> Distribution:
        """Returns p(y | z) for every row; the event is a whole datum."""
        output, more = self._decoded(z, given)
        return self.likelihood(output, *more)

    def expectation(
        self, z: Float[Tensor, "rows latents"], *given: Tensor
    ) -> Float[Tensor, "rows *datum"]:
        """Returns the mean of p(y | z) for every row."""
        output, more = self._decoded(z, given)
        return self.likelihood.mean(output, *more)

    def start_from(self, y: Float[Tensor, "batch *datum"], *given: Tensor) -> None:
        """Sets the scales of the decoder's outputs and of learned noise, from some rows of data.

        Called before training. If the data are far from unit scale, the decoder's outputs start at
        the data's means, and the unit of the outputs becomes the data's standard deviation. A step
        of training then changes the outputs about as much as it would for standardized data. Only
        decoders of `pv.nets` are changed, and only if they were neither trained nor loaded.
        Decoders and likelihoods of your own classes are left unchanged.
        """
        scale = self.output_scale
        if scale is None or not (scale.is_fresh or scale.own_bias is not None):
            return
        y, *more = self.rows_of_decoder(y, *given)
        found = standard_of(y)
        if found is not None:
            scale.start(*self.likelihood.start_units(y, found.spread, *more))
            self.likelihood.warn_of_floor(found.spread)
        elif scale.shift is not None:  # set from other data, before any step of training
            scale.forget()
            for part in self.likelihood.modules():
                if isinstance(part, LearnedSigma | DecodedSigma):
                    part.set_unit(None)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        if any(key.startswith(f"{prefix}decoder.") for key in state_dict):
            forget_units(self, state_dict, prefix)  # a decoded sigma belongs to the decoder
        super()._load_from_state_dict(state_dict, prefix, *args)

    @property
    def needs_unit_scale(self) -> bool:
        """Whether training may fail if columns of the data are far from unit scale."""
        return self.output_scale is None or self.output_scale.shift is None

    @property
    def output_scale(self) -> OutputScale | None:
        """The scale of the decoder's outputs; `None` if the outputs cannot be rescaled.

        They cannot be rescaled if the model, the likelihood or the decoder is an instance of a
        user's own class, or if the likelihood requires standardized data.
        """
        decoder = self.decoder
        while isinstance(decoder, Concatenated):
            decoder = decoder.net
        ours = all(is_registered(type(part)) for part in (self, self.likelihood, decoder))
        found = scale_of(decoder) if ours else None
        return found if isinstance(found, OutputScale) and self.likelihood.any_units else None

    def rows_of_decoder(self, y: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
        """Returns the data and the likelihood's further tensors.

        They have one row for each row of the decoder's output.
        """
        return y, *given

    def check(self, y: Tensor, names: tuple[str, ...] | None = None) -> None:
        """Refuses data outside the likelihood's support; the message says what to do."""
        super().check(y, names)
        self.likelihood.check(y, names)
