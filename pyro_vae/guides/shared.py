r"""The posterior of global latent sites.

For a program with global sites :math:`\beta` and local sites :math:`z_n`, the guide is
:math:`q(\beta) \prod_n q(z_n \mid \lambda_n)`. The ELBO, estimated from a batch of :math:`B` of the
:math:`N` rows, is

.. math:: \frac{N}{B} \sum_b \mathbb{E}_q \left[\log \frac{p(y_b, z_b \mid \beta)}{q(z_b)}\right]
    - \mathrm{KL}(q(\beta) \,\|\, p(\beta))
"""

from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions.transforms import AffineTransform

from .._types import Batch, Distribution
from ..programs import Program
from ..programs.traces import repeat_rows
from .families import Family
from .posteriors import mean_of
from .sites import Plates, Point, ahead_of_plates, has_particles

_WIDE = 4.0  # priors with a larger spread are wide: optimizer steps suit numbers of unit size
_ROWS, _DRAWS, _STEPS = 100, 32, 50  # of the search for a start, which takes some 0.1 seconds
_FIRST_SCALE = 0.1  # as in Pyro's automatic guides; narrow, so that draws stay near the center


class GlobalDraw(NamedTuple):
    """One draw of the global latent sites: their values, and the log density under the guide."""

    values: dict[str, Tensor]
    log_guide: Tensor

    @classmethod
    def of(cls, program: Program, q: Distribution, flat: Tensor) -> "GlobalDraw":
        """Builds the draw from a flat unconstrained vector and its distribution `q`."""
        sites = program.constrain_globals(flat)
        log_jacobian = torch.stack([jacobian.sum() for _, jacobian in sites.values()]).sum()
        values = {name: value for name, (value, _) in sites.items()}
        return cls(values, q.log_prob(flat) - log_jacobian)


class GlobalPosterior(nn.Module):
    """The posterior of a program's global sites: a family over their flat vector.

    If the prior of a site is wide, optimizer steps of the usual size are too small. The location of
    q is then the sum of two parameters, `value` and `far`, and `far` is in units of the prior's
    spread. Before training, :meth:`start_from` sets `far` near the maximum of the evidence.

    Arguments:
        program: The program; the posterior starts near the median of its prior.
        family: The family of the distribution.
    """

    unit: Tensor

    def __init__(self, program: Program, family: Family) -> None:
        super().__init__()
        self.family = family
        structure = program.structure
        self.value = nn.Parameter(family.initial(structure.global_start, _FIRST_SCALE))
        wide = structure.global_spread > _WIDE
        self.far = nn.Parameter(torch.zeros_like(structure.global_start)) if wide.any() else None
        if self.far is not None:
            self.register_buffer("unit", structure.global_spread * wide)

    def start_from(self, program: Program, *batch: Tensor) -> None:
        r"""Moves a new posterior's center to where the evidence of some rows is largest.

        Only entries with a wide prior are moved. If no entry of the unconstrained vector would move
        by more than 4, the center stays unchanged, because training covers such short distances.
        The log evidence at global sites :math:`\beta` is estimated by

        .. math:: \sum_n \log \frac1K
            \sum_k \frac{p(y_n, z_{nk} \mid \beta)}{p(z_{nk} \mid \beta_0)}

        and maximized by L-BFGS. Here :math:`z_{nk}` are K draws from the prior of the local
        latents, with the global sites at their start :math:`\beta_0`. The draws are fixed, so the
        maximum is finite even if the joint density of z and a scale parameter is unbounded.

        Arguments:
            program: The program.
            batch: Some rows of the data.
        """
        if self.far is None or bool((self.far != 0).any()) or not self.far.requires_grad:
            return
        batch = tuple(part[:: -(-len(part) // _ROWS)] for part in batch)
        with torch.enable_grad(), pyro.validation_enabled(is_validate=False):
            try:
                far = self._best_shift(program, batch)
            except (ValueError, RuntimeError):  # a program may refuse values far from its prior
                return
        if bool(far.isfinite().all()) and float((self.unit * far).abs().max()) > _WIDE:
            self.far.data.copy_(far)

    def _best_shift(self, program: Program, batch: Batch) -> Float[Tensor, " size"]:
        """Returns the most probable shift of the global sites, given some rows.

        The shift is in units of the prior's spread, and has a standard normal prior. So the log
        evidence of the rows, minus half of the squared shift, is maximized.
        """
        first, rows = program.at_start(), len(batch[0])
        with torch.no_grad():
            run = first.run_forward(repeat_rows(batch, _DRAWS))
            z = first.latents_of(run)[0].view(_DRAWS, rows, -1)
            drawn = first.log_densities(z, *batch).prior
        far = torch.zeros_like(program.structure.global_start).requires_grad_()

        def loss() -> float:
            flat = program.structure.global_start + self.unit * far
            joint = program.given(values_of(program, flat)).log_joint(z, *batch)
            value = far.square().sum() / 2 - (joint - drawn).logsumexp(dim=0).sum()
            (far.grad,) = torch.autograd.grad(value, far)
            return value.item()

        torch.optim.LBFGS([far], max_iter=_STEPS, line_search_fn="strong_wolfe").step(loss)
        return far.detach()

    @property
    def shift(self) -> Float[Tensor, " size"] | None:
        """Trained shift of the location, zero for narrow priors; `None` if no prior is wide."""
        return None if self.far is None else self.unit * self.far

    def distribution(self) -> Distribution:
        """Returns the distribution of the global sites' flat unconstrained vector, `(size,)`."""
        base = self.family(self.value)
        if self.shift is None:
            return base
        move = AffineTransform(self.shift, 1.0, event_dim=1)
        return dist.TransformedDistribution(base, [move])

    def sample_sites(self, program: Program, plates: Plates) -> dict[str, Tensor] | None:
        """Draws the flat vector of all global sites, and gives each site its part of the vector.

        Returns the value of every global site. Returns `None` if Pyro vectorizes particles, because
        each particle then has its own values.
        """
        flat = pyro.sample("_global", self.distribution(), infer={"is_auxiliary": True})
        ahead = flat.shape[:-1]
        several = has_particles(ahead)
        vectors = flat.flatten(0, -2) if several else flat
        constrained = program.constrain_globals(vectors)
        for site in program.global_sites:
            value, log_jacobian = constrained[site.name]
            if several:
                value = ahead_of_plates(value, ahead, site.event_dim)
                log_jacobian = ahead_of_plates(log_jacobian, ahead, 0)
            with plates.open(site.plates):
                point = Point(value, log_density=-log_jacobian, event_dim=site.event_dim)
                pyro.sample(site.name, point)
        return None if several else {name: value for name, (value, _) in constrained.items()}

    def mean(self) -> Float[Tensor, " size"]:
        """Mean of the global sites' flat unconstrained vector."""
        mean = mean_of(self.family, self.value)
        return mean if self.shift is None else mean + self.shift

    @torch.no_grad()
    def draw(self, program: Program, num_samples: int) -> list[GlobalDraw]:
        """Returns draws of a program's global sites."""
        q = self.distribution()
        flat = q.sample(torch.Size((num_samples,)))
        return [GlobalDraw.of(program, q, vector) for vector in flat]


def values_of(program: Program, flat: Float[Tensor, " size"]) -> dict[str, Tensor]:
    """Returns the values that a flat unconstrained vector gives to a program's global sites."""
    return {name: value for name, (value, _) in program.constrain_globals(flat).items()}
