"""fedddp.aggregation.rules: each rule against its paper's formula, written out naively, on one rank."""

import pytest
import torch
from robust_support import IDS, LAST, LENGTH, RULES, WEIGHTS, a_round, updates

from fedddp.aggregation import CoordinateShards
from fedddp.aggregation.rules import CenteredClipping, Krum, MultiKrum, NormBound, TrimmedMean
from fedddp.comm import Comm
from fedddp.types import RoundAborted
from tests.helpers.support import opened, result, send

EVERYBODY = range(len(IDS))


def distance(a, b):
    return float((a - b).norm())


def krum_order(rows, f):
    """Positions by ascending score: the sum of squared distances to the m - f - 2 closest others."""
    scores = []
    for i in range(len(rows)):
        others = sorted(distance(rows[i], rows[j]) ** 2 for j in range(len(rows)) if j != i)
        scores.append(sum(others[: len(rows) - f - 2]))
    return sorted(range(len(rows)), key=lambda i: scores[i])


def left_medoid(rows, shares):
    """A step away from the update whose weighted distances to all have the smallest sum (Vardi, Zhang 2000)."""
    j = min(range(len(rows)), key=lambda i: sum(a * distance(rows[i], x) for a, x in zip(shares, rows, strict=True)))
    pull = [a / distance(rows[j], x) if i != j else 0.0 for i, (a, x) in enumerate(zip(shares, rows, strict=True))]
    t = sum(b * x for b, x in zip(pull, rows, strict=True)) / sum(pull)
    r = float(sum(b * (x - rows[j]) for b, x in zip(pull, rows, strict=True)).norm())
    return max(0.0, 1 - shares[j] / r) * t + min(1.0, shares[j] / r) * rows[j]


def naive(name, rows, weights):
    """The papers' formulas, on whole rows in float64."""
    n, m = sum(weights), len(rows)
    mean = sum(w * x for w, x in zip(weights, rows, strict=True)) / n
    if name == "mean":
        return mean
    if name == "median":
        columns = [sorted(rows[:, j].tolist()) for j in range(rows.shape[1])]
        return torch.tensor([(c[(m - 1) // 2] + c[m // 2]) / 2 for c in columns], dtype=torch.float64)
    if name == "trimmed_mean":
        return torch.tensor([sum(sorted(column)[2:-2]) / (m - 4) for column in rows.t().tolist()], dtype=torch.float64)
    if name == "krum":
        return rows[krum_order(rows, 2)[0]]
    if name == "multi_krum":
        return rows[krum_order(rows, 2)[:3]].mean(dim=0)
    if name == "geometric_median":
        z = left_medoid(rows, [w / n for w in weights])
        for _ in range(3):
            b = [w / n / max(1e-6, distance(z, x)) for w, x in zip(weights, rows, strict=True)]
            z = sum(b_k * x for b_k, x in zip(b, rows, strict=True)) / sum(b)
        return z
    if name == "norm_bound":
        return sum(w * x / max(1.0, float(x.norm()) / 4.0) for w, x in zip(weights, rows, strict=True)) / n
    v = LAST if name == "centered_clipping" else torch.zeros(rows.shape[1], dtype=torch.float64)
    for _ in range(4):
        v = v + sum((x - v) * min(1.0, 3.0 / distance(x, v)) for x in rows) / m
    return v


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rule_is_its_papers_formula(name, dtype):
    found = a_round(Comm.alone(), RULES[name], EVERYBODY, dtype=dtype)
    expected = naive(name, updates(dtype).double(), WEIGHTS)
    torch.testing.assert_close(found, expected, rtol=0, atol=20 * 2**-23 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize(
    "name", ["mean", "median", "norm_bound", "centered_clipping", "without history", "geometric_median"]
)
def test_clients_that_failed_do_not_count(name):
    found = a_round(Comm.alone(), RULES[name], EVERYBODY, failing=(0, 2), dtype=torch.float64)
    left = [i for i in EVERYBODY if i not in (0, 2)]
    expected = naive(name, updates(torch.float64)[left], [WEIGHTS[i] for i in left])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", RULES)
def test_one_update_from_all_is_what_comes_out(name):
    """Any rule agrees with clients that agree, if its bound or radius is not below their norm."""
    rule = {"norm_bound": NormBound(100.0), "centered_clipping": CenteredClipping(100.0, 1)}.get(name, RULES[name])
    rule = CenteredClipping(100.0, 1, history=False) if name == "without history" else rule
    row = updates()[0]
    reduce = CoordinateShards(rule, torch.float32, "cpu", 1)
    reduce.open(LENGTH, 1, 7.0)
    reduce.add(row.expand(7, -1), torch.ones(7), range(7))
    torch.testing.assert_close(reduce.total(Comm.alone(), 0) / 7, row.double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", sorted({*RULES} - {"mean", "norm_bound"}))
def test_two_of_seven_cannot_carry_the_result_away(name):
    """Two clients a million times as long move it by no more than the others differ; the mean goes along."""
    rule = RULES[name]
    honest = torch.ones(5, LENGTH) + 0.1 * torch.randn(5, LENGTH, generator=torch.Generator().manual_seed(0))
    moved = {}
    for used in (rule, RULES["mean"]):
        reduce = CoordinateShards(used, torch.float32, "cpu", 1)
        reduce.open(LENGTH, 1, 7.0)
        reduce.add(torch.cat([honest, -1e6 * torch.ones(2, LENGTH)]), torch.ones(7), range(7))
        moved[used] = distance(reduce.total(Comm.alone(), 0) / 7, torch.ones(LENGTH))
    assert moved[rule] < (7.0 if isinstance(rule, CenteredClipping) else 1.0)  # its radius of 3 is half of the way
    assert moved[RULES["mean"]] > 1e6


def test_of_equally_good_updates_krum_takes_the_lower_client():
    """m = 3, f = 0: the score is the distance to the next one, and two are each other's."""
    rows = torch.tensor([[5.0, 0.0], [1.0, 0.1], [1.0, 0.3]])
    for ids, expected in (((4, 9, 7), [1.0, 0.3]), ((4, 7, 9), [1.0, 0.1])):
        reduce = CoordinateShards(Krum(0), torch.float32, "cpu", 1)
        reduce.open(2, 1, 3.0)
        reduce.add(rows, torch.ones(3), ids)
        assert (reduce.total(Comm.alone(), 0) / 3).float().tolist() == torch.tensor(expected).tolist()


def test_distances_are_right_where_updates_are_nearly_the_same():
    """Rows of norm 1000 that differ by 1e-2: float32 products would drown the difference."""
    stream = torch.Generator().manual_seed(1)
    base = 100 * torch.randn(100, generator=stream)
    rows = base + 1e-3 * torch.randn(9, 100, generator=stream)
    reduce = CoordinateShards(Krum(2), torch.float32, "cpu", 1)
    reduce.open(100, 1, 9.0)
    reduce.add(rows, torch.ones(9), range(9))
    assert torch.equal((reduce.total(Comm.alone(), 0) / 9).float(), rows[krum_order(rows.double(), 2)[0]])


def test_multi_krum_takes_m_minus_f_by_default():
    found = a_round(Comm.alone(), MultiKrum(2), EVERYBODY, dtype=torch.float64)
    rows = updates(torch.float64)
    torch.testing.assert_close(found, rows[krum_order(rows, 2)[:5]].mean(dim=0), rtol=0, atol=1e-12)


def test_who_weighs_nothing_has_no_vote():
    """Clients without examples, whose update is 0, would win any vote."""
    reduce = CoordinateShards(RULES["median"], torch.float32, "cpu", 1)
    reduce.open(2, 1, 5.0)
    reduce.add(torch.tensor([[0.0, 0.0]] * 3 + [[4.0, 6.0]]), torch.tensor([0, 0, 0, 5]), range(4))
    assert (reduce.total(Comm.alone(), 0) / 5).tolist() == [4, 6]


def test_noise_is_the_rounds_own():
    draws = [a_round(Comm.alone(), NormBound(4.0, noise=0.1), EVERYBODY, seed=seed) for seed in (5, 5, 6)]
    clean = a_round(Comm.alone(), NormBound(4.0), EVERYBODY)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert 0.05 < float((draws[0] - clean).std()) < 0.15


@pytest.mark.parametrize(
    ("rule", "least"), [(Krum(2), 7), (MultiKrum(1, selected=6), 7), (TrimmedMean(3), 7), (RULES["median"], 1)]
)
def test_a_round_with_too_few_updates_brings_nothing(rule, least, logged):
    """Seven are enough for each, six are not; the model stays and the log says why."""
    assert rule.least == least
    a_round(Comm.alone(), rule, EVERYBODY)
    if least == 1:
        return
    with pytest.raises(RoundAborted, match=r"needs 7 updates \(m .*\), 6 arrived"):
        a_round(Comm.alone(), rule, EVERYBODY, failing=(1,))


def test_nobodys_updates_are_a_round_without_a_result():
    assert a_round(Comm.alone(), Krum(2), ()).tolist() == [0] * LENGTH


def test_in_the_pipeline_a_client_that_fails_is_left_out(logged):
    """Weights 7, 1, 30, 12, 5, 3: the median does not ask for them, and the report is the usual one."""
    reduce = CoordinateShards(RULES["median"], torch.float32, "cpu", 1)
    inbox = opened(reduce)
    rows = torch.arange(6.0).view(-1, 1).expand(-1, 40).clone()
    rows[5] = float("nan")
    for client in (3, 0, 5, 1, 4, 2):
        send(inbox, client, rows[client])
    mean, report = inbox.mean()
    assert set(mean.vectors["delta"].tolist()) == {2.0}
    assert (mean.weight, mean.count, report.failed) == (55, 5, (5,))
    assert report.loss[:5].tolist() == [0, 1, 2, 3, 4]


def test_in_the_pipeline_too_few_leave_the_model_alone(logged):
    inbox = opened(CoordinateShards(Krum(2), torch.float32, "cpu", 1))
    for client in range(6):
        send(inbox, client, torch.ones(40))
    mean, report = inbox.mean()
    assert (mean.count, report.failures) == (0, 6)
    assert logged == ["round 5 was aborted; the model is unchanged: Krum needs 7 updates (m >= 2 f + 3), 6 arrived"]


def test_several_vectors_are_one_row():
    """Krum takes all vectors of one client, even where another client's second vector has closer neighbours."""
    inbox = opened(CoordinateShards(Krum(0), torch.float32, "cpu", 1), ids=(0, 2, 3), layout={"delta": 2, "c": 1})
    from fedddp.types import Update

    for client, delta, c in ((0, [1.0, 1.0], 5.0), (2, [1.2, 1.0], 5.1), (3, [9.0, 9.0], 5.1)):
        vectors = {"delta": torch.tensor([delta]), "c": torch.tensor([[c]])}
        inbox.add((client,), Update(vectors, torch.tensor([1])), result())
    mean, _ = inbox.mean()
    assert (mean.vectors["delta"].tolist(), mean.vectors["c"].tolist()) == ([1.0, 1.0], [5.0])
