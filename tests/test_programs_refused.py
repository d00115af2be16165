"""Programs that are refused, and what the refusal says."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae._types import ProgramLike
from pyro_vae.programs import Program, structure
from pyro_vae.programs.modes import _instead
from tests.helpers.cases import (
    dependent,
    normal,
    scalar,
)


def no_plate(y: Tensor) -> None:
    """Vectorized by an event dimension."""
    z = pyro.sample("z", dist.Normal(torch.zeros(len(y)), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(z, 1.0).to_event(1), obs=y)


def two_plates(y: Tensor) -> None:
    """Both plates have as many entries as the batch; only one holds all sites."""
    with pyro.plate("data", len(y), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)
        with pyro.plate("pairs", len(y), dim=-2):
            pyro.factor("nothing", torch.zeros(len(y), len(y)))


def outside(y: Tensor) -> None:
    """Latents of the data that no plate knows of."""
    shift = pyro.sample("shift", dist.Normal(torch.zeros(len(y)), 1.0).to_event(1))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(shift, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def observed_outside(y: Tensor) -> None:
    """The plate was closed too early."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=y)
    pyro.sample("y", dist.Normal(z, 1.0).to_event(1), obs=y)


def loop(y: Tensor) -> None:
    """A plate used as a loop."""
    for n in pyro.plate("data", len(y)):
        z = pyro.sample(f"z_{n}", dist.Normal(0.0, 1.0))
        pyro.sample(f"y_{n}", dist.Normal(z, 1.0), obs=y[int(n)])


def counts(y: Tensor) -> None:
    """A discrete latent without an end."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        count = pyro.sample("count", dist.Poisson(z.exp()))
        pyro.sample("y", dist.Normal(count, 1.0), obs=y)


def global_label(y: Tensor) -> None:
    """One label for all data."""
    label = pyro.sample("label", dist.Bernoulli(0.5))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(label, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def wrong_dimension(y: Tensor) -> None:
    """The data stand at the last dimension, and the plate is said to be left of it."""
    with pyro.plate("data", len(y), dim=-2):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))  # (batch, 1)
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)  # (batch, batch): each y for each z


def endless(y: Tensor) -> None:
    """A loop that waits for something that does not come."""
    with pyro.plate("data", len(y)):
        time = 0
        while True:
            pyro.sample(f"z_{time}", dist.Normal(0.0, 1.0))
            time += 1


def until(y: Tensor) -> None:
    """A loop that ends by chance."""
    stop, time = torch.tensor(0.0), 0
    while stop == 0:
        stop = pyro.sample(f"stop_{time}", dist.Bernoulli(0.5))
        time += 1
    with pyro.plate("data", len(y)):
        for t in range(time + len(y)):
            pyro.sample(f"z_{t}", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)


def inner_subsample(y: Tensor) -> None:
    """A plate inside a datum that takes some of its features."""
    with pyro.plate("data", len(y), dim=-1), pyro.plate("features", 10, subsample_size=4, dim=-2):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y.expand(4, -1))


def masked_observation(y: Tensor) -> None:
    """A mask over what was not seen."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(y), 1), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(z, 1.0).mask(y[:, None] > 0).to_event(1), obs=y[:, None])


def forgotten(y: Tensor) -> None:
    """The data were not passed on."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0))


def nothing_latent(y: Tensor) -> None:
    """A density with nothing to infer."""
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)


def moving_bounds(y: Tensor) -> None:
    """A support that depends on the datum."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Uniform(0.0, 1 + y.abs()))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def changing(y: Tensor) -> None:
    """A program that sets entries of its data."""
    y[y < 0] = 0.0
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def standardizing(y: Tensor) -> None:
    """Data relative to the others of the batch, which are alike where the program is first run."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=(y - y.mean()) / y.std())


def lazy(y: Tensor) -> None:
    """A net without weights."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(LAZY(z), 1.0).to_event(1), obs=y[:, None])


LAZY = nn.LazyLinear(1)

REFUSED = {
    "changing": (changing, r"changes tensor 0 of the data in place.*torch\.where"),
    "standardizing": (standardizing, r"site 'y' .*Normal.*got tensor\(\[nan.*with equal rows"),
    "lazy": (lazy, r"'weight' of a lazy module has no values .* call the network once"),
    "no plate": (
        no_plate,
        r"the plate over data, .* none of which has this size.*open `with pyro\.plate.* call$",
    ),
    "two plates": (
        two_plates,
        r"got \['data', 'pairs'\]: .*, if one of these plates already holds all .* as `plate`$",
    ),
    "outside": (
        outside,
        r"latent site 'shift' is outside the plate over data, 'data', but .*batch",
    ),
    "observed outside": (
        observed_outside,
        r"observed site 'y' is outside the plate .* move this site",
    ),
    "loop": (loop, r"'data', must be a context manager, not a loop"),
    "counts": (
        counts,
        r"latent site 'count' is discrete \(Poisson\), .* too large to be summed out",
    ),
    "global label": (global_label, r"site 'label' is discrete \(Bernoulli\) and shared by all"),
    "wrong dimension": (
        wrong_dimension,
        r"'y' must .* \(2, 1\) \(plates: 'data' \(dim -2.* got shape \(2, 2\): set each plate's",
    ),
    "endless": (
        endless,
        r"has sampled 300 sites, the last of them 'z_\d+', and may never end",
    ),
    "until": (until, r"same sites in every run; got the sites \['.*fixed number of steps"),
    "inner subsample": (
        inner_subsample,
        r"plate 'features' .* must not subsample; got 4 of 10 entries: .* only the plate over",
    ),
    "forgotten": (
        forgotten,
        r"latent sites \['z', 'y'\] and the observed sites \[\]: pass the data as `obs`",
    ),
    "nothing latent": (nothing_latent, r"latent sites \[\] and the observed sites \['y'\]"),
    "moving bounds": (moving_bounds, r"site 'z' must have the same bounds for all data"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_programs_are_refused(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has no density per datum is refused by the name of the plate or site at fault."""
    monkeypatch.setattr(structure, "_SITES", 300)  # ten thousand take a quarter of a minute
    program, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        Program(program, torch.zeros(4))


def test_a_fixed_number_of_rows() -> None:
    """A program that was written for a hundred rows, and runs on fewer once its plate is named."""

    def fixed(y: Tensor) -> None:
        with pyro.plate("data", 100):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    with pytest.raises(ValueError, match=r"got plates \['data'\], none .*plate='data'$"):
        Program(fixed, torch.zeros(4))
    y, z = torch.randn(4), torch.randn(3, 4, 1)
    expected = normal(z[..., 0], 0.0, 1.0) + normal(y, z[..., 0], 1.0)
    torch.testing.assert_close(Program(fixed, y, plate="data").log_joint(z, y), expected)


class PlateOfInit(torch.nn.Module):
    """Makes its plate once, or in each call."""

    def __init__(self, *, once: bool) -> None:
        super().__init__()
        self.plate = pyro.plate("data", 4) if once else None

    def forward(self, y: Tensor) -> None:
        """Has a latent per datum."""
        with self.plate or pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)


@pytest.mark.parametrize("plate", [None, "data"])
def test_a_plate_that_was_made_in_init(plate: str | None) -> None:
    """No run changes its size, so its name is no remedy."""
    with pytest.raises(ValueError, match=r"in each call; .* made before, as in `__init__`, keeps"):
        Program(PlateOfInit(once=True), torch.zeros(4), plate=plate)
    assert Program(PlateOfInit(once=False), torch.zeros(4), plate=plate).plate == "data"


def series(y: Tensor, lengths: Tensor) -> None:
    """A state for each time of the longest series of the rows."""
    with pyro.plate("data", len(y)):
        z = torch.zeros(len(y))
        for time in range(int(lengths.max())):
            with poutine.mask(mask=time < lengths):  # type: ignore[call-overload]
                z = pyro.sample(f"z_{time}", dist.Normal(z, 1.0))
                pyro.sample(f"y_{time}", dist.Normal(z, 1.0), obs=y[:, time])


def of_series(y: Tensor, lengths: Tensor) -> None:
    """A guide with the same loop."""
    with pyro.plate("data", len(y)):
        for time in range(int(lengths.max())):
            with poutine.mask(mask=time < lengths):  # type: ignore[call-overload]
                pyro.sample(f"z_{time}", dist.Normal(y[:, time] / 2, 1.0))


@pytest.mark.parametrize("lengths", [(3, 2, 2, 1), (1, 2, 2, 3)])
def test_the_longest_series_of_the_rows(lengths: tuple[int, ...]) -> None:
    """Sites that some rows lack are refused by name, whichever row is first."""
    data = (torch.randn(4, 3), torch.tensor(lengths))
    with pytest.raises(ValueError, match=r"y\.shape\[1\].* the longest series"):
        pv.elbo(series, of_series, data)
    guide = pv.Guide(series, pv.GlobalParameters(), example=data)
    with pytest.raises(ValueError, match=r"latent sites must be .*'z_0'.* in every run"):
        pv.elbo(series, guide, tuple(part[1:2] for part in data))


def events(y: Tensor) -> None:
    """Zeros and ones with a latent rate."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Bernoulli(logits=z), obs=y)


def waits(y: Tensor) -> None:
    """Positive numbers, whose density is nan below zero if nobody checks."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Gamma(z.exp(), 1.0), obs=y)


def of_numbers(y: Tensor) -> None:
    """A guide that any data will do for."""
    slope = pyro.param("slope", torch.tensor(0.1))
    with pyro.plate("data", len(y)):
        pyro.sample("z", dist.Normal(slope * y, 1.0))


@pytest.mark.usefixtures("user_param_store")
@pytest.mark.parametrize(("program", "kind"), [(events, "Bernoulli"), (waits, "Gamma")])
@pytest.mark.parametrize("place", [0, 2])
def test_data_off_the_support_are_named(program: ProgramLike, kind: str, place: int) -> None:
    """The site and its distribution, whether the first row is at fault or another one."""
    y = torch.ones(3)
    y[place] = -2.0
    with pytest.raises(ValueError, match=rf"site 'y' must .* support of its {kind} .*-2"):
        pv.elbo(program, of_numbers, y)
    with pytest.raises((ValueError, FloatingPointError), match=r"site 'y'"):
        pv.fit(program, of_numbers, y, num_epochs=1, progress=False)


def test_a_lazy_net_runs_after_its_first_call() -> None:
    """The remedy: log p(y) is that of y ~ N(0, |w|^2 + 1)."""
    net = nn.LazyLinear(1, bias=False)

    def program(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(net(z), 1.0).to_event(1), obs=y)

    net(torch.zeros(2, 2))
    y = torch.ones(1, 1)
    guide = pv.Guide(program, pv.GlobalParameters(), example=y)
    found = pv.log_marginal_likelihood(program, guide, y, pv.Quadrature())
    scale = (1 + net.weight.detach().square().sum()).sqrt()
    torch.testing.assert_close(found.value, normal(y[0], 0.0, scale).double(), atol=1e-5, rtol=0)


def test_errors_of_a_program_say_how_it_was_run() -> None:
    """What the program raises is its own, with a note that the rows are copies."""

    def picky(y: Tensor) -> None:
        raise KeyError(len(y))

    with pytest.raises(KeyError) as caught:
        Program(picky, torch.zeros(4))
    assert "on 2 copies of the first row" in caught.value.__notes__[0]


@pytest.mark.usefixtures("float64")
def test_the_plate_can_be_named() -> None:
    """Of two plates that follow the batch the named one is over data."""
    program = Program(two_plates, torch.zeros(4), plate="data")
    assert (program.plate, program.plate_dim, program.latent_dim) == ("data", -1, 1)
    y, z = torch.randn(4), torch.randn(1, 4, 1)
    expected = normal(z[..., 0], 0.0, 1.0) + normal(y, z[..., 0], 1.0)
    torch.testing.assert_close(program.log_joint(z, y), expected)
    with pytest.raises(ValueError, match=r"got 'dta': choose from \['data', 'pairs'\]"):
        Program(two_plates, torch.zeros(4), plate="dta")
    with pytest.raises(ValueError, match=r"site 'z' is outside the plate over data, 'pairs'"):
        Program(two_plates, torch.zeros(4), plate="pairs")


def test_a_program_needs_rows() -> None:
    """Without a row, and without a way to make one, the sites cannot be found."""
    with pytest.raises(ValueError, match=r"'scalar' must be run once .* example=y\[:2\]"):
        Program(scalar)
    with pytest.raises(ValueError, match=r"a batch must have at least one row .* got shapes \[\(0"):
        Program(scalar, torch.zeros(0))
    with pytest.raises(
        ValueError, match=r"must index the data; got shapes \[\(\)\]: use y\[None\]"
    ):
        Program(scalar, torch.zeros(()))
    with pytest.raises(ValueError, match=r"must have the same number of rows.* got \[2, 3\]"):
        Program(scalar, torch.zeros(2), torch.zeros(3))


def test_shapes_are_checked() -> None:
    """Latents and rows that do not fit are named, with what was expected."""
    program = Program(dependent, torch.zeros(4))
    with pytest.raises(ValueError, match=r"z must have size 3, .*'b': \(2,\).* got size 2"):
        program.log_joint(torch.zeros(1, 4, 2), torch.zeros(4))
    with pytest.raises(ValueError, match=r"z must .* 5 data, .* 4 rows in tensor 0 of the batch"):
        program.log_joint(torch.zeros(1, 5, 3), torch.zeros(4))


def test_a_masked_observation_counts_where_it_was_made() -> None:
    """Log N(z; 0, 1), and log N(y; z, 1) where y > 0."""
    y, z = torch.tensor([1.0, -1.0]), torch.tensor([[[0.5], [0.25]]])
    prior, likelihood = dist.Normal(0.0, 1.0).log_prob(z[..., 0]), dist.Normal(z[..., 0], 1.0)
    expected = prior + likelihood.log_prob(y) * (y > 0)
    torch.testing.assert_close(pv.log_joint(masked_observation, z, y), expected)


def all_shared(y: Tensor) -> None:
    """No latent of a datum."""
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def with_covariates(y: Tensor, x: Tensor) -> None:
    """Two tensors."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(x, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def test_programs_without_a_role_are_refused_with_what_is_missing() -> None:
    """A latent of each datum, the data, or a tensor."""
    y = torch.zeros(4)
    with pytest.raises(ValueError, match=r"latent sites \[\].*declare a latent of each datum"):
        Program(all_shared, y)
    model = pv.models.LinearGaussian(1, 3)
    guide = pv.Guide(model, pv.GlobalParameters())
    with pytest.raises(ValueError, match="if this program is a guide, pass the model first"):
        pv.fit(guide, model, torch.zeros(4, 3), num_epochs=1)
    with pytest.raises(TypeError, match=r"'x'\): pass all of them as a tuple, as in \(y, x\)"):
        pv.Guide(with_covariates, pv.GlobalParameters(), example=y)


def test_an_encoder_of_another_dtype_is_refused_with_the_conversion() -> None:
    """And the conversion is the remedy."""
    y = torch.zeros(4, 3, dtype=torch.float64)
    model = pv.models.LinearGaussian(1, 3).double()
    guide = pv.Guide(model, pv.Encoder(pv.nets.MLPEncoder(3)))
    with pytest.raises(ValueError, match=r"data, torch.float64; got torch.float32: convert"):
        pv.elbo(model, guide, y, 10)
    assert pv.elbo(model, guide.to(torch.float64), y, 10).value.dtype == torch.float64


@pytest.mark.parametrize("share", [0.2, 20])
def test_a_share_of_rows_is_refused_with_rows(share: float) -> None:
    """As for `validation`; there is no array that could be passed alone."""
    assert _instead(share, (share,)).startswith("pass rows of data, with one row per datum")
    assert _instead(share, (torch.zeros(3), share)).endswith(f"as in lambda y: model(y, {share})")
