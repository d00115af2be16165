"""Is a state-space model of series better than a VAE of windows or of whole series?

The data are positions of van der Pol's nonlinear oscillator, which is driven by noise. They are
measured with noise at 6 to 16 points in time, so series differ in length and are nan beyond
their ends.

    state space   z_t | z_{t-1} ~ N(net(z_{t-1}), diag sigma^2),   y_t | z_t ~ N(A z_t + b, s^2)
    i.i.d. VAE    4 successive times, or all 16, are one datum,                y ~ N(net(z), s^2)

In the state-space model p(z | y) is a product of p(z_t | z_{t-1}, y_t .. y_T). So its guide, which
is written by hand, corrects the transition to each time with a network's summary of the data from
this time on. Beyond the end of a series there are no such data, and the guide equals the
transition. So padding costs nothing, and draws of the states there are the forecast. The length of
training was chosen on the same series.

Run:  python examples/time_series.py --out figures      (--smoke for a quick look)
"""

import argparse
from pathlib import Path

import matplotlib
import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae import queries, stats
from pyro_vae.likelihoods import Gaussian, LearnedSigma
from pyro_vae.models import NormalGiven, SequentialVAE

TIMES, AHEAD, STATES = 16, 8, 2
WINDOWS = (4, TIMES)


def oscillators(number: int, seed: int) -> Tensor:
    """Positions, `(number, TIMES + AHEAD)`, 0.5 time units apart; a cycle takes 14 of them."""
    noise = torch.Generator().manual_seed(seed)
    x, v = 1.5 * torch.randn(2, number, generator=noise)
    seen = []
    for _ in range(TIMES + AHEAD):
        for _ in range(10):  # Euler's steps of 0.05
            push = 0.3 * 0.05**0.5 * torch.randn(number, generator=noise)
            x, v = x + 0.05 * v, v + 0.05 * (1.5 * (1 - x**2) * v - x) + push
        seen.append(x + 0.2 * torch.randn(number, generator=noise))
    return torch.stack(seen, dim=1)


def cut(y: Tensor, seed: int) -> Tensor:
    """The series, cut off at random times and padded by nan, `(number, TIMES, 1)`."""
    ends = torch.randint(6, TIMES + 1, (len(y),), generator=torch.Generator().manual_seed(seed))
    return pv.models.padded([row[:end, None] for row, end in zip(y, ends, strict=True)], TIMES)


class Onward(nn.Module):
    """The mean of the next state: the present state plus a change given by a network."""

    def __init__(self) -> None:
        super().__init__()
        self.change = pv.nets.MLPDecoder(STATES, STATES, hidden=(32,), activation=nn.Tanh)

    def forward(self, z: Tensor) -> Tensor:
        """Means of z_t for each z_{t-1}."""
        return z + self.change(z)


class Smoother(nn.Module):
    """q(z_t | z_{t-1}, y_t .. y_T): the transition, corrected by the later data."""

    def __init__(self, model: SequentialVAE) -> None:
        super().__init__()
        self.model = (model,)  # in a tuple, since its parameters are not the guide's
        self.reader = pv.nets.GRUEncoder(features=1, hidden=24, length=TIMES)
        self.correction = pv.nets.MLPDecoder(24 + STATES, 2 * STATES, hidden=(32,))

    def forward(self, y: Tensor) -> None:
        """Samples the states of every series, one after the other."""
        read = self.reader(y).unflatten(-1, (TIMES, -1))
        is_ahead = (~y.isnan()).flip(1).cumsum(dim=1).flip(1) > 0  # (batch, times, 1)
        with pyro.plate("data", len(y)):
            z, normal = y.new_zeros(len(y), STATES), self.model[0].prior().base_dist
            for time in range(TIMES):
                shift, log_factor = self.correction(torch.cat([z, read[:, time]], -1)).chunk(2, -1)
                loc = normal.loc + shift * is_ahead[:, time]
                scale = normal.scale * (log_factor * is_ahead[:, time]).exp()
                z = pyro.sample(f"z_{time + 1}", dist.Normal(loc, scale).to_event(1))
                normal = self.model[0].transition(z).base_dist


def state_space() -> tuple[SequentialVAE, Smoother]:
    """The state-space model of series, and its guide."""
    torch.manual_seed(0)
    onward = NormalGiven(Onward(), sigma=LearnedSigma(STATES, initial=0.3))
    likelihood = Gaussian(LearnedSigma(initial=0.5))
    model = SequentialVAE(onward, nn.Linear(STATES, 1), likelihood, STATES, TIMES)
    return model, Smoother(model)


def of_windows(width: int) -> tuple[pv.models.VAE, pv.Guide]:
    """A VAE of windows of `width` times; its encoder gets a mask of missing entries."""
    torch.manual_seed(0)
    decoder = pv.nets.MLPDecoder(4, width, hidden=(64,))
    model = pv.models.VAE(decoder, Gaussian(LearnedSigma(initial=0.5)), latent_dim=4)
    encoder = pv.nets.MissingIndicator(pv.nets.MLPEncoder(2 * width, hidden=(64,)))
    return model, pv.Guide(model, pv.Encoder(encoder))


def windows(y: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The windows with at least one observation, and the index of each one's series."""
    rows = y.reshape(-1, width)
    some = (~rows.isnan()).any(dim=1)
    return rows[some], torch.arange(len(y)).repeat_interleave(TIMES // width)[some]


def _adam(tensors: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.Adam(tensors, lr=0.01)


def verdict(draws: Tensor, truth: Tensor, unseen: Tensor) -> str:
    """Says what share of held-out values the 90% bands cover, and how wide they are."""
    low, high = draws.quantile(draws.new_tensor([0.05, 0.95]), dim=0)
    held = ((low <= truth) & (truth <= high)).double()
    share, error = stats.population_mean(held[unseen])
    width = float((high - low)[unseen].mean())
    return (
        f"{float(share):.1%} ± {float(error):.1%} of the held-out values, and is {width:.2f} wide"
    )


@matplotlib.rc_context(pv.plots.STYLE)
def draw(
    y: Tensor, truth: Tensor, bands: dict[str, Tensor], log_p: dict[str, Tensor], path: Path
) -> None:
    """Draws two series that ended early, with both forecasts, and log p by model."""
    figure = Figure(figsize=(11.0, 3.4), layout="constrained")
    *panels, right = figure.subplots(1, 3)
    for ax, row in zip(panels, (~y.isnan()).sum(dim=1).flatten().argsort()[:2], strict=True):
        for number, (name, draws) in enumerate(bands.items()):
            ends = draws[:, row].quantile(draws.new_tensor([0.05, 0.95]), dim=0)
            times = range(1, draws.shape[2] + 1)
            ax.fill_between(times, *ends, color=f"C{number}", alpha=0.3, lw=0, label=name)
        ax.plot(range(1, truth.shape[1] + 1), truth[row], "x", color="0.5", label="held out")
        ax.plot(range(1, TIMES + 1), y[row], "ko", markersize=4, label="observed")
        ax.set(xlabel="time", ylabel="position")
    handles = panels[0].get_legend_handles_labels()[0]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False)
    for place, value in enumerate(log_p.values()):
        mean, error = stats.population_mean(value - log_p["state space"])
        right.errorbar(float(mean), place, xerr=2 * float(error), fmt="o", color="C0")
    right.set_yticks(range(len(log_p)), list(log_p))
    right.set_xlabel("log p minus that of the state space\n(nats per series, ± 2 standard errors)")
    right.invert_yaxis()
    figure.savefig(path, dpi=110)


def fit_windows(
    train: Tensor, test: Tensor, width: int, *, epochs: int, samples: int
) -> tuple[tuple[pv.models.VAE, pv.Guide], Tensor]:
    """Trains a VAE of windows; returns it and log p of every series, summed over windows."""
    pair = of_windows(width)
    part = windows(train, width)[0]
    pv.fit(*pair, part, num_epochs=max(1, epochs // 2), optimizer=_adam, compile=False)
    rows, series = windows(test, width)
    lml = pv.log_marginal_likelihood(*pair, rows, pv.Tightest(max(10 * samples, 500)))
    print(f"windows of {width}: {lml.summary()}")
    return pair, torch.zeros(len(test)).double().index_add(0, series, lml.value.double())


def filtered(
    model: SequentialVAE, guide: Smoother, y: Tensor, islands: int, particles: int
) -> Tensor:
    """Log p of every series by guided particle filters, with more particles where they differ.

    With draws of whole series from the guide, 60 of 100 series would be unreliable. A filter
    resamples the draws at each time.
    """
    filters = pv.ParticleFilter(islands, particles, guided=True)
    lml = pv.log_marginal_likelihood(model, guide, y, filters)
    print(f"\nstate space: {lml.summary()}")
    value, hard = lml.value.clone(), ~lml.reliable
    if hard.any():
        filters = pv.ParticleFilter(islands, 32 * particles, guided=True)
        again = pv.log_marginal_likelihood(model, guide, y[hard], filters, seed=1)
        print(f"with more particles: {again.summary()}")
        value[hard] = again.value
    return value


def compare(log_p: dict[str, Tensor]) -> None:
    """Prints log p of every model and its difference from the state-space model, with errors."""
    for name, value in log_p.items():
        mean, error = stats.population_mean(value)
        less, beside = stats.population_mean(value - log_p["state space"])
        print(
            f"{name:16s} log p = {float(mean):8.3f} ± {float(error):.3f} nats per series, "
            f"{float(less):+.3f} ± {float(beside):.3f} minus state space"
        )


def main() -> None:
    """Fits the models, draws the figure and prints the answer."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder for the figure")
    parser.add_argument("--smoke", action="store_true", help="use tiny sizes, as a test")
    arguments = parser.parse_args()
    number, epochs, samples = (20, 2, 50) if arguments.smoke else (300, 200, 300)

    torch.set_num_threads(1)  # small tensors make threads wait for each other
    truth = oscillators(number // 3, seed=1)
    train, test = cut(oscillators(number, seed=0), seed=2), cut(truth, seed=3)
    model, guide = state_space()
    # Compiling 16 steps, unrolled, would take longer than it saves.
    pv.fit(model, guide, train, num_epochs=epochs, batch_size=50, optimizer=_adam, compile=False)
    filters = (4, 16) if arguments.smoke else (16, 128)
    log_p, of_rows = {"state space": filtered(model, guide, test, *filters)}, {}
    for width in WINDOWS:
        of_rows[width], log_p[f"windows of {width}"] = fit_windows(
            train, test, width, epochs=epochs, samples=samples
        )
    z = queries.encode(model, guide, test, samples)
    torch.manual_seed(0)
    ahead = torch.cat([model.sample_data(z), model.forecast(z, AHEAD)], dim=2)[..., 0]
    fitted = pv.ImportanceSampling(max(10 * samples, 500), proposal=pv.Fitted())
    filled = queries.impute(*of_rows[TIMES], test[..., 0], samples, estimator=fitted)
    bands = {"state space, 90%": ahead, "VAE of 16 times, 90%": filled.draws}
    arguments.out.mkdir(parents=True, exist_ok=True)
    draw(test[..., 0], truth, bands, log_p, arguments.out / "time_series.png")

    unseen, first = test[..., 0].isnan(), truth[:, :TIMES]
    print(f"\nImputations of the VAE of 16 times: {filled.summary()}")
    compare(log_p)
    beyond = torch.ones(len(test), AHEAD, dtype=torch.bool)
    print(
        "Beyond the end of a series the 90% band of the state-space model covers "
        f"{verdict(ahead[:, :, :TIMES], first, unseen)}; the band of the VAE of 16 times covers "
        f"{verdict(filled.draws, first, unseen)}. At times 17 to 24, which this VAE lacks, the "
        f"state-space band covers {verdict(ahead[:, :, TIMES:], truth[:, TIMES:], beyond)}."
    )


if __name__ == "__main__":
    main()
