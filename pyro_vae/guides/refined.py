r"""Semi-amortized inference: a map's output, improved by a few optimization steps per datum.

With the model fixed, the ELBO of a datum is a function of its own parameters alone. The inner map
gives the first parameters, :math:`\lambda_0 = f_\phi(y_n)`. Steps that raise
:math:`\mathrm{ELBO}_n(\lambda)`, with the noise held fixed, lead from :math:`\lambda_0` to
:math:`\lambda_S`.

The model is trained at :math:`\lambda_S`, where the bound is tighter, by :math:`\nabla_\theta
\mathrm{ELBO}(\theta, \lambda_S)` with :math:`\lambda_S` held fixed. The inner map is trained as if
there were no steps, by the gradient :math:`g_0 = \nabla_\lambda \mathrm{ELBO}(\theta, \lambda_0)`.
To pass :math:`g_0` on to :math:`\phi`, a surrogate is added to the objective: :math:`g_0^\top
(\lambda_0 - \lceil \lambda_0 \rceil)`, where the brackets stop gradients. The surrogate's value is
zero, and its derivative is :math:`g_0^\top \partial \lambda_0 / \partial \phi`.

Gradients do not pass through the steps, so memory does not grow with the number of steps. In Kim et
al. (2018) gradients do pass through the steps, and :math:`\phi` follows the ELBO at
:math:`\lambda_S`.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .._types import Batch
from ..formatting import count_of
from ..programs import Program, evaluating
from ..programs.pieces import rows_within, slices, take_rows
from ..registry import registered
from .families import Family
from .maps import InferenceMap
from .row_fits import refine_parameters

_DRAWS_AT_ONCE = 16_384  # most rows (data times particles) per run; affects memory only


@registered()
class Refined(InferenceMap):
    r"""Semi-amortized map: another map's output, improved by a few optimization steps per datum.

    .. math:: \lambda_0 = \mathrm{map}(y_n), \qquad
        \lambda_{s+1} = \lambda_s + \text{a step that raises } \mathrm{ELBO}_n

    In evaluation mode every output is refined. The noise is the same for all rows and calls, so the
    result depends neither on the random stream nor on the rest of the batch. In training, the model
    gets the gradient of the ELBO at the refined parameters. The inner map gets the gradient of the
    ELBO at its own output. The steps and the inner map's gradient use the ELBO at full KL weight,
    with the model in evaluation mode. A step costs one gradient of the model's density at
    `num_particles` draws per datum.

    Arguments:
        map: The map to start from. A map that already belongs to a guide, such as a trained
            encoder, is shared with that guide and keeps its parameters.
        steps: Maximum number of steps per datum.
        num_particles: Draws per datum, shared by all steps. Fixed draws are slightly overfitted, so
            use more draws for more steps.
        in_training: Whether to refine in training as well as in evaluation; if false, outputs are
            refined in evaluation only.

    Raises:
        ValueError: If `steps` or `num_particles` is below 1, or if the size of the inner map's
            output does not fit the family.
        FloatingPointError: When called, if the ELBO at the inner map's output is not a number.

    References:
        | On the Challenges of Learning with Inference Networks on Sparse, High-dimensional Data
          (Krishnan, Liang & Hoffman, 2018)
        | https://arxiv.org/abs/1710.06085
        | Semi-Amortized Variational Autoencoders (Kim et al., 2018)
        | https://arxiv.org/abs/1802.02550

    Example:
        >>> from pyro_vae import Encoder, Guide, likelihoods, models, nets
        >>> model = models.VAE(nets.MLPDecoder(2, 4), likelihoods.Bernoulli(), latent_dim=2)
        >>> guide = Guide(model, Refined(Encoder(nets.MLPEncoder(4)), steps=5))
        >>> guide.mean(torch.zeros(3, 4)).shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        map: InferenceMap,
        steps: int = 10,
        num_particles: int = 16,
        *,
        in_training: bool = True,
    ) -> None:
        super().__init__()
        if steps < 1 or num_particles < 1:
            raise ValueError(
                f"`steps` and `num_particles` must be at least 1; got steps={steps} and "
                f"num_particles={num_particles}: for no steps, use the inner map without Refined"
            )
        self.map, self.steps, self.num_particles = map, steps, num_particles
        self.in_training = in_training
        self._surrogate: Tensor | None = None

    @property
    def per_row(self) -> bool:  # type: ignore[override]
        """Whether the inner map works only for the rows it was trained on."""
        return self.map.per_row

    @property
    def needs_unit_scale(self) -> bool:  # type: ignore[override]
        """Whether the inner map needs data of unit scale."""
        return self.map.needs_unit_scale

    def attach(self, program: Program, family: Family) -> None:
        """Stores the program and the family; passes them to an inner map that has no guide yet."""
        self._attached = (program, family)  # in a tuple: the model is not part of the map
        if not self.map.in_use:
            self.map.attach(program, family)

    def setup(self, num_parameters: int, initial: Float[Tensor, " parameters"]) -> None:
        """Sets up the inner map, unless another guide has done so."""
        self.num_parameters = num_parameters
        if not self.map.in_use:
            self.map.setup(num_parameters, initial)
            self.map.in_use = True

    def remember(self, *batch: Tensor) -> None:
        """Passes the whole data set to the inner map."""
        self.map.remember(*batch)

    def start_from(self, *batch: Tensor) -> None:
        """Passes some rows of the data set to the inner map."""
        self.map.start_from(*batch)

    def scale_steps(self, factor: float) -> None:
        """Passes the learning rate's factor to the inner map; refinement steps do not use it."""
        self.map.scale_steps(factor)

    def owns(self, leaf: Tensor) -> bool:
        """Whether the inner map itself updates this leaf of the loss's graph."""
        return self.map.owns(leaf)

    def surrogate(self) -> Float[Tensor, " batch"] | None:
        """Returns a term of value zero whose gradient trains the inner map.

        Returns `None` if the last call left no such term in either of the two maps.
        """
        terms = [term for term in (self._surrogate, self.map.surrogate()) if term is not None]
        self._surrogate = None
        return sum(terms[1:], terms[0]) if terms else None

    def forward(self, batch: Batch, rows: Int[Tensor, " batch"] | None) -> Tensor:
        """Returns the refined parameters of a batch, for a model without global sites."""
        return self.infer(self._attached[0], batch, rows)

    def infer(self, program: Program, batch: Batch, rows: Int[Tensor, " batch"] | None) -> Tensor:
        """Returns the refined parameters of a batch, given values of the global sites.

        In training mode the parameters are refined only if `in_training` is true.
        """
        self._surrogate = None  # may be left by an earlier call
        start = self._inner_output(program, batch, rows)
        if self.training and not self.in_training:
            return start
        family = self._attached[1]
        if self.training and torch.is_grad_enabled() and start.requires_grad:
            gradient = _gradient(program, family, batch, start, self.num_particles)
            self._surrogate = (gradient * (start - start.detach())).sum(dim=-1)
        return self._refined(program, batch, start.detach())

    def _refined(self, program: Program, batch: Batch, start: Tensor) -> Tensor:
        """Refines the parameters `start` of all rows, some rows at a time to save memory."""
        size = rows_within(batch, _DRAWS_AT_ONCE) // self.num_particles
        family = self._attached[1]
        refined = [
            refine_parameters(
                program,
                family,
                take_rows(batch, rows),
                start[rows],
                self.steps,
                num_particles=self.num_particles,
                first=rows.start,
            )
            for rows in slices(len(start), size)
        ]
        return torch.cat(refined)

    def _inner_output(self, program: Program, batch: Batch, rows: Tensor | None) -> Tensor:
        """Returns the inner map's output; refuses an output whose size does not fit the family."""
        start = self.map.infer(program, batch, rows)
        if start.shape[-1] != self.num_parameters:
            raise ValueError(
                f"the family needs {count_of(self.num_parameters, 'parameter')} per datum, but the "
                f"{type(self.map).__name__} inside Refined was set up for a guide with another "
                f"family, and gives {count_of(start.shape[-1], 'parameter')}: use the same family "
                "for both guides, or create another map"
            )
        return start

    def __getstate__(self) -> dict[str, object]:
        """The map's state for copying or pickling, without the surrogate term of the last call."""
        return {**self.__dict__, "_surrogate": None}


def _gradient(
    program: Program, family: Family, batch: Batch, start: Tensor, num_particles: int
) -> Tensor:
    """Estimates the gradient of every datum's ELBO at the parameters `start`, from fresh draws."""
    leaf = start.detach().requires_grad_()
    with evaluating(program.model):
        q = family(leaf)
        z = q.rsample(torch.Size((num_particles,)))
        elbo = (program.log_joint(z, *batch) - q.log_prob(z)).mean(dim=0)
    (gradient,) = torch.autograd.grad(elbo.sum(), leaf)
    return gradient
