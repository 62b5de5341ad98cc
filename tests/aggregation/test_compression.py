"""fedddp.aggregation.compression on one rank: what comes out of a sum of compressed rows, and what clients remember."""

import math

import pytest
import torch
from torch import nn

from fedddp.aggregation.compression import COMPRESSIONS, Columns, Int8, NoCompression, PowerSGD, RandomK, TopK
from fedddp.aggregation.compression.int8 import levels
from fedddp.aggregation.compression.packing import SparseCode
from fedddp.flat import FlatSpec
from fedddp.rng import generator
from tests.helpers.compressing import LAYOUT, LENGTH, SPEC, WEIGHT, Run, plain_sum, updates

METHODS = [Int8(bucket=64), RandomK(share=0.2), TopK(share=0.1), TopK(share=0.1, values="float32"), PowerSGD(rank=2)]


def test_columns_leave_statistics_and_what_is_no_model_alone():
    """Compressed is what trains; not BatchNorm's running mean and variance, nor tau."""
    columns = Columns.of(LAYOUT, SPEC)
    assert (columns.compressed, columns.plain) == (SPEC.num_trainable, 2 * 20 + 1)
    both = Columns.of({"delta": SPEC.dim, "tau": 1, "control": SPEC.num_trainable}, SPEC)
    assert (both.compressed, both.plain) == (2 * SPEC.num_trainable, 41)
    matrices = PowerSGD(rank=2).columns(LAYOUT, SPEC)
    assert [shape for _, shape in matrices.tensors] == [(20, 30), (10, 20)]


@pytest.mark.parametrize("method", [Int8(), PowerSGD(rank=2), NoCompression()], ids=lambda m: type(m).__name__)
def test_columns_are_put_back_where_they_were(method):
    layout = {"delta": SPEC.dim, "tau": 1, "control": SPEC.num_trainable}
    columns, row = method.columns(layout, SPEC), torch.arange(float(sum(layout.values())))
    compressed, plain = columns.split(row)
    assert (len(compressed), len(plain)) == (columns.compressed, columns.plain)
    assert torch.equal(columns.join(compressed, plain), row)
    assert torch.equal(columns.split(torch.stack([row, 2 * row]))[0], torch.stack([compressed, 2 * compressed]))


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_what_is_not_compressed_arrives_as_it_is(method):
    run, rows = Run(method), updates()
    total, tail = run.round(4, rows)
    assert total.shape == (LENGTH,)
    assert tail.tolist() == [0, 5, 0]
    plain = run.columns.split(total)[1]
    torch.testing.assert_close(plain.double(), run.columns.split(plain_sum(rows))[1], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("method", [NoCompression(), RandomK(share=1), TopK(share=1, values="float32")], ids=repr)
def test_a_method_that_leaves_nothing_out_is_the_plain_sum(method, exact):
    rows = updates()
    total, _ = Run(method, exact=exact).round(0, rows)
    torch.testing.assert_close(total.double(), plain_sum(rows), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_with_an_exact_sum_order_and_blocks_do_not_matter(method):
    """Two rounds, so that memories count too; bit for bit."""
    order = [3, 0, 4, 2, 1]
    run, other = Run(method, exact=True), Run(method, exact=True)
    for t in range(2):
        rows = updates(t)
        one, _ = run.round(t, rows, width=1)
        two, _ = other.round(t, rows[order], WEIGHT[order], order, width=1)
        assert torch.equal(one, two)


def test_packets_are_added_in_the_order_of_ids_whoever_came_first():
    """In float32, where the order of five terms shows."""
    rows, order = updates() * 10.0 ** torch.arange(-2, 3)[:, None], [3, 0, 4, 2, 1]
    totals = []
    for ids in (list(range(5)), order):
        run = Run(TopK(share=0.9))
        totals.append(run.columns.split(run.round(0, rows[ids], WEIGHT[ids], ids)[0])[0])
    assert torch.equal(*totals)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_updates_are_not_changed(method):
    rows = updates()
    Run(method).round(0, rows)
    assert torch.equal(rows, updates())


# -- int8 ----------------------------------------------------------------------------------------------------------


def test_int8_is_unbiased_with_the_error_that_is_documented():
    """Over 400 rounds: the mean error within 4.5 standard errors in every place, the variance below q^2 m / 4."""
    method, rows, rounds = Int8(bucket=64), updates(), 400
    run = Run(method)
    compressed = run.columns.split(rows)[0]
    padded = torch.nn.functional.pad(compressed, (0, -compressed.shape[1] % 64)).view(5, -1, 64)
    scale = WEIGHT.double() @ padded.abs().amax(dim=2).double()
    quantum = (scale / levels(5)).repeat_interleave(64)[: compressed.shape[1]]
    errors = torch.stack([run.columns.split(run.round(t, rows)[0].double())[0] for t in range(rounds)])
    errors = (errors - run.columns.split(plain_sum(rows))[0]) / quantum
    assert errors.abs().max() < 5  # each rounding is off by less than one quantum
    assert 0.5 < errors.var(dim=0).mean() < 5 / 4
    assert (errors.mean(dim=0).abs() < 4.5 * math.sqrt(5 / 4 / rounds)).all()


@pytest.mark.parametrize("clients", [1, 10, 76, 77, 300])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_int8_does_not_leave_eight_bits_where_all_clients_agree(clients, sign):
    """Everybody at the largest magnitude, where the sum is L, plus every client's rounding."""
    rows = torch.full((clients, LENGTH), 1.7 * sign)
    rows[:, ::3] *= 0.999
    weight = torch.ones(clients)
    total, _ = Run(Int8(bucket=64)).round(0, rows, weight, width=clients)
    limit = 5 * math.sqrt(min(clients / 4, levels(clients))) / levels(clients) + 1e-5
    assert ((total / rows.sum(dim=0) - 1).abs() < limit).all()


def test_int8_of_zeros_and_of_nobody_is_zero():
    run = Run(Int8())
    assert not run.round(0, torch.zeros(5, LENGTH))[0].any()
    assert not run.round(1, torch.zeros(0, LENGTH), torch.zeros(0))[0].any()


# -- random-k ------------------------------------------------------------------------------------------------------


def test_random_k_keeps_the_same_coordinates_of_all_and_scales_them():
    rows, run = updates(), Run(RandomK(share=0.2))
    total, expected = run.columns.split(run.round(7, rows)[0])[0], run.columns.split(plain_sum(rows))[0]
    kept = total.nonzero().flatten()
    size = run.columns.compressed
    assert len(kept) == round(0.2 * size)
    torch.testing.assert_close(total[kept].double(), expected[kept] * size / len(kept), rtol=1e-4, atol=1e-4)
    again, other = (run.columns.split(run.round(t, rows)[0])[0].nonzero().flatten() for t in (7, 8))
    assert torch.equal(again, kept)
    assert not torch.equal(other, kept)


def test_random_k_draws_every_coordinate_equally_often():
    run, rounds = Run(RandomK(share=0.2)), 400
    rows = torch.ones(1, LENGTH)
    seen = sum((run.round(t, rows, torch.ones(1))[0] > 0)[: SPEC.num_trainable].float() for t in range(rounds))
    deviation = math.sqrt(rounds * 0.2 * 0.8)
    assert ((seen - 0.2 * rounds).abs() < 5 * deviation).all()


# -- top-k ---------------------------------------------------------------------------------------------------------


def test_top_k_sends_the_largest_and_remembers_the_rest():
    run, rows = Run(TopK(share=0.1, values="float32")), updates()
    total, _ = run.round(0, rows)
    compressed = run.columns.split(rows)[0]
    k = round(0.1 * run.columns.compressed)
    expected = torch.zeros_like(compressed)
    for row, out in zip(compressed, expected, strict=True):
        largest = row.abs().topk(k).indices
        out[largest] = row[largest]
    torch.testing.assert_close(run.columns.split(total)[0].double(), plain_sum(expected), rtol=1e-5, atol=1e-4)
    assert torch.equal(run.error(), compressed - expected)


@pytest.mark.parametrize("method", [TopK(share=0.05), TopK(share=0.05, values="float32"), PowerSGD(rank=1)], ids=repr)
def test_nothing_is_lost_what_was_sent_and_what_is_remembered_are_what_there_was(method):
    """Over 6 rounds of different clients: sum of totals + sum n_k e_k = sum of n_k u_k."""
    run, sent, had = Run(method), 0, 0
    for t in range(6):
        ids = [k for k in range(5) if (k + t) % 3]
        rows = updates(t)[ids]
        total, _ = run.round(t, rows, WEIGHT[ids], ids)
        sent = sent + run.columns.split(total)[0].double()
        had = had + run.columns.split(plain_sum(rows, WEIGHT[ids]))[0]
    remembered = WEIGHT.double() @ run.error().double()
    assert remembered.norm() > 0.3 * had.norm()
    torch.testing.assert_close(sent + remembered, had, rtol=1e-4, atol=1e-2)


def test_top_k_with_error_feedback_descends_where_without_it_would_stand_still():
    """Stich et al.'s point: a gradient (8, 1, 1, ...) of which only one entry fits, always the same without memory."""
    spec = FlatSpec.of(nn.Linear(9, 1, bias=False))
    run = Run(TopK(share=1 / 9, values="float32"), layout={"delta": 9}, spec=spec)
    rows = torch.ones(1, 9)
    rows[0, 0] = 8.0
    total = sum(run.round(t, rows, torch.ones(1))[0] for t in range(64))
    assert (total[1:] > 32).all()


@pytest.mark.parametrize(
    ("n", "k"), [(1_663_370, 16_634), (1000, 1000), (1000, 999), (10, 1), (7, 3), (4096, 64), (100_000, 10)]
)
@pytest.mark.parametrize("bits", [8, 32])
def test_packets_hold_a_sparse_vector_in_the_size_they_say(n, k, bits):
    code = SparseCode(n, k, bits)
    index = torch.randperm(n, generator=generator(0, "index"))[:k].sort().values
    values = torch.randn(k, generator=generator(1, "values"))
    packet = code.pack(index, values)
    again, restored = code.unpack(packet)
    assert packet.dtype == torch.uint8
    assert len(packet) == code.size
    assert torch.equal(again, index)
    assert torch.equal(code.unpack(torch.cat([torch.zeros(3, dtype=torch.uint8), packet])[3:])[1], restored)
    if bits == 32:
        assert torch.equal(restored, values)
    else:
        assert ((restored - values).abs() <= values.abs().max() / 254 * 1.001).all()


def test_extreme_indices_and_zeros_survive_packing():
    code = SparseCode(1000, 10, 8)
    for index in (torch.arange(10), torch.arange(990, 1000)):
        again, restored = code.unpack(code.pack(index, torch.zeros(10)))
        assert torch.equal(again, index)
        assert not restored.any()


def test_a_packet_at_one_percent_costs_two_bytes_an_entry_and_indices_are_near_their_entropy():
    n, k = 1_663_370, 16_634
    least = (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(2) / 8  # bytes
    assert SparseCode(n, k, 8).size < 2.1 * k
    assert least < SparseCode(n, k, 32).size - 4 * k < 1.07 * least


def test_every_compression_has_a_name_and_says_what_it_remembers():
    remembers = {name for name, cls in COMPRESSIONS.items() if Run(cls()).new}
    assert list(COMPRESSIONS) == ["none", "int8", "random_k", "top_k", "power_sgd"]
    assert remembers == {"top_k", "power_sgd"}
