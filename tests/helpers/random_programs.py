"""Random small programs, each beside its density as a formula and its log p(y) by a grid."""

# Pyro declares no types of what programs do with masks and plates.
# mypy: disable-error-code="call-overload,arg-type"

import random
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

ROWS, INNER, NOISE = 3, 2, 0.8
SHARED = torch.tensor(0.4)
LEVELS = {
    None: torch.tensor([1.0]),
    "bernoulli": torch.tensor([0.7, 0.3]),
    "categorical": torch.tensor([0.2, 0.5, 0.3]),
}
GRID = torch.linspace(-9.0, 9.0, 181, dtype=torch.float64)


def distribution(kind: str, t: Any) -> Any:
    """A prior whose place or shape depends on what came before."""
    t = torch.as_tensor(t)
    if kind == "normal":
        return dist.Normal(t, 1.0)
    if kind == "lognormal":
        return dist.LogNormal(t / 2, 0.5)
    if kind == "gamma":
        return dist.Gamma(2.0, 1 + 0.3 * t.square())
    return dist.Beta(1.5 + t.sigmoid(), torch.full_like(t, 2.0))


def log_density(kind: str, u: Tensor, t: Tensor) -> Tensor:
    """Of the unconstrained value, by a formula."""
    if kind in ("normal", "lognormal"):
        loc, scale = (t, 1.0) if kind == "normal" else (t / 2, 0.5)
        return normal(u, loc, scale)
    if kind == "gamma":
        rate = 1 + 0.3 * t.square()
        return 2 * rate.log() + 2 * u - rate * u.exp()  # log Gamma(2) = 0
    one, two = 1.5 + t.sigmoid(), torch.full_like(t, 2.0)
    beta = one.lgamma() + two.lgamma() - (one + two).lgamma()
    logsigmoid = torch.nn.functional.logsigmoid
    return one * logsigmoid(u) + two * logsigmoid(-u) - beta


def value(kind: str, u: Tensor) -> Tensor:
    """The constrained value."""
    if kind == "normal":
        return u
    return u.sigmoid() if kind == "beta" else u.exp()


def normal(x: Tensor, loc: Any, scale: float) -> Tensor:
    """The log density of a normal distribution."""
    constant = 0.9189385332046727 + torch.tensor(scale).double().log()
    return -0.5 * ((x - loc) / scale) ** 2 - constant


@dataclass(frozen=True)
class Spec:
    """What a random program consists of.

    Arguments:
        kinds: Supports of its continuous sites, a and perhaps b, which depends on a.
        levels: Its discrete site, if any.
        inner: Whether a is in a plate inside the datum.
        masked: How the last site is masked for some rows, if at all.
        scale: What `poutine.scale` is around, if anything.
        shared: Whether it has a site that all data share.
        factor: Whether it has a `pyro.factor` term.
        seen: How what is observed is masked, if at all.
        guide_levels: Whether the guide samples the discrete site.
        guide_masks: Whether the guide masks as the model does.
    """

    kinds: tuple[str, ...]
    levels: str | None
    inner: bool
    masked: str | None
    scale: str | None
    shared: bool
    factor: bool
    seen: str | None
    guide_levels: bool
    guide_masks: bool

    @classmethod
    def of(cls, seed: int) -> "Spec":
        """The program of a seed."""
        draw = random.Random(seed)
        supports = ("normal", "lognormal", "gamma", "beta")
        inner = draw.random() < 0.25
        number = 1 if inner else draw.choice((1, 2))
        return cls(
            kinds=tuple(draw.choice(supports) for _ in range(number)),
            levels=draw.choice((None, "bernoulli", "categorical")),
            inner=inner,
            masked=draw.choice((None, "distribution", "handler")) if number == 2 else None,
            scale=draw.choice((None, "site", "program")),
            shared=draw.random() < 0.4,
            factor=draw.random() < 0.3,
            seen=draw.choice((None, "handler", "distribution", "obs_mask")),
            guide_levels=draw.random() < 0.5,
            guide_masks=draw.random() < 0.5,
        )

    @property
    def given(self) -> dict[str, Tensor]:
        """Values of shared sites."""
        return {"g": SHARED} if self.shared else {}

    def model(self, y: Tensor, on: Tensor, seen: Tensor) -> None:
        """The Pyro program."""
        with ExitStack() as stack:
            if self.scale == "program":
                stack.enter_context(poutine.scale(scale=0.3))
            g = pyro.sample("g", dist.Normal(0.0, 1.0)) if self.shared else SHARED
            with pyro.plate("data", len(y), dim=-1):
                self._rows(y, on.bool(), seen.bool(), g)

    def _rows(self, y: Tensor, on: Tensor, seen: Tensor, g: Tensor) -> None:
        t = 0.5 * g + 0.4 * self._level(torch.ones(len(y)))
        with ExitStack() as stack:
            if self.scale == "site":
                stack.enter_context(poutine.scale(scale=2.5))
            if self.inner:
                stack.enter_context(pyro.plate("inner", INNER, dim=-2))
            a = pyro.sample("a", distribution(self.kinds[0], t.expand(len(y))))
        mean = a.sum(-2) if self.inner else a
        if len(self.kinds) == 2:
            b = self._masked("b", distribution(self.kinds[1], t + 0.5 * a), on, mask=True)
            mean = mean + (b * on if self.masked else b)
        if self.factor:
            pyro.factor("f", -0.2 * (mean - 1) ** 2)
        self._observe(dist.Normal(mean, NOISE), y, seen)

    def _level(self, ones: Tensor) -> Any:
        """The discrete site's value, 0 if there is none."""
        if self.levels == "bernoulli":
            return pyro.sample("c", dist.Bernoulli(0.3 * ones))
        if self.levels == "categorical":
            probs = LEVELS["categorical"].expand(len(ones), 3)
            return pyro.sample("c", dist.Categorical(probs)).to(ones.dtype)
        return torch.zeros(())

    def _masked(self, name: str, prior: Any, on: Tensor, *, mask: bool) -> Tensor:
        if self.masked == "distribution" and mask:
            prior = prior.mask(on)
        with ExitStack() as stack:
            if self.masked == "handler" and mask:
                stack.enter_context(poutine.mask(mask=on))
            drawn: Tensor = pyro.sample(name, prior)
        return drawn

    def _observe(self, likelihood: Any, y: Tensor, seen: Tensor) -> None:
        if self.seen == "obs_mask":
            pyro.sample("y", likelihood, obs=y, obs_mask=seen)
        elif self.seen == "handler":
            with poutine.mask(mask=seen):
                pyro.sample("y", likelihood, obs=y)
        else:
            pyro.sample("y", likelihood.mask(seen) if self.seen else likelihood, obs=y)

    def guide(self, y: Tensor, on: Tensor, seen: Tensor) -> None:
        """A guide by hand: broad, and right in nothing."""
        if self.shared:
            pyro.sample("g", dist.Normal(0.4, 0.1))
        with pyro.plate("data", len(y), dim=-1):
            if self.levels and self.guide_levels:
                self._level(torch.ones(len(y)))
            with ExitStack() as stack:
                if self.inner:
                    stack.enter_context(pyro.plate("inner", INNER, dim=-2))
                pyro.sample("a", distribution(self.kinds[0], 0.3 * y))
            if len(self.kinds) == 2:
                q = distribution(self.kinds[1], 0.2 * y)
                self._masked("b", q, on.bool(), mask=self.guide_masks)
            if self.seen == "obs_mask":
                q = dist.Normal(0.3 * y, 2.0)
                pyro.sample("y_unobserved", q.mask(~seen.bool()) if self.guide_masks else q)

    def log_joint(self, u: Mapping[str, Tensor], y: Tensor, on: Tensor, seen: Tensor) -> Tensor:
        """By formulas, in float64, at unconstrained values `(points, rows)`; `a` may have more.

        The level is summed out; what is masked has its whole density.
        """
        y, parts = y.double(), []
        for level, chance in enumerate(LEVELS[self.levels]):
            t = (0.5 * SHARED + 0.4 * level).double().expand(y.shape)
            parts.append(chance.double().log() + self._given_level(u, t, y, on, seen))
        return torch.stack(parts).logsumexp(dim=0)

    def _given_level(
        self, u: Mapping[str, Tensor], t: Tensor, y: Tensor, on: Tensor, seen: Tensor
    ) -> Tensor:
        a = [u[name] for name in sorted(u) if name.startswith("a")]
        total = torch.stack([log_density(self.kinds[0], part, t) for part in a]).sum(dim=0)
        mean = torch.stack([value(self.kinds[0], part) for part in a]).sum(dim=0)
        if "b" in u:
            total = total + log_density(self.kinds[1], u["b"], t + 0.5 * mean)
            mean = mean + value(self.kinds[1], u["b"]) * (on if self.masked else 1.0)
        if self.factor:
            total = total - 0.2 * (mean - 1) ** 2
        if "y_unobserved" in u:
            total = total + normal(u["y_unobserved"], mean, NOISE)
        return total + normal(y, mean, NOISE) * (seen if self.seen else 1.0)

    def names(self) -> list[str]:
        """Coordinates of the flat vector of a datum, in its order."""
        a = [f"a{place}" for place in range(INNER)] if self.inner else ["a"]
        last = ["y_unobserved"] if self.seen == "obs_mask" else []
        return [*a, *(["b"] if len(self.kinds) == 2 else []), *last]

    def log_evidence(self, *data: Tensor) -> Tensor:
        """Log p(y_n), by the trapezoidal rule; what was not seen is out of it."""
        names = [name for name in self.names() if name != "y_unobserved"]
        grid = torch.cartesian_prod(*[GRID] * len(names)).reshape(-1, len(names))
        u = {name: grid[:, [place]] for place, name in enumerate(names)}
        cell = (GRID[1] - GRID[0]).log() * len(names)
        return self.log_joint(u, *data).logsumexp(dim=0) + cell


def data_of(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Data, rows that have the masked latent, and rows that were seen; the first row is whole."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randn(ROWS, generator=generator) + 0.5
    on, seen = (torch.rand(2, ROWS, generator=generator) < 0.5).float()
    on[0], seen[0] = 1.0, 1.0
    return y, on, seen
