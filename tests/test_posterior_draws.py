"""Draws from the posterior: their moments, those of a guide beside them, and chains."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae import stats
from pyro_vae.diagnostics.local import doubts_of_draws
from pyro_vae.evidence import (
    RUNGS,
    Inference,
    LadderMarginal,
    LogMarginal,
    Population,
    Rung,
    Source,
)
from pyro_vae.evidence.power_tails import tail_powers
from pyro_vae.evidence.weights import conditioned, systematic
from pyro_vae.guides import FamilyPosterior
from pyro_vae.inference_data import trusted
from pyro_vae.results import Doubt
from tests.helpers.factor_analysis import model_of, posterior_guide
from tests.helpers.statistics import FACTS, assert_coverage, assert_mean
from tests.trust.lines import Line, flat, heavy

pytestmark = pytest.mark.usefixtures("float64")

OFF = 0.5  # of the guide's mean, in each latent


class Shifted(nn.Module):
    """The exact posterior, moved."""

    def forward(self, y: Tensor) -> Tensor:
        """Parameters of a full-rank normal."""
        exact = FACTS.posterior(y)
        factor = exact.scale_tril.expand(len(y), 2, 2)
        return torch.stack([
            *(exact.loc + OFF).unbind(dim=-1),
            factor[:, 0, 0].log(), factor[:, 1, 0], factor[:, 1, 1].log(),
        ], dim=-1)  # fmt: skip


def test_a_large_shift_has_the_error_of_the_standard_deviation(parts: tuple[Any, Tensor]) -> None:
    """Twenty standard deviations off, all of the error is that of the unit that it is given in."""
    draws, y = parts
    sd = FACTS.posterior(y).covariance_matrix.diagonal(dim1=-2, dim2=-1).sqrt()
    far = draws.guide_mean._replace(value=draws.guide_mean.value + 20 * sd)
    moved = dataclasses.replace(draws, guide_mean=far)
    z = (moved.value - OFF / sd - 20) / moved.error
    assert_mean(z.square(), 1.0)
    without = stats.difference(far, draws.posterior_mean).error / draws.posterior_sd.value
    # The wrong twin's errors are four times too small: 80 squares of them average 17.
    assert float((z * moved.error / without).square().mean()) > 6


@pytest.fixture(scope="module")
def parts() -> tuple[Any, Tensor]:
    """Draws for forty data, and the data."""
    torch.manual_seed(0)
    with torch.random.fork_rng():
        y = FACTS.sample(40)
    model = model_of(FACTS)
    guide = pv.Guide(model, pv.Encoder(Shifted()), pv.FullRankNormal(), example=y)
    return pv.posterior_draws(model, guide, y, num_samples=400), y


def test_moments_are_those_of_the_posterior(parts: tuple[Any, Tensor]) -> None:
    """Divided by their errors they are standard normal; the guide's own mean is not."""
    draws, y = parts
    exact = FACTS.posterior(y)
    z = (draws.posterior_mean.value - exact.loc) / draws.posterior_mean.error
    assert_mean(z, 0.0)
    assert_mean(z.square(), 1.0)
    sd = exact.covariance_matrix.diagonal(dim1=-2, dim2=-1).sqrt()
    assert_mean((draws.posterior_sd.value - sd) / draws.posterior_sd.error, 0.0)
    with pytest.raises(AssertionError, match="resolution"):
        assert_mean((draws.guide_mean.value - exact.loc) / draws.guide_mean.error, 0.0)


def test_the_guide_is_said_to_be_off_by_what_it_is(parts: tuple[Any, Tensor]) -> None:
    """Shift and scale, over their errors."""
    draws, y = parts
    sd = FACTS.posterior(y).covariance_matrix.diagonal(dim1=-2, dim2=-1).sqrt()
    assert_mean((draws.value - OFF / sd) / draws.error, 0.0)
    assert_mean((draws.scale.value - 1) / draws.scale.error, 0.0)
    parts_of = (draws.value - OFF / sd) / draws.error, (draws.scale.value - 1) / draws.scale.error
    z = torch.cat(parts_of, dim=1)
    assert_mean(z.square(), 1.0)
    with pytest.raises(AssertionError, match="resolution"):
        assert_mean((2.5 * z).flatten().square(), 1.0)  # the wrong twin: errors too small
    assert "posterior standard deviations off" in draws.summary()


def test_draws_are_draws(parts: tuple[Any, Tensor]) -> None:
    """Whitened by the exact posterior: mean 0, second moments 1; those not resampled are not."""
    draws, y = parts
    exact = FACTS.posterior(y)
    white = torch.linalg.solve(exact.scale_tril, (draws.z - exact.loc).unsqueeze(-1))[..., 0]
    assert_mean(white.mean(dim=0), 0.0)
    assert_mean(white.square().mean(dim=0), 1.0)
    idata = draws.to_inference_data()
    assert dict(idata["posterior"]["z"].sizes) == {
        "chain": 1, "draw": 400, "datum": 40, "latent": 2,
    }  # fmt: skip


def population(apart: float) -> Population:
    """Eight islands of 64 standard normals, the last of which lies elsewhere."""
    z = torch.randn(8, 64, 2, 3)
    z[-1] += apart
    zero = torch.zeros(2)
    marginal = LogMarginal(zero, zero, zero, zero, zero.long())
    return Population(marginal, z, torch.zeros(8, 2))


def test_equal_data_of_two_rungs_have_draws_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rung counts equal rows anew, so that a stream for all rungs would draw alike."""
    whole, twins = pv.Tightest.sampled_with_sources, FACTS.sample(1).repeat(2, 1)

    def apart(ladder: pv.Tightest, inference: Inference, **options: Any) -> Any:
        marginal, ((rows, source),) = whole(ladder, inference, **options)
        rung = torch.tensor([RUNGS.index(Rung.GUIDE), RUNGS.index(Rung.FITTED)])
        sources = [(rows[[row]], source.rows(rows[[row]])) for row in (0, 1)]  # type: ignore[union-attr]
        return dataclasses.replace(marginal, rung=rung), sources

    monkeypatch.setattr(pv.Tightest, "sampled_with_sources", apart)
    model = model_of(FACTS)
    guide = pv.Guide(model, pv.Encoder(Shifted()), pv.FullRankNormal(), example=twins)
    draws = pv.posterior_draws(model, guide, twins, num_samples=50)
    assert not (draws.z[:, 0] == draws.z[:, 1]).any()


@pytest.mark.parametrize("apart", [0.0, 2.0])
def test_islands_that_are_apart_are_said_to_be(apart: float, seed: int) -> None:
    """By R-hat; a false alarm is one in thousands."""
    torch.manual_seed(seed)
    drawn = trusted._of_population(population(apart), 100)
    assert drawn.z.shape == (100, 2, 3)
    assert bool((drawn.r_hat > trusted.MAX_RHAT).all()) == (apart > 0)
    assert float((drawn.mean.value - apart / 8).abs().max()) < 6 * float(drawn.mean.error.max())


def test_islands_count_by_their_weights(seed: int) -> None:
    """Of eight islands one has all of the weight: only its own particles are effective."""
    torch.manual_seed(seed)
    even = population(0.0)
    one = dataclasses.replace(
        even, log_evidence=torch.zeros(8, 2).index_fill(0, torch.tensor([7]), 50.0)
    )
    ratio = trusted._of_population(one, 100).ess / trusted._of_population(even, 100).ess
    torch.testing.assert_close(ratio, torch.full_like(ratio, 1 / 8))


@dataclasses.dataclass(frozen=True)
class OnlyIslands(pv.Tightest):
    """Accepts a tempered population for all data, half of them at a time and out of order."""

    sizes: tuple[int, int] = (64, 64)  # particles of the two halves
    apart: float = 0.0  # by how much the first island is off in the last latent of the last datum

    def sampled_with_sources(
        self, inference: Inference, *, seed: int, progress: bool | None
    ) -> tuple[LadderMarginal, list[tuple[Tensor, Source]]]:
        """Estimates and sources of the second half of the data, then of the first."""
        middle, end = len(inference.batch[0]) // 2, len(inference.batch[0])
        halves = [torch.arange(middle, end), torch.arange(middle)]
        sources: list[tuple[Tensor, Source]] = []
        for rows, size in zip(halves, self.sizes, strict=True):
            tempering = pv.TemperedSMC(num_islands=4, num_particles=size)
            part = tempering.populations(inference.rows(rows), seed=seed, progress=progress)
            part.z[0, :, -1, -1] += self.apart * bool(rows[-1] == end - 1)
            sources.append((rows, part))
        nothing = torch.zeros(end)
        rung = torch.full((end,), RUNGS.index(Rung.TEMPERED))
        marginal = LadderMarginal(
            nothing, nothing, nothing, nothing, nothing.long(), doubts={}, rung=rung
        )
        return marginal, sources


@pytest.mark.parametrize(
    ("freedom", "covers"), [((1.0, 2.0), False), ((1.5, 1.0), False), ((2.0, 3.0), True)]
)
def test_islands_doubt_standard_deviations_under_flat_tails(
    freedom: tuple[float, float], *, covers: bool
) -> None:
    """With t prior and likelihood the density falls as the sum of both degrees plus two.

    Up to the power 5 the error of a standard deviation is infinite. Before, none was doubted.
    """

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            prior = dist.StudentT(freedom[0], y.new_zeros(2), 1.0).to_event(1)
            z = pyro.sample("z", prior)
            pyro.sample("y", dist.StudentT(freedom[1], z, 1.0).to_event(1), obs=y)

    y = torch.tensor([[0.5, 1.0], [2.0, -1.0]])
    guide = pv.Guide(model, pv.GlobalParameters(), example=y)
    draws = pv.posterior_draws(model, guide, y, ladder=OnlyIslands())
    assert draws.sd_covers.unique().tolist() == [covers]
    if not covers:
        assert Doubt.SD_TAIL.value in draws.why_not(0)


POWERS = {
    "normal": (dist.Normal(torch.zeros(2), 1.0).to_event(1), 1e3, torch.inf),
    "independent t": (dist.StudentT(3.0, torch.zeros(2), 1.0).to_event(1), 3.99, 4.01),
    "multivariate t": (
        dist.MultivariateStudentT(torch.tensor(3.0), torch.zeros(2), torch.eye(2)), 3.99, 4.01,
    ),
    "Gamma": (dist.Gamma(torch.ones(2), 1.0).to_event(1), 100.0, torch.inf),
}  # fmt: skip


@pytest.mark.parametrize(("prior", "least", "most"), POWERS.values(), ids=POWERS)
def test_powers_of_tails(prior: Any, least: float, most: float) -> None:
    """The density of each latent falls as its degrees of freedom plus one; others fall faster."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            pyro.sample("z", prior)
            pyro.sample("y", dist.Normal(y.new_zeros(()), 1.0), obs=y)

    y = torch.zeros(3)
    guide = pv.Guide(model, pv.GlobalParameters(), example=y)
    with conditioned(model, guide, y, 0) as inference:
        powers = tail_powers(inference, torch.zeros(3, 2), torch.ones(3, 2))
    assert powers.shape == (3, 2)
    assert least < float(powers.min()) <= float(powers.max()) <= most


def weighted_mean(idata: Any, *, weigh: bool) -> Tensor:
    """Mean over islands and particles of every datum and latent, as a user of ArviZ computes it."""
    z = torch.tensor(idata["posterior"]["z"].values).flatten(0, 1)
    log_weight = torch.tensor(idata["sample_stats"]["log_weight"].values).flatten(0, 1)
    shares = log_weight.mul(weigh).softmax(dim=0)
    return (shares.unsqueeze(-1) * z).sum(dim=0)


@pytest.fixture(scope="module")
def of_islands() -> Callable[[float], Any]:
    """Draws of four data that come from islands, one of which may be off for the last datum."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        y = FACTS.sample(4)
    model = model_of(FACTS)
    guide = posterior_guide(model, y)
    return lambda apart: pv.posterior_draws(
        model, guide, y, num_samples=40, ladder=OnlyIslands(apart=apart)
    )


def test_islands_are_the_chains_of_arviz(of_islands: Callable[[float], Any]) -> None:
    """R-hat is that of ArviZ for the chains given; weighted, they have the mean that is stated."""
    draws = of_islands(0.0)
    idata = draws.to_inference_data()
    assert dict(idata["posterior"]["z"].sizes) == {"chain": 4, "draw": 64, "datum": 4, "latent": 2}
    assert idata["diagnostics"]["r_hat"].dims == ("datum", "unconstrained")
    assert idata["posterior"].attrs["num_samples"] == 256
    assert "independent populations" in idata["posterior"].attrs["chains"]
    chains = torch.tensor(idata["posterior"]["z"].values)
    found = torch.tensor(idata["diagnostics"]["r_hat"].values)
    rhat = stats.chains._diagnostic("rhat", "rank")  # ArviZ's own
    for datum, latent in [(0, 0), (3, 1)]:
        assert float(found[datum, latent]) == rhat(chains[..., datum, latent].numpy())
    torch.testing.assert_close(found, draws.r_hat, rtol=0, atol=0)
    right, wrong = (weighted_mean(idata, weigh=weigh) for weigh in (True, False))
    torch.testing.assert_close(right, draws.posterior_mean.value, rtol=0, atol=1e-12)
    assert float((wrong - right).abs().max()) > 1e-4  # the twin that takes islands to be equal


def test_an_island_elsewhere_is_seen_in_what_arviz_gets(
    of_islands: Callable[[float], Any],
) -> None:
    """In one latent of one datum, and in no other."""
    together, apart = (of_islands(shift) for shift in (0.0, 5.0))
    before, after = (
        torch.tensor(draws.to_inference_data()["diagnostics"]["r_hat"].values)
        for draws in (together, apart)
    )
    assert (after - before > 0.1).nonzero().tolist() == [[3, 1]]
    assert apart.why_not(3) == [Doubt.CHAINS_APART.value]
    some, chains = apart[torch.tensor([3, 0])].chains, apart.chains
    torch.testing.assert_close(some.sites["z"], chains.sites["z"][:, :, [3, 0]])
    torch.testing.assert_close(some.log_evidence, chains.log_evidence[:, [3, 0]])


def test_without_chains_for_all_data_it_is_said_why(parts: tuple[Any, Tensor]) -> None:
    """Draws of a proposal are one chain and have no R-hat; islands of two sizes are one chain."""
    idata = parts[0][:3].to_inference_data()
    assert idata["posterior"].sizes["chain"] == 1
    assert bool(idata["diagnostics"]["r_hat"].isnull().all())
    assert "draws of 3 of 3 data come from a proposal" in idata["posterior"].attrs["chains"]
    y = parts[1][:2]
    model = model_of(FACTS)
    ladder = OnlyIslands(sizes=(64, 32))
    mixed = pv.posterior_draws(model, posterior_guide(model, y), y, num_samples=40, ladder=ladder)
    idata = mixed.to_inference_data()
    assert idata["posterior"].sizes["chain"] == 1
    assert not bool(idata["diagnostics"]["r_hat"].isnull().any())
    assert "the size of islands differs" in idata["posterior"].attrs["chains"]


def test_a_datum_with_chains_apart_is_doubted(parts: tuple[Any, Tensor]) -> None:
    """And no other."""
    draws, _ = parts
    r_hat = torch.ones_like(draws.r_hat)
    r_hat[3, 1] = 1.2
    doubted = dataclasses.replace(draws, r_hat=r_hat)
    assert (~doubted.reliable).nonzero().tolist() == [[3]]
    assert doubted.why_not(3) == [Doubt.CHAINS_APART.value]


def narrow(line: Line, y: Tensor) -> Inference:
    """A Gaussian with the moments of each posterior, whose tails are those of no power law."""
    guide = pv.Guide(line.model, pv.GlobalParameters(), example=y)
    mean, sd = line.posterior(y)
    with conditioned(line.model, guide, y, 0) as (program, _, batch):
        parameters = torch.stack([mean, sd.log()], dim=-1)
        return Inference(program, FamilyPosterior(pv.DiagonalNormal(), parameters), batch)


def test_standard_deviations_under_power_laws_have_errors_that_cover() -> None:
    """Draws of the prior reach their tails; the wrong twin has none of them.

    400 intervals at 2,000 draws, of eight posteriors whose density falls as the power -5.
    """
    line = heavy()["5 of t(1), t(2)"]
    inference = narrow(line, torch.linspace(-1.5, 2.0, 8))
    _, sd = line.posterior(inference.batch[0])

    def covered(inference: Inference) -> Tensor:
        estimator = pv.ImportanceSampling(2000)
        runs = (trusted._of_proposal(estimator, inference, 2, seed).sd for seed in range(50))
        return torch.cat([(run.value[:, 0] - sd).abs() < 1.96 * run.error[:, 0] for run in runs])

    assert_coverage(covered(trusted._defended(inference, 0.1)))
    with pytest.raises(AssertionError, match="intervals hold the truth"):
        assert_coverage(covered(inference))


def test_a_standard_deviation_that_few_draws_dominate_is_doubted() -> None:
    """The density falls as |z|^-3.5, so squares have no variance: an error means nothing.

    Of posteriors that fall as the power -10 few are doubted.
    """
    trust = []
    for line in (flat()["3.5 of t(2.5)"], heavy()["10 of t(4), t(4)"]):
        inference = trusted._defended(narrow(line, torch.linspace(-1.5, 2.0, 8)), 0.1)
        runs = (
            trusted._of_proposal(pv.ImportanceSampling(5000), inference, 2, seed)
            for seed in range(5)
        )
        trust.append(float(torch.cat([run.sd_covers for run in runs]).double().mean()))
    assert trust[0] < 0.5 < 0.9 < trust[1]


def test_a_mode_that_only_quadrature_finds_is_missed_by_no_trusted_draws() -> None:
    """The measurement is 400 scales away from the prior, and no draw of the prior leads to it.

    With 99% of the mass there, the mean is 397.
    """
    line, y = heavy()["5 of t(1), t(2)"], torch.tensor([400.0, 1.0])
    guide = pv.Guide(line.model, pv.GlobalParameters(), example=y)
    draws = pv.posterior_draws(line.model, guide, y, num_samples=2)
    far, _ = draws.posterior_mean.value[:, 0].tolist()
    assert abs(far - 397) < 10 or Doubt.RUNGS_DISAGREE.value in draws.why_not(0)
    assert bool(draws.reliable[1])


def test_a_doubted_standard_deviation_leaves_the_draws_in_trust(parts: tuple[Any, Tensor]) -> None:
    """A datum is unreliable because of one of its latents; tests that use draws alone go on."""
    draws, _ = parts
    assert bool(draws.sd_covers.all())
    covers = draws.sd_covers.clone()
    covers[3, 1] = False
    doubted = dataclasses.replace(draws, sd_covers=covers)
    assert doubted.why_not(3) == [Doubt.SD_TAIL.value]
    assert (~doubted.reliable).nonzero().tolist() == [[3]]
    assert not any(bool(mask.any()) for mask in doubts_of_draws(doubted).values())


def test_r_hat_takes_chains() -> None:
    """One is no chain to compare."""
    with pytest.raises(ValueError, match="at least 2 chains of at least 4 draws"):
        stats.rank_r_hat(torch.zeros(1, 100))


def test_without_weights_all_particles_count_equally() -> None:
    """If no weight is above 0, or one is nan, there is nothing to choose by."""
    log_weights = torch.tensor([[0.0, 0.0, 1.0, 3.0]] * 3).T.log()
    log_weights[:, 1] = -torch.inf
    log_weights[2, 2] = torch.nan
    chosen = systematic(log_weights, torch.full((3,), 0.5), 4).T.tolist()
    assert chosen == [[2, 3, 3, 3], [0, 1, 2, 3], [0, 1, 2, 3]]


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_the_share_of_the_prior_is_the_one_asked_for(share: float) -> None:
    """Draws of (1 - s) q + s p(z), with q exact: ESS over draws is 1 over the mean squared weight.

    The twin, the ESS of the default share, is not within a tenth of it.
    """

    def line(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 0.5), obs=y)

    y, grid = torch.tensor([0.0, 1.0, 3.0]), torch.linspace(-8, 8, 4001)
    guide = pv.Guide(line, pv.ExactPosterior(), example=y)
    own = dist.Normal(y[:, None] / 1.25, 0.2**0.5).log_prob(grid).exp()
    mixed = (1 - share) * own + share * dist.Normal(0.0, 1.0).log_prob(grid).exp()
    expected = 1 / torch.trapezoid(own.square() / mixed, grid)
    asked, default = (
        pv.posterior_draws(line, guide, y, num_samples=5000, ladder=ladder).ess / 5000
        for ladder in (pv.Tightest(1000, prior_share=share), pv.Tightest(1000))
    )
    torch.testing.assert_close(asked, expected, rtol=0.1, atol=0)
    assert ((default / expected - 1).abs() > 0.1).all()
