"""Collapse of a linear VAE is that of pPCA: which latents die, and what the others cost."""

import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.models import LinearGaussian

from .record import Claim, Finding

LATENTS = 12
CLAIM = Claim(
    title="A linear VAE collapses exactly where pPCA does",
    source=(
        "Lucas, Tucker, Grosse & Norouzi, 2019: Don't Blame the ELBO! A Linear VAE Perspective "
        "on Posterior Collapse"
    ),
    figures="The theorem is exact, so no published value is needed.",
    setting=(
        f"Grey digits of 64 pixels, {LATENTS} latents, and a noise variance fixed between the "
        "eighth and ninth eigenvalue of the data's covariance. From each of 10 random starts, "
        "L-BFGS maximizes the ELBO of the best mean-field q. The KL of each latent is that of q "
        "from `pv.CoordinateAscent()`."
    ),
    criterion=(
        "From every start, eight latents do not collapse. Every KL is within 1e-6 nats of "
        "log(lambda_i / sigma^2) / 2, where lambda_i is an eigenvalue and sigma^2 the noise "
        "variance, or of 0 if lambda_i is below sigma^2."
    ),
)


def _bound(loadings: Tensor, noise: Tensor, covariance: Tensor) -> Tensor:
    """The best mean-field ELBO per datum, up to its constant: log p less the approximation gap."""
    size = len(covariance)
    whole = torch.distributions.MultivariateNormal(
        torch.zeros(size, dtype=loadings.dtype),
        loadings @ loadings.mT + noise * torch.eye(size, dtype=loadings.dtype),
    )
    root = torch.linalg.cholesky(whole.covariance_matrix)
    log_p = -root.diagonal().log().sum() - torch.cholesky_solve(covariance, root).trace() / 2
    precision = torch.eye(loadings.shape[1], dtype=loadings.dtype) + loadings.mT @ loadings / noise
    return log_p - (precision.diagonal().log().sum() - torch.logdet(precision)) / 2


def _trained(covariance: Tensor, noise: Tensor, seed: int, steps: int) -> Tensor:
    """Loadings at a maximum of the bound, from a random start."""
    draw = torch.Generator().manual_seed(seed)
    loadings = torch.randn(len(covariance), LATENTS, generator=draw, dtype=covariance.dtype)
    loadings.requires_grad_()
    optimizer = torch.optim.LBFGS(
        [loadings],
        max_iter=steps,
        tolerance_grad=1e-11,
        tolerance_change=0,
        history_size=50,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = -_bound(loadings, noise, covariance)
        value.backward()
        return value

    optimizer.step(loss)
    return loadings.detach()


def _rates(guide: pv.Guide, y: Tensor) -> Tensor:
    """KL of every latent from its prior, mean over data, the largest first."""
    loc, log_scale = guide.parameters_of(y).detach().chunk(2, dim=-1)
    q = torch.distributions.Normal(loc, log_scale.exp())
    prior = torch.distributions.Normal(torch.zeros_like(loc), 1.0)
    rate = torch.distributions.kl_divergence(q, prior).mean(dim=0)
    return rate.sort(descending=True).values


def findings(*, smoke: bool = False) -> list[Finding]:
    """Ten starts on the digits."""
    starts, steps = (1, 20) if smoke else (10, 5_000)
    y = pv.data.digits(binarization=pv.data.Grey()).train.double()
    y = y - y.mean(dim=0)
    covariance = y.mT @ y / len(y)
    variances = torch.linalg.eigvalsh(covariance).flip(0)
    noise = (variances[7] + variances[8]) / 2  # eight latents can live, four have to die
    published = ((variances[:LATENTS] / noise).log() / 2).clamp(min=0)
    model = LinearGaussian(LATENTS, y.shape[1]).double()
    guide = pv.Guide(model, pv.CoordinateAscent())
    worst, alive = 0.0, set()
    for seed in range(starts):
        with torch.no_grad():
            model.loadings.copy_(_trained(covariance, noise, seed, steps))
            model.mean.zero_()
            model.log_noise.copy_((noise - model.noise.floor**2).log())
        rates = _rates(guide, y)
        worst = max(worst, float((rates - published).abs().max()))
        alive.add(int((rates > 1e-4).sum()))
    return [
        Finding(
            "latents that do not collapse, from every start",
            "8",
            str(alive).strip("{}"),
            alive == {8},
        ),
        Finding(
            "largest difference of a KL from the formula, nats", "0", f"{worst:.1e}", worst < 1e-6
        ),
    ]
