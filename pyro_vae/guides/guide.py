"""The guide: a Pyro program built from a family and a map that gives the family's parameters."""

from collections.abc import Callable, Mapping
from typing import TypeGuard

import pyro
import torch
from jaxtyping import Float
from torch import Tensor, nn

from .._types import Batch, Data, Distribution, ProgramLike
from ..programs import Program, as_batch, evaluating
from ..programs.copies import copied
from ..programs.modes import NamedModule, require_arrays
from ..programs.pieces import take_rows
from ..programs.plates import current_minibatch
from ..randomness import forked, forked_if
from .families import DiagonalNormal, Family, TrainableFamily
from .maps import InferenceMap, LocalParameters
from .optimization import FitRows
from .posteriors import FamilyPosterior
from .refined import Refined
from .row_fits import RowFit, fit_parameters
from .shared import GlobalPosterior, values_of
from .sites import Plates, Point, rows_apart


class Guide(NamedModule):
    r"""An approximate posterior :math:`q(z_n \mid \lambda_n)`, with :math:`\lambda_n` from a map.

    A guide is a Pyro program: `guide(*batch)` samples the model's latent sites, inside the model's
    plate over data. The family is a distribution over one flat unconstrained vector per datum. Each
    latent site of the model is a part of this vector.

    Arguments:
        model: The Pyro program whose latent sites the guide samples.
        map: The object that gives the family's parameters, such as `Encoder`, `LocalParameters` or
            `GlobalParameters`. A map belongs to one guide.
        family: The family; by default a mean-field Gaussian.
        global_family: The family for the global latent sites, if the program has any; by default a
            mean-field Gaussian.
        example: A few rows of data, on which the program is run to find its latent sites. Not
            needed for the models of `pv.models`, which have example rows.
        plate: Name of the model's plate over data; needed only if several plates could be meant.

    Raises:
        ValueError: If the program does not have exactly one plate over data, or has a latent site
            that is neither global nor inside this plate, or if the map already belongs to a guide.

    References:
        | Auto-Encoding Variational Bayes (Kingma & Welling, 2014)
        | https://arxiv.org/abs/1312.6114
        | Amortized Variational Inference: When and Why? (Margossian & Blei, 2024)
        | https://arxiv.org/abs/2307.11018

    Example:
        >>> import pyro.distributions as dist
        >>> def model(y):
        ...     with pyro.plate("data", len(y)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        ...         pyro.sample("y", dist.Normal(z, 1.0).to_event(1), obs=y)
        >>> from pyro_vae import Encoder
        >>> guide = Guide(model, Encoder(torch.nn.Linear(1, 2)), example=torch.zeros(1, 1))
        >>> guide.mean(torch.zeros(5, 1)).shape
        torch.Size([5, 1])
    """

    map: InferenceMap
    row_fit: RowFit | None = None
    shared: GlobalPosterior | None

    def __init__(
        self,
        model: ProgramLike,
        map: InferenceMap,
        family: Family | None = None,
        *,
        global_family: Family | None = None,
        example: Data | None = None,
        plate: str | None = None,
    ) -> None:
        super().__init__()
        self.program = Program(model, *(() if example is None else as_batch(example)), plate=plate)
        self.family = DiagonalNormal() if family is None else family
        self.shared = None
        parts = (map, family, global_family)
        owned = [part for part in parts if isinstance(part, InferenceMap | TrainableFamily)]
        unused = [part for part in owned if not part.in_use]
        try:
            self._take_family(self.family, self.latent_dim)
            self._take_map(map)
            if self.program.global_sites:
                shared = DiagonalNormal() if global_family is None else global_family
                self._take_family(shared, self.program.global_dim)
                self.shared = GlobalPosterior(self.program, shared)
        except BaseException:  # another guide can still be built from these parts
            for part in unused:
                part.in_use = False
            raise

    def start_from(self, *batch: Tensor) -> None:
        """Adapts an untrained map to some rows of the data.

        If global sites have wide priors, their q is adapted, too.
        """
        self.map.start_from(*batch)
        if self.shared is not None:
            self.shared.start_from(self.program, *batch)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Guide":  # noqa: FBT001, FBT002  (torch's signature)
        """Moves or casts the guide, but not the model; called by torch."""
        super()._apply(fn, recurse)
        self.program.moved(fn)
        return self

    @property
    def latent_dim(self) -> int:
        """Number of entries in the flat latent vector of one datum."""
        return self.program.latent_dim

    @property
    def needs_unit_scale(self) -> bool:
        """Whether training the map may fail if columns of the data are far from unit scale."""
        return self.map.needs_unit_scale

    @property
    def model(self) -> ProgramLike:
        """The program that this guide was made for."""
        return self.program.model

    def _take_map(self, map: InferenceMap) -> None:
        """Attaches a map to this guide, and creates the map's parameters."""
        _claim(map)
        map.attach(self.program, self.family)
        map.setup(self.family.num_parameters(self.latent_dim), self.prior_parameters())
        self.map = map

    def _take_family(self, family: Family, latent_dim: int) -> None:
        """Creates a family's shared parameters, unless the family is a copy that has them."""
        if isinstance(family, TrainableFamily):
            _claim(family)
            if not family.latent_dim:
                family.setup(latent_dim)
            family.to(device=self.program.device, dtype=self.program.dtype)
        elif isinstance(family, nn.Module):
            raise TypeError(
                f"{type(family).__name__} is a module, so all data share its parameters: derive "
                "the class from pv.guides.TrainableFamily, and create the parameters in its "
                "method setup(latent_dim)"
            )

    def prior_parameters(self) -> Float[Tensor, " parameters"]:
        """Parameters for which q is close to N(0, I), with the model's dtype and device."""
        program = self.program
        return self.family.initial(
            torch.zeros(self.latent_dim, dtype=program.dtype, device=program.device)
        )

    def parameters_of(
        self,
        *batch: Tensor,
        rows: Tensor | None = None,
        given: Mapping[str, Tensor] | None = None,
    ) -> Float[Tensor, "batch parameters"]:
        """The family's parameters for a batch, in the guide's current mode (train or eval).

        Arguments:
            batch: The tensors that the guide is called with.
            rows: Positions of the batch's rows in the data set; not needed inside `pv.minibatch`.
            given: Values of the global latent sites, for a map that uses the model; by default the
                mean of their posterior. These values get no gradient.
        """
        if self.latent_dim == 0:  # all local sites are discrete, so no network is called
            return torch.zeros_like(self.prior_parameters()).expand(len(batch[0]), -1)
        current = current_minibatch()
        rows = rows if current is None else current.rows
        if rows is not None and len(rows) != len(batch[0]) and not self.map.per_row:
            rows = None  # the batch is not the minibatch; only a table needs to refuse it
        program = self.program
        if self.shared is not None or given:
            values = self.global_values() if given is None else given
            program = program.given({name: value.detach() for name, value in values.items()})
        return self.map.infer(program, batch, rows)

    def forward(self, *batch: Tensor) -> None:
        """Samples the model's latent sites; this is the guide as a Pyro program."""
        require_arrays(batch)
        self._refuse_tracing()
        self.program.refuse_enumeration()
        plates, current = Plates(), current_minibatch()
        if current is not None:  # its plate must be known by name before any site is sampled
            current.plate = current.plate or self.program.structure.plate
        shared = {} if self.shared is None else self.shared.sample_sites(self.program, plates)
        plate, rows, batch = self._take(batch)
        if not self.program.latent_sites:
            return
        if shared is None:
            self._refuse_particles()
        parameters = self.parameters_of(*batch, rows=rows, given=shared)
        # The plate may be left of inner plates: (batch, P) -> (batch, 1, ..., 1, P)
        ones = (1,) * (-self.program.plate_dim - 1)
        posterior = self.family(parameters.reshape(len(parameters), *ones, -1))
        surrogate = self.map.surrogate()
        with plate:
            if surrogate is not None:
                # A factor in a guide counts as part of log q, so the ELBO subtracts it.
                pyro.factor("_surrogate", -surrogate.reshape(-1, *ones), has_rsample=True)
            sites = self.program.latent_sites
            if len(sites) == 1 and sites[0].is_plain_vector:
                # Sampled directly, so that objectives with analytic KL terms recognize it.
                pyro.sample(sites[0].name, posterior)
            else:
                self._sample_sites(posterior, plates)

    def _refuse_tracing(self) -> None:
        """Refuses Pyro's JIT for a map that uses the model, or selects rows of a table."""
        if torch.jit.is_tracing() and (self.map.per_row or self._uses_model):  # type: ignore[attr-defined]
            raise ValueError(
                f"Pyro's JIT cannot trace {type(self.map).__name__}, which selects or "
                "computes the parameters of the rows anew in every call: use the objective without "
                "Jit in its name, such as Trace_ELBO() instead of JitTrace_ELBO()"
            )

    @property
    def _uses_model(self) -> bool:
        """Whether the map computes the parameters from the model, and so has its own `infer`."""
        return type(self.map).infer is not InferenceMap.infer

    def _refuse_particles(self) -> None:
        """Refuses vectorized particles for a map that needs a single draw of the global sites."""
        if self._uses_model:
            raise ValueError(
                f"{type(self.map).__name__} computes q(z_n) at one draw of the global latent "
                "sites, but vectorize_particles=True gives it several at once: pass "
                "vectorize_particles=False"
            )

    def _take(self, batch: Batch) -> tuple[pyro.plate, Tensor | None, Batch]:
        """Returns the model's plate over data, the positions of the rows to use, and these rows.

        If the plate subsamples, the guide chooses the rows, as Pyro requires, and the model then
        uses the chosen rows. The positions are `None` if the guide was called with all rows.
        """
        current, structure = current_minibatch(), self.program.structure
        plate = pyro.plate(
            structure.plate, *structure.sizes(len(batch[0])), dim=structure.plate_dim
        )
        if current is not None:
            return plate, current.rows, batch
        if not structure.takes_all_data:
            return plate, None, batch
        rows: Tensor = plate.indices
        return plate, rows, take_rows(batch, rows)

    def _sample_sites(self, posterior: Distribution, plates: Plates) -> None:
        """Draws the flat latent vector, and splits the vector among the latent sites."""
        flat = pyro.sample("_latent", posterior, infer={"is_auxiliary": True})
        ahead, dims = flat.shape[: self.program.plate_dim - 1], -self.program.plate_dim
        flat = flat.reshape(-1, self.latent_dim)
        for site, part in zip(self.program.latent_sites, self.program.split(flat), strict=True):
            value, log_jacobian = site.constrain(part)
            value = rows_apart(value, site.axis, ahead, dims + site.event_dim)
            log_jacobian = rows_apart(log_jacobian, site.axis, ahead, dims)
            point = Point(value, log_density=-log_jacobian, event_dim=site.event_dim)
            with plates.open(site.plates):
                pyro.sample(site.name, point)

    def posterior(
        self, *batch: Tensor, given: Mapping[str, Tensor] | None = None
    ) -> FamilyPosterior:
        """The posterior of a batch, with methods for draws, means and log densities.

        If the map uses the model, the model's global sites have the `given` values, by default the
        mean of their posterior.
        """
        return FamilyPosterior(self.family, self.parameters_of(*batch, given=given))

    def sample(
        self, data: Data, num_samples: int = 1, *, seed: int | None = None
    ) -> Float[Tensor, "samples batch latents"]:
        """Returns draws from q(z_n) for every datum.

        Arguments:
            data: The batch tensor, or a tuple of batch tensors.
            num_samples: Draws per datum.
            seed: With a seed, every call gives the same draws and leaves the caller's random stream
                alone; without a seed the draws come from the caller's stream.

        Returns:
            Flat unconstrained latents, `(samples, batch, latents)`.
        """
        posterior = self._evaluated(data)
        with forked_if(seed, "guide.sample"):
            return posterior.draw(num_samples)[0].detach()

    def mean(self, data: Data) -> Float[Tensor, "batch latents"]:
        """Mean of q(z_n) for every datum: the deterministic embedding, `(batch, latents)`."""
        return self._evaluated(data).mean().detach()

    def _evaluated(self, data: Data, given: Mapping[str, Tensor] | None = None) -> FamilyPosterior:
        """The posterior of the data in evaluation mode, without gradients."""
        with evaluating(self, self.model), torch.no_grad():
            return self.posterior(*as_batch(data, self.program.device), given=given)

    def global_values(self) -> dict[str, Tensor]:
        """Values of the global latent sites, at the mean of their posterior.

        The mean is taken over unconstrained values. Evidence, bounds and embeddings are conditional
        on the returned values unless other values are passed.
        """
        if self.shared is None:
            return {}
        with evaluating(self, self.model), torch.no_grad():
            return values_of(self.program, self.shared.mean().detach().clone())

    def sample_globals(self, num_samples: int, *, seed: int = 0) -> list[dict[str, Tensor]]:
        """Returns draws of the global latent sites.

        To condition evidence or a bound on one of these draws, pass the draw as `given`.

        Arguments:
            num_samples: Number of draws.
            seed: Seed of the draws; the caller's random stream is left alone.

        Returns:
            For every draw a mapping from site name to value; the mappings are empty if the model
            has no global sites.
        """
        if self.shared is None:
            return [{} for _ in range(num_samples)]
        with forked(seed, "globals"), evaluating(self, self.model):
            return [draw.values for draw in self.shared.draw(self.program, num_samples)]

    def fit_rows(
        self,
        data: Data,
        fitting: FitRows | None = None,
        *,
        given: Mapping[str, Tensor] | None = None,
        seed: int = 0,
        progress: bool | None = None,
    ) -> "Guide":
        r"""Fits parameters of q for every datum separately, with the model and the family fixed.

        .. math:: \lambda_n^\star = \arg\max_\lambda \mathrm{ELBO}_n(q_\lambda)

        Use this for data that are not in a `LocalParameters` table, or to compare an encoder with
        the optimum of its family. The fit starts at the map's output, or near the prior if the map
        has no output for these data.

        Arguments:
            data: The batch tensor, or a tuple of batch tensors.
            fitting: How to optimize; see :class:`FitRows`.
            given: Values of the global latent sites; by default the mean of their posterior.
            seed: Seed of the draws; the caller's random stream is left alone.
            progress: Whether to show a progress bar; by default on terminals and in notebooks.

        Returns:
            A new guide for these data and this model, with `LocalParameters`. The attribute
            `row_fit` of the new guide is a :class:`pyro_vae.guides.RowFit`: for every row the ELBO,
            the standard error of the ELBO, and whether the row converged.
        """
        batch = as_batch(data, self.program.device)
        if given is not None:
            program = self.program.given_valid(given)
        else:  # Without a closed form, the mean of the global posterior is estimated from draws.
            with forked(seed, "fit_rows.globals"):
                program = self.program.given(self.global_values(), "the mean of their posterior")
        start = self._start(batch, given)
        how = fitting or FitRows()
        fit = fit_parameters(program, self.family, batch, start, how, seed=seed, progress=progress)
        rows = LocalParameters(len(start))
        guide = self._with(rows)
        rows.fill(fit.parameters)
        rows.remember(*batch)
        guide.row_fit = fit
        return guide.eval()

    def extended(
        self,
        data: Data,
        fitting: FitRows | None = None,
        *,
        given: Mapping[str, Tensor] | None = None,
        seed: int = 0,
        progress: bool | None = None,
    ) -> "Guide":
        r"""Adds rows to a trained `LocalParameters` table, and fits them with the model fixed.

        The old rows' parameters and optimizer state are copied exactly, so training can continue on
        all rows together.

        Arguments:
            data: The new rows, a tensor or a tuple of tensors.
            fitting: How to optimize; see :class:`FitRows`.
            given: Values of the global latent sites; by default the mean of their posterior.
            seed: Seed of the draws; the caller's random stream is left alone.
            progress: Whether to show a progress bar; by default on terminals and in notebooks.

        Returns:
            A new guide for the old rows followed by the new ones. The guide's `row_fit` is the
            result for the new rows.

        Raises:
            TypeError: If the map is not a `LocalParameters` table.

        Example:
            >>> from pyro_vae import likelihoods, models
            >>> model = models.VAE(torch.nn.Linear(1, 2), likelihoods.Gaussian(), latent_dim=1)
            >>> guide = Guide(model, LocalParameters(3)).fit_rows(torch.zeros(3, 2))
            >>> guide.extended(torch.ones(2, 2)).map.num_data
            5
        """
        if not isinstance(self.map, LocalParameters):
            fits = "fit a guide to the new data with guide.fit_rows(y)"
            remedy = fits if self.map.per_row else "call this guide with the new data directly"
            raise TypeError(
                "only a guide with pv.LocalParameters, a table of free parameters, can be "
                f"extended; got a guide with {type(self.map).__name__}: {remedy}"
            )
        new = self.fit_rows(data, fitting, given=given, seed=seed, progress=progress)
        assert isinstance(new.map, LocalParameters)
        rows = self.map.blank(self.map.num_data + new.map.num_data)
        guide = self._with(rows)
        rows.take(self.map, new.map)
        guide.row_fit = new.row_fit
        return guide.eval()

    def refined(self, steps: int = 10, num_particles: int = 16) -> "Guide":
        """Copies the guide; the copy refines the map's output by a few optimization steps.

        Arguments:
            steps: Maximum number of steps per datum; see :class:`Refined`.
            num_particles: Draws per datum, shared by all steps.

        Returns:
            A new guide for this model, with a :class:`Refined` map around this guide's map. The two
            guides share the inner map; trained parameters of the family and of the global sites are
            copied.
        """
        guide = self._with(Refined(self.map, steps, num_particles))
        guide.training = guide.map.training = False  # the net is shared: its mode must stay
        return guide

    def _with(self, map: InferenceMap) -> "Guide":
        """Builds a guide for this model with another map, and copies of the other parts."""
        guide = Guide.__new__(Guide)
        NamedModule.__init__(guide)
        guide.program = self.program
        guide.family = copy_of(self.family)
        guide._take_map(map)
        guide.shared = copied(self.shared, {})
        return guide

    def _start(self, batch: Batch, given: Mapping[str, Tensor] | None) -> Tensor:
        """Parameters at which `fit_rows` starts.

        These are the map's output, unless the map is tied to its training rows; in that case they
        are parameters for which q is close to the prior.
        """
        if not self.map.per_row:
            return self._evaluated(batch, given).parameters
        return self.prior_parameters().to(batch[0].device).repeat(len(batch[0]), 1)


def is_made_of_map(guide: ProgramLike) -> TypeGuard[Guide]:
    """Whether a guide's class is `Guide` itself; if so, model, map and families determine q."""
    return type(guide) is Guide


def copy_of(family: Family) -> Family:
    """Returns the family for use in another guide, with copies of any shared parameters."""
    if not isinstance(family, TrainableFamily):
        return family
    made = copied(family, {})
    made.in_use = False
    return made


def _claim(part: InferenceMap | TrainableFamily) -> None:
    """Marks a map or a family as used by a guide; raises an error if a guide already uses it."""
    if part.in_use:
        raise ValueError(
            f"this {type(part).__name__} already belongs to a guide, and holds that guide's "
            "parameters: create another object of this class, or copy this object with "
            "copy.deepcopy before you build the first guide"
        )
    part.in_use = True
