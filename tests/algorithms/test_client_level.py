"""Client-level clipping around FedAvg: joint norms, identities, and a clip that finds its quantile."""

import math
from dataclasses import replace
from typing import ClassVar

import pytest
import torch

from fedddp.aggregation import Pipeline, RingSum
from fedddp.aggregation.ring import fraction_bits, in_the_clear, needed
from fedddp.algorithms import FedAvg
from fedddp.algorithms.client_level import BIT, CLIP, ClientLevel, QuantileClip, clipped
from fedddp.comm import Comm
from fedddp.federation import federate
from fedddp.optim import SGD
from fedddp.setup.noise import LEAST_NOISE, NOISE_BEYOND
from fedddp.types import Cohort, LocalResult, Mean, ServerState, Update
from tests.helpers.support import assemble, few_digits, flat, logged  # noqa: F401

SIZES = (3, 9, 4, 6)
MODEL = {"model": {"name": "mlp", "hidden": 8}, "client": {"optimizer": {"lr": 0.1}}, "run": {"rounds": 3}}


class Moves:
    """A local training whose clients move by ``delta [K, D]``."""

    def __init__(self, delta, examples=None):
        self.delta = delta
        self.num_examples = torch.full((len(delta),), 5) if examples is None else examples

    def train(self, start, correct=None):
        figures = torch.zeros(len(self.delta), dtype=torch.float64)
        return LocalResult(start, self.delta, torch.ones(len(self.delta)), figures, figures)


class TwoVectors(FedAvg):
    """Sends a second vector of a third of the model's length, and remembers what it was given."""

    seen: ClassVar[list] = []

    def vectors(self, spec):
        return {"delta": spec.dim, "control": spec.dim // 3}

    def client_update(self, server, client, local):
        update, state, result = super().client_update(server, client, local)
        control = 2 * result.delta[:, : len(server.w) // 3]
        return Update({**update.vectors, "control": control}, update.weight), state, result

    def server_update(self, server, mean, cohort):
        self.seen.append((set(server.extra), set(mean.vectors), cohort.ids))
        return super().server_update(server, mean, cohort)


def updated(algorithm, delta, examples=None):
    server = algorithm.init_server(torch.zeros(delta.shape[1], dtype=delta.dtype), flat(delta.shape[1]))
    update, _, _ = algorithm.client_update(server, {}, Moves(delta, examples))
    return update


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def test_all_vectors_of_a_client_are_clipped_together():
    delta = torch.tensor([[3.0, 0, 4], [0.03, 0, 0.04]], dtype=torch.float64)
    update = updated(ClientLevel(TwoVectors(), 1.0, 1.0), delta)
    norm = math.sqrt(9 + 16 + 36)  # delta and twice its first entry
    rows = update.pack(("delta", "control"))
    torch.testing.assert_close(rows[0], torch.tensor([3.0, 0, 4, 6], dtype=torch.float64) / norm, rtol=1e-5, atol=0)
    assert rows[1].tolist() == [0.03, 0, 0.04, 0.06]  # within the clip: untouched
    assert update.weight.tolist() == [1, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_rounding_brings_a_norm_above_the_clip(dtype):
    clip, delta = 0.3, normal(400, 1000, dtype=dtype) * 10.0 ** normal(400, 1, seed=1, dtype=dtype)
    spikes = torch.zeros(400, 1000, dtype=dtype)
    spikes[:, 7] = 1 + normal(400, seed=2, dtype=dtype).abs()
    for moved in (delta, spikes):
        rows = updated(ClientLevel(FedAvg(), clip, 1.0), moved).vectors["delta"]
        assert (rows.double().norm(dim=1) <= clip).all()
        assert (rows.double().norm(dim=1) > clip * (1 - 2e-6))[moved.double().norm(dim=1) > clip].all()


def test_the_ring_takes_whatever_is_clipped_and_refuses_what_is_not_finite(logged):  # noqa: F811
    clip, delta = 0.3, torch.zeros(4, 6)
    delta[:, 2] = torch.tensor([1.0, -7.7, math.inf, 0.1])
    algorithm = ClientLevel(FedAvg(), clip, 1.0, QuantileClip(0.5, 0.2, 4.0, clip, 0.01))
    comm = Comm.alone()
    ring = RingSum(in_the_clear(comm), "cpu", bound=0.5, total_weight=4)
    pipeline = Pipeline(algorithm.vectors(flat(6)), ring, torch.tensor(SIZES), comm, denominator=4.0)
    server = algorithm.init_server(torch.zeros(6), flat(6))
    inbox = pipeline.open(Cohort(0, (0, 1, 2, 3), 4), server)
    update, _, result = algorithm.client_update(server, {}, Moves(delta))
    assert inbox.add((0, 1, 2, 3), update, result) == [0, 1, 3]
    mean, _ = inbox.mean()
    assert len(logged) == 1
    assert "client 2" in logged[0]
    assert float(mean.vectors["delta"][2]) == pytest.approx((0.3 - 0.3 + 0.1) / 4, abs=1e-6)
    assert float(mean.vectors[BIT]) == (-0.5 - 0.5 + 0.5) / 4


def test_weights_are_one_or_nothing():
    update = updated(ClientLevel(FedAvg(), 1.0, 1.0), normal(3, 6), torch.tensor([100, 0, 3]))
    assert update.weight.tolist() == [1, 0, 1]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weighting", ["uniform", "examples"])
def test_without_noise_and_under_a_huge_clip_it_is_fedavg_with_uniform_weights(tmp_path, momentum, weighting):
    plain = FedAvg("uniform", SGD(lr=1.0, momentum=momentum))
    inner = FedAvg(weighting, plain.server_optimizer)
    f, server = assemble(tmp_path, few_digits(sum(SIZES)), SIZES, **MODEL)
    ends = []
    for algorithm in (plain, ClientLevel(inner, 1e9, 0.0)):
        start = algorithm.init_server(server.w, server.spec)
        ends.append(federate(replace(f, algorithm=algorithm), start))
    assert not ends[0].w.equal(server.w)
    assert ends[0].w.equal(ends[1].w)


def test_the_inner_algorithm_sees_neither_the_wrappers_keys_nor_who_took_part():
    inner = TwoVectors(server_optimizer=SGD(lr=1.0, momentum=0.9))
    algorithm = ClientLevel(inner, 1.0, 1.0, QuantileClip(0.5, 0.2, 4, 8, 0.01))
    server = algorithm.init_server(torch.zeros(6), flat(6))
    own = set(server.extra) - {CLIP}
    assert len(own) == 1
    assert CLIP in server.extra
    assert algorithm.vectors(flat(6)) == {"delta": 6, "control": 2, BIT: 1}
    TwoVectors.seen.clear()
    mean = Mean({"delta": torch.ones(6), "control": torch.ones(2), BIT: torch.tensor([0.25])}, 4.0, None, 9)
    after = algorithm.server_update(server, mean, Cohort(0, (1, 3), 9))
    assert TwoVectors.seen == [(own, {"delta", "control"}, ())]
    assert set(after.extra) == {*own, CLIP}
    assert after.round == 1
    assert after.w.tolist() == [1.0] * 6
    assert float(after.extra[CLIP]) == pytest.approx(math.exp(-0.2 * 0.25))
    assert algorithm.personal_params(after, {}) is after.w


def test_the_noise_of_the_sum():
    server = ServerState(torch.zeros(6), flat(6))
    assert ClientLevel(TwoVectors(), 0.3, 2.0).noise_std(server) == {"delta": 0.6, "control": 0.6}
    adaptive = ClientLevel(FedAvg(), 0.3, 1.0, QuantileClip(0.5, 0.2, expected=100, largest=8, smallest=0.01))
    stds = adaptive.noise_std(replace(server, extra={CLIP: torch.tensor([0.5])}))
    assert stds == {"delta": pytest.approx(0.5 * 1.005037815, rel=1e-9), BIT: 5.0}  # Andrew et al. 2021
    assert adaptive.adaptive.largest_noise(1.0) == pytest.approx(8 * 1.005037815)
    silent = ClientLevel(FedAvg(), 0.3, 0.0, adaptive.adaptive)
    assert silent.noise_std(adaptive.init_server(torch.zeros(6), flat(6))) == {"delta": 0.0, BIT: 0.0}


@pytest.mark.parametrize(("sigma", "expected"), [(1, 100), (1, 2), (4, 3), (0.5, 1000), (30, 10)])
def test_clip_and_bit_together_cost_what_one_sigma_costs(sigma, expected):
    """Two Gaussian mechanisms of sensitivity 1 and 1/2 side by side have 1/sigma^2 = 1/z^2 + 1/(2 s)^2."""
    z, s = QuantileClip(0.5, 0.2, expected, 8, 0.01).split(sigma)
    assert 1 / z**2 + (0.5 / s) ** 2 == pytest.approx(1 / sigma**2)
    assert sigma <= z <= 1.1548 * sigma
    assert s >= expected / 20


@pytest.mark.parametrize("quantile", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("clip", [0.01, 7.0])
def test_the_clip_finds_the_quantile_of_the_norms(quantile, clip):
    """200 clients whose norms are exp(normal): their quantile is exp(Phi^-1(quantile)). The bits are noised."""
    n, lengths = 200, normal(200, 1, dtype=torch.float64).exp()
    algorithm = ClientLevel(FedAvg(), clip, 1.0, QuantileClip(quantile, 0.2, n, 8.0, 0.001))
    server = algorithm.init_server(torch.zeros(4, dtype=torch.float64), flat(4))
    moves = Moves(lengths * torch.tensor([[0.0, 0.6, 0.8, 0.0]], dtype=torch.float64))
    noise = normal(120, seed=5, dtype=torch.float64)
    found = []
    for t in range(120):
        std = algorithm.noise_std(server)[BIT]
        update, _, _ = algorithm.client_update(server, {}, moves)
        share = (update.vectors[BIT].sum(0) + std * noise[t]) / n
        mean = Mean({"delta": torch.zeros(4, dtype=torch.float64), BIT: share}, n, None, n)
        server = algorithm.server_update(server, mean, Cohort(t, (), n))
        found.append(algorithm.current_clip(server))
    late = torch.tensor(found[-40:]).log().mean().exp()
    assert float(late) == pytest.approx(float(lengths.quantile(quantile)), rel=0.05)


def test_the_clip_stays_within_its_bounds_and_starts_there():
    adaptive = QuantileClip(0.5, 0.2, 10, 8.0, 0.25)
    for clip in (0.25, 1.0, 8.0):
        assert ClientLevel(FedAvg(), clip, 1.0, adaptive).init_server(torch.zeros(3), flat(3)).extra[CLIP].tolist() == [
            clip
        ]
    for clip in (0.2499, 8.01, 20.0):
        with pytest.raises(ValueError, match=r"lies between 0\.25 and 8"):
            ClientLevel(FedAvg(), clip, 1.0, adaptive)
    up = down = 1.0
    for _ in range(400):
        up, down = adaptive.after(up, 0.0), adaptive.after(down, 1.0)
    assert (down, up) == (0.25, 8.0)


def private(folder, rounds=6, bits=64, bound=8.0, clip=1.0, lr=0.1, sigma=0.5, **adaptive):
    return assemble(
        folder,
        few_digits(sum(SIZES)),
        SIZES,
        model=MODEL["model"],
        client={"optimizer": {"lr": lr}},
        run={"rounds": rounds},
        privacy={
            "level": "client",
            "noise_multiplier": sigma,
            "clip": clip,
            "randomness": "seeded",
            "adaptive_clip": {"enabled": True, "lr": 2.0, **adaptive},
            "secure_aggregation": {"bound": bound, "bits": bits},
        },
    )


@pytest.mark.parametrize(("bound", "which"), [(0.0625, "largest"), (0.09, "largest")])
def test_a_clip_that_cannot_follow_any_further_is_said_once(tmp_path, logged, bound, which):  # noqa: F811
    f, server = private(tmp_path, bound=bound, clip=bound, quantile=0.9, lr=5.0)
    after = federate(f, server)
    assert f.algorithm.current_clip(after) == bound
    told = [line for line in logged if f"the {which} value allowed" in line]
    assert len(told) == 1
    assert f"privacy.secure_aggregation.bound={bound:g}" in told[0]
    assert "lr" not in told[0]


@pytest.mark.parametrize("bits", [32, 64])
def test_the_smallest_clip_leaves_noise_enough_for_the_ring(tmp_path, logged, bits):  # noqa: F811
    """Updates are all but zero: the clip falls as far as it may, and every rank's share of the noise stays good."""
    f, server = private(tmp_path, 60, bits=bits, lr=1e-12, sigma=0.003)
    adaptive, ring = f.algorithm.adaptive, f.pipeline.reduce
    after = federate(f, server)
    clip = f.algorithm.current_clip(after)
    assert clip == adaptive.smallest
    assert (clip > 8 * 2**-20) == (bits == 32)
    assert f.algorithm.noise_std(after)["delta"] * 2.0**ring.fraction_bits >= LEAST_NOISE
    assert len([line for line in logged if "the smallest value allowed" in line]) == 1


@pytest.mark.parametrize("bits", [32, 64])
def test_the_ring_has_room_for_the_largest_clip_not_only_for_the_first(tmp_path, bits):
    """The clip rises to 1024 times the first: in 32 bits its sums would not fit a ring for the first."""
    bound, sigma, first = 64.0, 2.0, 2.0**-4
    f, server = private(tmp_path, 12, bits=bits, bound=bound, clip=first, quantile=0.99, lr=50.0, sigma=sigma)
    noise, ring = NOISE_BEYOND * f.algorithm.adaptive.largest_noise(sigma), f.pipeline.reduce
    assert needed(bound, len(SIZES), ring.fraction_bits, noise) < 2 ** (bits - 1)
    small = fraction_bits(0.5, len(SIZES), bits, NOISE_BEYOND * sigma)  # of the first clip: its bits are +-1/2
    assert (needed(bound, len(SIZES), small, noise) >= 2 ** (bits - 1)) == (bits == 32)
    assert f.algorithm.current_clip(federate(f, server)) == bound


def test_what_is_too_long_to_be_scaled_becomes_nan_and_what_is_not_is_clipped():
    """The scale of 1000 entries of 3e38 is a denormal float32, with too few digits to keep a norm at the clip."""
    rows = torch.full((4, 1000), 3e38)
    rows[0, 5], rows[1, 5], rows[3] = math.inf, math.nan, 1e28
    vectors, within = clipped({"delta": rows}, 1.0)
    assert vectors["delta"][:3].isnan().all()
    assert not within.any()
    assert 1 - 2e-6 < float(vectors["delta"][3].double().norm()) <= 1


@pytest.mark.parametrize(("clip", "sigma"), [(0.0, 1.0), (-1.0, 1.0), (math.inf, 1.0), (math.nan, 1.0), (1.0, -1.0)])
def test_what_cannot_be_is_refused(clip, sigma):
    with pytest.raises(ValueError, match="cannot clip"):
        ClientLevel(FedAvg(), clip, sigma)
