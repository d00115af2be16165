"""The log-likelihood that scikit-learn's PCA reports: that of a covariance over N - 1."""

import torch
from sklearn.datasets import load_wine
from sklearn.decomposition import PCA
from torch import Tensor

import pyro_vae as pv
from pyro_vae.models import LinearGaussian

from ..record import Claim, Finding, numbers, within

LATENTS = 5
CLAIM = Claim(
    title=(
        "The log-likelihood that scikit-learn's PCA reports is right, but its parameters do not "
        "maximize it"
    ),
    source="scikit-learn: `PCA(5).score`, documented as the average log-likelihood of pPCA",
    setting=(
        "178 wines, 13 standardized columns, five components. In the program, z ~ N(0, I) and y "
        "~ N(mean + W z, noise I), with W and noise as the fitted PCA defines them. Log p is "
        "computed by `pv.ClosedForm()`, and estimated by importance sampling from the posterior "
        "widened by 1.3. scikit-learn runs in the environment of pyro_vae."
    ),
    criterion=(
        "The score is within 1e-9 nats of the closed form at the PCA's parameters, within four "
        "standard errors of importance sampling, and within 1e-9 nats of the maximum over W and "
        "noise."
    ),
    remark=(
        "The score is the log-likelihood of the PCA's parameters, to the last digits. These "
        "parameters come from singular values divided by N - 1 (the unbiased covariance), where "
        "maximum likelihood divides by N. The last row is the resulting loss per wine: D (log c + "
        "1 / c - 1) / 2 with c = N / (N - 1), or about D / (4 N^2). The loss is negligible if "
        "there are many more rows than columns. A likelihood comparison with a model whose fit "
        "divides by N is off by this loss."
    ),
)


def rebuilt(pca: PCA) -> LinearGaussian:
    """The fitted PCA as a Pyro program."""
    model = LinearGaussian(LATENTS, pca.n_features_in_).double()
    components = torch.as_tensor(pca.components_).T
    variances = torch.as_tensor(pca.explained_variance_) - pca.noise_variance_
    with torch.no_grad():
        model.loadings.copy_(components * variances.sqrt())
        model.mean.copy_(torch.as_tensor(pca.mean_))
        model.log_noise.fill_(pca.noise_variance_ - model.noise.floor**2).log_()
    return model


def log_p(model: LinearGaussian, y: Tensor, estimator: pv.evidence.Estimator) -> pv.Estimate:
    """Mean over data."""
    guide = pv.Guide(model, pv.ExactPosterior(), pv.FullRankNormal())
    mean: pv.Estimate = pv.log_marginal_likelihood(model, guide, y, estimator, progress=False).mean
    return mean


def findings(*, smoke: bool = False) -> list[Finding]:
    """Its score, beside two ways to log p at its parameters and the maximum."""
    y = torch.as_tensor(load_wine().data)
    y = (y - y.mean(dim=0)) / y.std(dim=0)
    pca = PCA(LATENTS, svd_solver="full").fit(y)
    model, best = rebuilt(pca), LinearGaussian(LATENTS, y.shape[1]).double()
    best.fit_closed_form(y)
    score = float(pca.score(y))
    exact = float(log_p(model, y, pv.ClosedForm()).value)
    draws = pv.ImportanceSampling(200 if smoke else 1_000, proposal=pv.Widened(1.3))
    sampled = numbers(log_p(model, y, draws))
    most = float(log_p(best, y, pv.ClosedForm()).value)
    shown = f"{score:.9f}"
    return [
        Finding(
            "score; log p in closed form, nats per wine",
            shown,
            f"{exact:.9f}",
            abs(score - exact) < 1e-9,
        ),
        Finding(
            "score; log p by importance sampling, nats per wine",
            shown,
            f"{sampled[0]:.4f} ± {sampled[1]:.4f}",
            within(*sampled, score),
        ),
        Finding(
            "score; maximum of log p, nats per wine", shown, f"{most:.9f}", abs(score - most) < 1e-9
        ),
        Finding("maximum minus score, nats per wine", "", f"{most - score:.2e}"),
    ]
