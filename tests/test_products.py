"""Low-precision products: what is rounded, what is not, and whether the stated error is right."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import pyro_vae as pv
from pyro_vae.compiling import Captured
from pyro_vae.evidence import elbo

ROUNDINGS = {
    "linear": lambda x, w: functional.linear(x, w, torch.ones(6)),
    "linear by name": lambda x, w: functional.linear(input=x, weight=w),
    "matmul": lambda x, w: torch.matmul(x, w.T),
    "operator": lambda x, w: x @ w.T,
    "addmm": lambda x, w: torch.addmm(torch.ones(6), x, w.T),
    "bmm": lambda x, w: torch.bmm(x[None], w.T[None])[0],
    "conv2d": lambda x, w: functional.conv2d(x[:, :, None, None], w[:, :, None, None])[..., 0, 0],
    "conv_transpose1d": lambda x, w: functional.conv_transpose1d(x[:, :, None], w.T[:, :, None])[
        ..., 0
    ],
}


@pytest.mark.parametrize("name", ROUNDINGS)
def test_operands_are_rounded(name: str) -> None:
    """To eight bits, and no further; the result and the gradient are in float32."""
    product: Callable[[Tensor, Tensor], Tensor] = ROUNDINGS[name]
    x, w = torch.randn(50, 40), torch.randn(6, 40, requires_grad=True)
    exact = product(x, w.detach())
    with pv.BFloat16Products().active():
        found = product(x, w)
    (gradient,) = torch.autograd.grad(found.sum(), w)
    error = float((found.detach() - exact).std() / exact.std())
    assert found.dtype == gradient.dtype == torch.float32
    assert 2**-11 < error < 2**-7  # u = 2^-9, in both operands and in the result
    assert torch.equal(product(x, w.detach()), exact)  # and none outside


def test_double_is_left_alone() -> None:
    """Whoever asked for float64 wants its bits."""
    x, w = torch.randn(5, 4, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    exact = x @ w.T
    with pv.BFloat16Products().active():
        assert torch.equal(x @ w.T, exact)


def test_switches_are_put_back() -> None:
    """Also if something fails inside."""

    def switches() -> tuple[bool, bool]:
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    def failing() -> None:
        with pv.TF32Products().active():
            assert switches() == (True, True)
            raise KeyError

    before = switches()
    with pytest.raises(KeyError):
        failing()
    assert switches() == before


def images() -> tuple[pv.models.VAE, pv.Guide, Tensor]:
    """A VAE whose products matter: wide, with large weights."""
    model = pv.models.VAE(pv.nets.MLPDecoder(4, 30, (200,)), pv.likelihoods.Bernoulli(), 4)
    guide = pv.Guide(model, pv.Encoder(pv.nets.MLPEncoder(30, (50,))))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4)
    return model, guide, model.sample(64, seed=0)


def test_the_stated_error_is_right() -> None:
    """It is the difference of the ELBOs of the first batch, which evidence finds by other draws."""
    model, guide, y = images()
    result = pv.fit(model, guide, y, num_epochs=2, progress=False, precision=pv.BFloat16Products())
    assert result.rounding is not None
    assert "low-precision products change the ELBO" in result.summary()
    full = elbo(model, guide, y, 200)
    with pv.BFloat16Products().active():
        rounded = elbo(model, guide, y, 200)
    difference = rounded.mean.value - full.mean.value
    assert abs(float(difference)) > 1e-7
    off = float(result.rounding.value - difference) / float(result.rounding.error)
    assert abs(off) < 6  # nine degrees of freedom: a false alarm in 5,000 runs


def test_nothing_changes_where_nothing_is_rounded() -> None:
    """TF32 on a processor: the same training, and an error of nothing."""
    results = []
    for products in (None, pv.TF32Products()):
        torch.manual_seed(0)
        model, guide, y = images()
        result = pv.fit(model, guide, y, num_epochs=2, progress=False, precision=products)
        results.append(result)
    assert (results[0].history.elbo == results[1].history.elbo).all()
    assert results[0].rounding is None
    assert results[1].rounding is not None
    assert float(results[1].rounding.value) == float(results[1].rounding.error) == 0


def test_validation_is_in_full_precision() -> None:
    """What is reported of held-out data does not depend on how products are made."""
    model, guide, y = images()
    result = pv.fit(
        model, guide, y, num_epochs=1, validation=y, progress=False,
        precision=pv.BFloat16Products(),
    )  # fmt: skip
    again = elbo(model, guide, y, 10, seed=0)
    assert float(again.mean.value) == pytest.approx(result.history.validation_elbo[-1], rel=1e-9)


def test_captured_steps_are_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replayed without a compiler: the same numbers as written, and others than in float32."""
    monkeypatch.setattr(Captured, "compiled", lambda run, *args: run)
    histories = []
    for compile, products in (
        (False, pv.BFloat16Products()),
        (True, pv.BFloat16Products()),
        (True, None),
    ):
        torch.manual_seed(0)
        model, guide, y = images()
        result = pv.fit(
            model, guide, y, num_epochs=2, progress=False, compile=compile, precision=products
        )
        histories.append(result.history.elbo[-1])
    assert result.compiled == "compiled"
    assert histories[1] == pytest.approx(histories[0], rel=1e-5)
    assert abs(histories[2] - histories[0]) > 1e-4
