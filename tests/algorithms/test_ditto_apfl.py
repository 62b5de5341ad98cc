"""Ditto and APFL: the papers' recursions by hand on least squares; what they are at the ends of their knobs."""

import pytest
import torch

from fedddp.federation import federate
from fedddp.optim import SGD
from tests.helpers.planes import BODY, EPOCHS, LR, WHOLE, descend, mean, personal, planes, points, slope
from tests.helpers.support import client_states

ROUNDS = 4


def trained(folder, rounds=ROUNDS, **sections):
    f, start = planes(folder, run={"rounds": rounds}, **sections)
    return f, start, federate(f, start)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("algorithm", [{"name": "ditto", "lam": 0.3}, {"name": "apfl"}])
def test_the_global_model_is_federated_averagings(tmp_path, algorithm):
    _, _, fedavg = trained(tmp_path / "a")
    _, _, other = trained(tmp_path / "b", algorithm=algorithm)
    assert torch.equal(fedavg.w, other.w)


@pytest.mark.parametrize("lam", [0.0, 0.4])
def test_dittos_recursion(tmp_path, lam):
    """v_k takes E steps against grad F_k(v) + lam (v - w_t), w_t the model that the round began with."""
    f, start, end = trained(tmp_path, algorithm={"name": "ditto", "lam": lam})
    parts, w = points(), start.w
    v = [w] * 3
    for _ in range(ROUNDS):
        v = [descend(p, own, correct=lambda g, x, w=w: g + lam * (x - w)) for p, own in zip(parts, v, strict=True)]
        w = mean([descend(p, w) for p in parts], parts)
    close(end.w, w)
    close(personal(f, end), torch.stack(v))
    if lam == 0:  # alone
        close(personal(f, end), torch.stack([descend(p, start.w, ROUNDS * EPOCHS) for p in parts]))


def test_ditto_between_alone_and_together(tmp_path):
    """In the limit v_k = (H_k + lam)^-1 (H_k w*_k + lam w): nearer to w with larger lam."""
    f, _, end = trained(tmp_path, 400, algorithm={"name": "ditto", "lam": 2.0})
    for part, v in zip(points(), personal(f, end), strict=True):
        gradient = slope(part, v) + 2.0 * (v - end.w)
        assert gradient.abs().max() < 1e-6  # w itself still moves by 1e-8 a round
        assert slope(part, v).abs().max() > 0.1


def test_dittos_personal_epochs_are_its_own(tmp_path):
    f, start, end = trained(tmp_path, 1, algorithm={"name": "ditto", "lam": 0.0, "personal_epochs": 7})
    close(personal(f, end), torch.stack([descend(p, start.w, 7) for p in points()]))
    close(end.w, mean([descend(p, start.w) for p in points()], points()))


@pytest.mark.parametrize("name", ["ditto", "apfl"])
def test_a_client_that_never_took_part_deploys_the_global_model_and_begins_there(tmp_path, name):
    f, start = planes(tmp_path, run={"rounds": 12}, cohort={"size": 1}, algorithm={"name": name})
    server, seen = start, set()
    for t in range(12):
        (k,) = f.sampler.cohort(t).ids
        own = personal(f, server)
        for other in {0, 1, 2} - seen:
            close(own[other], server.w)
        before, server = server.w, federate(f.until(t + 1), server)
        if k not in seen:  # v_k = w_t: Ditto's pull is 0 on the first step, the mixture is w_t
            reach = (personal(f, server)[k] - before).norm()
            assert 0 < reach < 1.5 * (descend(points()[k], before) - before).norm()
        seen.add(k)
    assert seen == {0, 1, 2}


@pytest.mark.parametrize("alpha_lr", [0.0, 0.5])
def test_apfl_with_one_local_step_is_algorithm_1_as_printed(tmp_path, alpha_lr):
    """w_k and v_k step together, on the same gradient's point, alpha_k by <v_k - w, grad f_k(vbar_k)>."""
    once = {**WHOLE, "local_epochs": 1}
    f, start, end = trained(tmp_path, 6, client=once, algorithm={"name": "apfl", "alpha": 0.6, "alpha_lr": alpha_lr})
    parts, w, v, alpha = points(), start.w, [start.w] * 3, [0.6] * 3
    for _ in range(6):
        own = list(zip(parts, v, alpha, strict=True))
        grads = [slope(p, a * x + (1 - a) * w) for p, x, a in own]
        alpha = [min(1.0, max(0.0, a - alpha_lr * float((x - w) @ g))) for (_, x, a), g in zip(own, grads, strict=True)]
        v = [x - LR * a * g for (_, x, a), g in zip(own, grads, strict=True)]
        w = mean([w - LR * slope(p, w) for p in parts], parts)
    close(end.w, w)
    close(personal(f, end), torch.stack([a * x + (1 - a) * w for x, a in zip(v, alpha, strict=True)]))
    assert (len(set(alpha)) == 1) == (alpha_lr == 0)


def test_apfl_with_more_steps_holds_the_global_part_of_the_mixture(tmp_path):
    """As its docstring says: E steps of v_k at alpha v + (1 - alpha) w_t."""
    f, start, end = trained(tmp_path, 3, algorithm={"name": "apfl", "alpha": 0.3, "alpha_lr": 0.0})
    parts, w, v = points(), start.w, [start.w] * 3
    for _ in range(3):
        for k, part in enumerate(parts):
            for _ in range(EPOCHS):
                v[k] = v[k] - LR * 0.3 * slope(part, 0.3 * v[k] + 0.7 * w)
        w = mean([descend(p, w) for p in parts], parts)
    close(personal(f, end), torch.stack([0.3 * x + 0.7 * w for x in v]))


@pytest.mark.parametrize("optimizer", [{"lr": LR}, {"lr": LR, "momentum": 0.8}], ids=["sgd", "momentum"])
def test_apfl_at_the_ends_of_alpha(tmp_path, optimizer):
    """alpha = 1: alone, as Ditto without its pull; 0: the global model."""
    client = {**WHOLE, "optimizer": optimizer}
    fixed = {"name": "apfl", "alpha_lr": 0.0}
    f, _, end = trained(tmp_path / "1", client=client, algorithm={**fixed, "alpha": 1.0})
    g, _, same = trained(tmp_path / "d", client=client, algorithm={"name": "ditto", "lam": 0.0})
    close(personal(f, end), personal(g, same))
    f, _, end = trained(tmp_path / "0", client=client, algorithm={**fixed, "alpha": 0.0})
    close(personal(f, end), end.w.expand(3, -1))


def test_apfl_learns_to_stay_apart_where_clients_differ(tmp_path):
    alphas = []
    for name, apart in (("alike", 0.0), ("apart", 3.0)):
        parts = points(apart=apart)
        f, start = planes(tmp_path / name, parts, run={"rounds": 30}, algorithm={"name": "apfl", "alpha_lr": 0.05})
        federate(f, start)
        alphas.append(client_states(f, (0, 1, 2), start)["alpha"].mean())
    assert alphas[1] > max(0.8, alphas[0] + 0.2)


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("alpha", [1e-3, 1e-6])
@pytest.mark.parametrize("optimizer", [{"lr": LR}, {"lr": LR, "momentum": 0.8}, {"name": "adam"}], ids=str)
def test_apfl_keeps_v_to_float32s_digits_however_small_its_share(tmp_path, optimizer, alpha, width):
    """The steps of a small alpha_k leave no trace in alpha_k v_k + (1 - alpha_k) w, and all of it in v_k."""
    moved = {}
    for precision in ("float32", "float64"):
        client = {"optimizer": optimizer, "precision": precision, "execution": execution(width)}
        f, start = planes(
            tmp_path / precision,
            client={**WHOLE, **client},
            algorithm={"name": "apfl", "alpha": alpha, "alpha_lr": 0.0},
            run={"rounds": 1},
        )
        federate(f, start)
        moved[precision] = client_states(f, (0, 1, 2), start)["v"].double() - start.w.double()
    assert moved["float64"].abs().max() > alpha * LR / 10
    resolution = 6e-8 * 2 * EPOCHS  # of v itself, whose entries are about 1
    assert (moved["float32"] - moved["float64"]).abs().max() < resolution + 1e-4 * moved["float64"].abs().max()


def execution(width):
    return {"name": "sequential"} if width == 1 else {"name": "vectorized", "width": width}


def test_apfl_inside_personal_moves_private_entries_as_they_would_alone(tmp_path):
    """They take the client optimizer's own steps, momentum and decay included; v has no part in them, nor alpha."""
    heavy = {"lr": LR, "momentum": 0.8, "weight_decay": 0.3}
    apfl = {"name": "fedper", "inner": {"name": "apfl", "alpha": 0.0, "alpha_lr": 0.0}}
    f, start = planes(tmp_path, client={**WHOLE, "optimizer": heavy}, algorithm=apfl, run={"rounds": 1})
    end = federate(f, start)
    (body, head), sgd = (start.w[:BODY], start.w[BODY:]), SGD(**heavy)
    for part, own in zip(points(), personal(f, end), strict=True):
        both, state = start.w.clone(), sgd.init([start.w])
        for _ in range(EPOCHS):
            sgd.step_([both], [slope(part, both)], state)
        head, state = both[BODY:].clone(), sgd.init([head])  # then beside w_t, which alpha = 0 holds on to
        for _ in range(EPOCHS):
            sgd.step_([head], [slope(part, torch.cat([body, head]))[BODY:]], state)
        close(own, torch.cat([end.w[:BODY], head]))
    v = client_states(f, (0, 1, 2), end)["v"]
    assert torch.equal(v[:, BODY:], start.w[BODY:].expand(3, -1))
    assert (v[:, :BODY] - start.w[:BODY]).abs().max() > 1e-3  # decay
