"""A guide is a plain Pyro program with the density that its family has, whatever the map."""

import copy
import functools
import inspect
import math
import textwrap
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae._types import Batch, ProgramLike
from pyro_vae.guides import InferenceMap
from pyro_vae.guides.entry import posterior_of, program_of
from pyro_vae.guides.posteriors import FamilyPosterior, ProgramPosterior
from pyro_vae.programs import Program, as_batch, evaluating
from pyro_vae.programs.traces import run
from tests.helpers.cases import (
    CASES,
    NUM_DATA,
    Case,
    dependent,
    factor_analysis,
    gamma,
    normal,
    scalar,
)
from tests.helpers.guides import Net, vae
from tests.helpers.statistics import assert_mean

# In float64; sums of tens of terms of size one.
assert_exact = functools.partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)
UNSCALED = {name: case for name, case in CASES.items() if not name.startswith("scaled")}

float64 = pytest.mark.usefixtures("float64")


def amortized(case: Case, batch: Batch) -> pv.Guide:
    """A guide with a linear encoder."""
    return pv.Guide(case.program, pv.Encoder(Net.of(batch, 2 * case.latents)), example=batch)


def at_same_draw(guide: ProgramLike, program: Program, batch: Batch, seed: int) -> Tensor:
    """The flat latents `(1, batch, latents)` that a run of the guide draws at this seed."""
    pyro.set_rng_seed(seed)
    values = run(guide, batch).values(site.name for site in program.latent_sites)
    return program.flatten(values)[0][None]


# ---------------------------------------------------------------------- a plain Pyro program


@float64
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_trace_has_the_density_of_the_family(case: Case) -> None:
    """Every datum's log q in a trace is the family's, less the Jacobian of its supports."""
    batch = case.data()
    guide = amortized(case, batch)
    with evaluating(guide):
        run = guide.program.run_guide(guide, batch)
        posterior = guide.posterior(*batch)
    values = run.values(site.name for site in guide.program.latent_sites)
    z, log_jacobian = guide.program.flatten(values)
    loc, log_scale = posterior.parameters.chunk(2, dim=-1)
    expected = normal(z, loc, log_scale.exp()).sum(-1) - log_jacobian
    dim = guide.program.plate_dim
    log_q = sum(site.log_prob_by_datum(dim) for site in run.sites.values())
    assert_exact(log_q, expected)


@float64
def test_positive_latents_are_log_normal() -> None:
    """The change of variables, against a distribution that has it built in."""
    batch = CASES["gamma"].data()
    guide = amortized(CASES["gamma"], batch)
    loc, log_scale = guide.parameters_of(*batch).detach().unbind(-1)
    with evaluating(guide):
        trace = poutine.trace(guide).get_trace(*batch)
    expected = torch.distributions.LogNormal(loc, log_scale.exp()).log_prob(
        trace.nodes["rate"]["value"]
    )
    assert_exact(trace.log_prob_sum(), expected.sum())


@float64
@pytest.mark.parametrize("name", UNSCALED)
def test_trace_elbo_is_the_sum_of_log_weights(name: str) -> None:
    """Pyro accepts the pair with all its checks on, and its loss is ours at the same draw."""
    case = UNSCALED[name]
    batch = case.data()
    guide = amortized(case, batch)
    with evaluating(guide), pyro.validation_enabled(is_validate=True):
        pyro.set_rng_seed(3)
        loss = Trace_ELBO().loss(case.program, guide, *batch)
        z = at_same_draw(guide, guide.program, batch, seed=3)
        log_weights = guide.program.log_joint(z, *batch) - guide.posterior(*batch).log_prob(z)
    scale = 6 / NUM_DATA if name == "subsampled" else 1.0  # its plate says there are six
    assert loss == pytest.approx(-scale * log_weights.sum().item(), rel=1e-10)


@float64
def test_analytic_kl() -> None:
    """TraceMeanField_ELBO takes the KL of a mean-field Gaussian from its closed form."""
    model, y = vae(), torch.randn(NUM_DATA, 3)
    guide = pv.Guide(model, pv.Encoder(nn.Linear(3, 4)))
    with evaluating(model, guide):
        pyro.set_rng_seed(3)
        loss = TraceMeanField_ELBO().loss(model, guide, y)
        z = at_same_draw(guide, guide.program, (y,), seed=3)
        likelihood = guide.program.log_densities(z, y).likelihood
        loc, log_scale = guide.parameters_of(y).chunk(2, dim=-1)
    kl = (loc**2 + (2 * log_scale).exp() - 1 - 2 * log_scale).sum() / 2
    assert loss == pytest.approx((kl - likelihood.sum()).item(), rel=1e-10)


@float64
@pytest.mark.usefixtures("user_param_store")
def test_predictive() -> None:
    """Pyro's Predictive draws from the guide, then from the model."""
    model, y = vae(), torch.randn(NUM_DATA, 3)
    guide = pv.Guide(model, pv.Encoder(nn.Linear(3, 4)))
    draws = Predictive(poutine.uncondition(model), guide=guide, num_samples=400)(y)
    assert draws["y"].shape == (400, NUM_DATA, 3)
    assert_mean(draws["z"], guide.mean(y))
    assert_mean(draws["y"], model.decode(guide.mean(y)))  # the decoder is linear


# ---------------------------------------------------------------------- draws and means


@float64
@pytest.mark.parametrize("name", ["factor-analysis", "dependent", "gamma", "outer-data"])
def test_sample_and_mean(name: str) -> None:
    """Draws are flat and unconstrained, have the mean and the width of the family."""
    case = CASES[name]
    batch = case.data()
    guide = amortized(case, batch)
    draws, mean = guide.sample(batch, num_samples=4000), guide.mean(batch)
    loc, log_scale = guide.parameters_of(*batch).detach().chunk(2, dim=-1)
    assert draws.shape == (4000, NUM_DATA, case.latents)
    assert not draws.requires_grad
    assert not mean.requires_grad
    assert torch.equal(mean, loc)
    assert_mean(draws, loc)
    assert_mean((draws - loc) ** 2, (2 * log_scale).exp())


def test_seeded_draws() -> None:
    """With a seed the same draws, and the caller's stream stays; without one they differ."""
    guide, y = pv.Guide(vae(), pv.Encoder(nn.Linear(3, 4))), torch.randn(NUM_DATA, 3)
    stream = torch.get_rng_state()
    assert torch.equal(guide.sample(y, seed=1), guide.sample(y, seed=1))
    assert not torch.equal(guide.sample(y, seed=1), guide.sample(y, seed=2))
    assert torch.equal(torch.get_rng_state(), stream)
    assert not torch.equal(guide.sample(y), guide.sample(y))


def test_evaluation_leaves_the_encoder_alone() -> None:
    """Its BatchNorm does not see the data that are embedded, and training mode comes back."""
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    guide, y = pv.Guide(vae(), pv.Encoder(net)), torch.randn(5000, 3)  # more than one piece
    before = copy.deepcopy(guide.state_dict())
    mean = guide.mean(y)
    guide.sample(y, 2)
    assert guide.training
    for name, value in guide.state_dict().items():
        assert torch.equal(value, before[name]), name
    torch.testing.assert_close(mean[4990:], guide.mean(y[4990:]))


def test_data_may_be_arrays() -> None:
    """One array, or a tuple of tensors and arrays with the same number of rows."""
    case = CASES["covariate"]
    batch = case.data()
    guide = amortized(case, batch)
    mixed = (batch[0], batch[1].double().numpy())
    torch.testing.assert_close(guide.mean(mixed), guide.mean(batch))
    with pytest.raises(TypeError, match=r"got list at position 1: pass torch\.tensor"):
        inspect.unwrap(as_batch)((batch[0], [1.0]))  # around the check of types in tests
    with pytest.raises(TypeError, match=r"pad_sequence\(y, batch_first=True\) and the lengths"):
        inspect.unwrap(as_batch)([torch.ones(2), torch.ones(3)])


# ---------------------------------------------------------------------- programs written by hand


NET = nn.Linear(4, 4)


def by_hand(y: Tensor) -> None:
    """What `Guide` does for factor analysis."""
    loc, log_scale = NET.to(y)(y).chunk(2, dim=-1)
    with pyro.plate("data", len(y)):
        pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


@float64
def test_a_program_is_the_guide() -> None:
    """The same draws, densities and means as the `Guide` with that network."""
    y, z = torch.randn(NUM_DATA, 4), torch.randn(7, NUM_DATA, 2)
    guide = pv.Guide(factor_analysis, pv.Encoder(NET.double()), example=y)
    ours = posterior_of(guide, guide.program, (y,))
    program = posterior_of(by_hand, guide.program, (y,))
    assert isinstance(ours, FamilyPosterior)
    assert isinstance(program, ProgramPosterior)
    assert_exact(program.log_prob(z), ours.log_prob(z))
    drawn = []
    for posterior in (ours, program):
        pyro.set_rng_seed(5)
        drawn.append(posterior.draw(7))
    assert_exact(drawn[1], drawn[0])
    for posterior in (ours, program):
        row = posterior.rows(slice(2, 3))
        assert len(row) == 1
        assert_exact(row.log_prob(z[:, 2:3]), ours.log_prob(z)[:, 2:3])
    assert_mean(program.draw(4000)[0], ours.mean())


@float64
def test_a_program_with_two_sites() -> None:
    """Sites in any order; the second may depend on the first, unlike in a mean-field family."""

    def guide(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            b = pyro.sample("b", dist.Normal(y[:, None].expand(-1, 2), 0.3).to_event(1))
            pyro.sample("a", dist.Normal(b.sum(-1), 0.2))

    y, z = torch.randn(NUM_DATA), torch.randn(7, NUM_DATA, 3)
    posterior = posterior_of(guide, Program(dependent, y), (y,))
    a, b = z[..., 0], z[..., 1:]
    expected = normal(b, y[:, None], 0.3).sum(-1) + normal(a, b.sum(-1), 0.2)
    assert_exact(posterior.log_prob(z), expected)
    drawn, log_q = posterior.draw(7)
    assert_exact(posterior.log_prob(drawn), log_q)


@float64
def test_a_program_on_a_constrained_support() -> None:
    """The density is that of the flat unconstrained vector: here of the logarithm of a rate."""

    def guide(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            pyro.sample("rate", dist.Gamma(2 + y, 4.0))

    y, z = torch.arange(NUM_DATA) * 1.0, torch.randn(7, NUM_DATA, 1)
    program = Program(gamma, y)
    posterior = posterior_of(guide, program, (y,))
    rate = z[..., 0].exp()
    expected = torch.distributions.Gamma(2 + y, torch.tensor(4.0)).log_prob(rate) + z[..., 0]
    assert_exact(posterior.log_prob(z), expected)
    # This is the posterior, so every weight is the evidence (a negative binomial).
    drawn, log_q = posterior.draw(7)
    evidence = torch.distributions.NegativeBinomial(2.0, torch.tensor(0.25)).log_prob(y)
    log_weights = program.log_joint(drawn, y) - log_q
    assert_exact(log_weights, evidence.expand(7, -1))


@float64
def test_an_auxiliary_site() -> None:
    """A site that the model does not have is welcome where it is marked: here the noise."""

    def guide(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            noise = pyro.sample("noise", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(y + 0.5 * noise, log_density=math.log(2)))

    y = torch.randn(NUM_DATA)
    posterior = posterior_of(guide, Program(scalar, y), (y,))
    z, log_q = posterior.draw(7)
    assert_exact(log_q, normal(z[..., 0], y, 0.5))
    with pytest.raises(
        ValueError, match=r"auxiliary site 'noise', so the guide's density at a given"
    ):
        posterior.log_prob(z)


def misses(y: Tensor) -> None:
    """Has one of two sites."""
    with pyro.plate("data", len(y)):
        pyro.sample("a", dist.Normal(y, 1.0))


def adds(y: Tensor) -> None:
    """Has a site too many."""
    with pyro.plate("data", len(y)):
        pyro.sample("a", dist.Normal(y, 1.0))
        pyro.sample("b", dist.Normal(y[:, None].expand(-1, 2), 1.0).to_event(1))
        pyro.sample("c", dist.Normal(y, 1.0))


def joint_over_rows(y: Tensor) -> None:
    """Opens no plate, and takes the rows for one event."""
    pyro.sample("a", dist.Normal(y, 1.0).to_event(1))
    pyro.sample("b", dist.Normal(y[:, None].expand(-1, 2), 1.0).to_event(2))


@pytest.mark.parametrize(
    ("guide", "message"),
    [
        (misses, r"lacks \['b'\]; got the sites \['a'\]: add pyro\.sample"),
        (adds, r"samples site 'c', but .*\['a', 'b'\].*is_auxiliary"),
        (joint_over_rows, r"site 'a' of the guide .* for 14 rows: sample this site inside "),
    ],
)
def test_programs_that_do_not_fit(guide: ProgramLike, message: str) -> None:
    """Named by the site at fault, with the remedy."""
    y = torch.randn(7)
    posterior = posterior_of(guide, Program(dependent, y), (y,))
    with pytest.raises(ValueError, match=message):
        posterior.draw(2)


def test_program_of() -> None:
    """A guide knows the structure of its own model, be it a method; another is refused."""
    y = torch.randn(NUM_DATA)
    guide = pv.Guide(scalar, pv.GlobalParameters(), example=y)
    assert program_of(scalar, guide, (y,)) is guide.program
    with pytest.raises(
        ValueError, match=r"have the sizes \{'z': 1\}, .* have the sizes \{'a': 1, 'b': 2\}"
    ):
        program_of(dependent, guide, (y,))
    owner = Owner()
    guide = pv.Guide(owner.model, pv.GlobalParameters(), example=y)
    assert program_of(owner.model, guide, (y,)) is guide.program


class Owner:
    """An object with a program."""

    def model(self, y: Tensor) -> None:
        """The scalar program."""
        scalar(y)


# ---------------------------------------------------------------------- maps


def test_a_trunk_gets_a_head() -> None:
    """A network that says how many features it gives serves a family of any size."""
    trunk = pv.nets.MLPEncoder(3, hidden=(7,))
    guide = pv.Guide(vae(), pv.Encoder(trunk))
    assert guide.parameters_of(torch.zeros(NUM_DATA, 3)).shape == (NUM_DATA, 4)
    assert {name for name, _ in guide.named_parameters()} > {"map.head.weight", "map.head.bias"}


def test_a_wrong_output_size() -> None:
    """The message says how many outputs the last layer needs."""
    guide = pv.Guide(vae(), pv.Encoder(nn.Linear(3, 5)))
    with pytest.raises(
        ValueError, match=r"must return shape \(2, 4\), .* got shape \(2, 5\): change the last"
    ):
        guide.mean(torch.zeros(2, 3))


def test_a_wrong_number_of_features() -> None:
    """A trunk that says another number than it gives is named, not a product's shapes."""
    trunk = nn.Linear(3, 5)
    trunk.num_features = 7  # type: ignore[assignment]
    guide = pv.Guide(vae(), pv.Encoder(trunk))
    with pytest.raises(ValueError, match=r"num_features = 7, but returns shape \(2, 5\)"):
        guide.mean(torch.zeros(2, 3))


def test_a_net_in_another_precision() -> None:
    """A trunk that computes in float32 gives the parameters of a model in float64."""

    class Trunk(nn.Linear):
        num_features = 5

        def forward(self, y: Tensor) -> Tensor:
            return super().forward(y.float())

    guide = pv.Guide(vae().double(), pv.Encoder(Trunk(3, 5, dtype=torch.float32)))
    y = torch.zeros(2, 3, dtype=torch.float64)
    assert guide.mean(y).dtype == torch.float64
    pv.fit(guide.model, guide, y, num_epochs=1, progress=False)


def test_a_map_belongs_to_one_guide() -> None:
    """A second guide would train the first one's parameters."""
    shared = pv.GlobalParameters()
    pv.Guide(vae(), shared)
    with pytest.raises(ValueError, match="this GlobalParameters already belongs to a guide"):
        pv.Guide(vae(), shared)


@pytest.mark.parametrize(
    ("map", "wrong", "right"),
    [
        (pv.ExactPosterior, pv.LowRankNormal(), None),
        (pv.CoordinateAscent, pv.FullRankNormal(), None),
        (lambda: pv.Refined(pv.ExactPosterior()), pv.LowRankNormal(), pv.FullRankNormal()),
    ],
)
def test_a_map_of_a_refused_guide_stays_free(
    map: Callable[[], InferenceMap], wrong: Any, right: Any
) -> None:
    """The corrected call was refused as well: the map already belonged to a guide."""
    one, y = map(), torch.zeros(3)
    with pytest.raises(TypeError, match="family"):
        pv.Guide(scalar, one, wrong, example=y)
    assert pv.Guide(scalar, one, right, example=y).mean(y).shape == (3, 1)


def test_modules_that_are_families_say_how_they_are_set_up() -> None:
    """Parameters that nobody creates, copies or moves would be lost: refused, with the remedy."""

    class Learned(nn.Module):
        normal = pv.DiagonalNormal()

        def num_parameters(self, latent_dim: int) -> int:
            return self.normal.num_parameters(latent_dim)

        def initial(self, loc: Tensor, scale: float = 1.0) -> Tensor:
            return self.normal.initial(loc, scale)

        def forward(self, parameters: Tensor) -> Any:
            return self.normal(parameters)

    class SetUp(Learned, pv.guides.TrainableFamily):
        def setup(self, latent_dim: int) -> None:
            self.latent_dim, self.shift = latent_dim, nn.Parameter(torch.zeros(latent_dim))

    with pytest.raises(TypeError, match=r"derive the class from pv\.guides\.TrainableFamily"):
        pv.Guide(vae(), pv.GlobalParameters(), Learned())
    guide = pv.Guide(vae(), pv.GlobalParameters(), SetUp())
    assert {name for name, _ in guide.named_parameters()} == {"map.value", "family.shift"}
    with pytest.raises(ValueError, match="this SetUp already belongs to a guide"):
        pv.Guide(vae(), pv.GlobalParameters(), guide.family)


def test_global_parameters() -> None:
    """One row for all data, which starts at the prior."""
    guide = pv.Guide(vae(), pv.GlobalParameters())
    parameters = guide.parameters_of(torch.randn(NUM_DATA, 3))
    assert torch.equal(parameters, torch.zeros(NUM_DATA, 4))
    assert [value.shape for value in guide.parameters()] == [(4,)]


def test_the_map_of_the_docstring() -> None:
    """The example of a map of one's own runs as it is printed."""
    text = (inspect.getdoc(InferenceMap) or "").partition("::")[2]
    names: dict[str, type[InferenceMap]] = {}
    exec(textwrap.dedent(text), {"pv": pv, "nn": nn}, names)
    guide = pv.Guide(vae(), names["Constant"]())
    assert torch.equal(guide.mean(torch.randn(NUM_DATA, 3)), torch.zeros(NUM_DATA, 2))
    assert [name for name, _ in guide.named_parameters()] == ["map.value"]
