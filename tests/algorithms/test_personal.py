"""The mask around any algorithm: identities, the papers' steps by hand, and that nothing private leaves."""

import pytest
import torch

from fedddp.algorithms import ALGORITHMS, FedAvg, FedBN, FedPer, FedRep, Personal
from fedddp.algorithms.personal import INNER, PRIVATE
from fedddp.cli.reference import reference
from fedddp.config import UsageError, build, to_dict
from fedddp.federation import federate
from fedddp.flat import FlatSpec
from fedddp.models import MLP
from fedddp.optim import SGD
from tests.helpers.planes import BODY, EPOCHS, HEAD, LR, WHOLE, descend, mean, personal, planes, points
from tests.helpers.support import assemble, client_states, few_digits

pytestmark = pytest.mark.slow

DIGITS = (7, 20, 1, 13)
HEAVY = {"lr": LR, "momentum": 0.8, "weight_decay": 0.3}
"""Moves what has no gradient."""
PERSONAL = ("ditto", "apfl", "ifca", "fedper", "fedrep")


def trained(folder, rounds=3, **sections):
    f, start = planes(folder, run={"rounds": rounds}, **sections)
    return f, start, federate(f, start)


def digits(folder, algorithm, *, rounds=2, **sections):
    """A perceptron of six hidden units in float64."""
    client = {"precision": "float64", "batch_size": 5, "optimizer": HEAVY | {"lr": 0.1}} | sections.pop("client", {})
    model = {"name": "mlp", "hidden": 6}
    return assemble(
        folder,
        few_digits(41),
        DIGITS,
        model=model,
        client=client,
        algorithm=algorithm,
        run={"rounds": rounds},
        **sections,
    )


def wrapped(inner, **keys):
    return {"name": "personal", "inner": {"name": inner}, "private": ["5.*", "*.bias"], **keys}


def parted(w):
    return w[..., :BODY], w[..., BODY:]


@pytest.mark.parametrize("inner", INNER)
def test_without_a_pattern_it_is_what_it_wraps(tmp_path, inner):
    f, start = digits(tmp_path / "a", {"name": inner})
    g, begin = digits(tmp_path / "b", {"name": "personal", "inner": {"name": inner}})
    plain, masked = federate(f, start), federate(g, begin)
    assert torch.equal(plain.w, masked.w)
    assert plain.extra.keys() == masked.extra.keys()
    assert f.store.state_dict().keys() == g.store.state_dict().keys()
    assert all(torch.equal(v, g.store.state_dict()[key]) for key, v in f.store.state_dict().items())
    assert torch.equal(personal_of(f, plain), personal_of(g, masked))


def personal_of(f, server):
    rows = [f.algorithm.personal_params(server, client_states(f, (k,), server)).view(1, -1) for k in range(len(DIGITS))]
    return torch.cat(rows)


def test_personal_layers_by_hand(tmp_path):
    """FedPer: both parts descend together, the mean is of the body alone."""
    f, start, end = trained(tmp_path, algorithm={"name": "fedper"})
    (body, head), parts = parted(start.w), points()
    heads = [head] * 3
    for _ in range(3):
        moved = [descend(p, torch.cat([body, h])) for p, h in zip(parts, heads, strict=True)]
        heads = [parted(w)[1] for w in moved]
        body = mean([parted(w)[0] for w in moved], parts)
    own = personal(f, end)
    torch.testing.assert_close(own[:, :BODY], body.expand(3, -1), rtol=0, atol=1e-12)
    torch.testing.assert_close(own[:, BODY:], torch.stack(heads), rtol=0, atol=1e-12)
    assert torch.equal(end.w[BODY:], start.w[BODY:])


@pytest.mark.parametrize("optimizer", [{"lr": LR}, HEAVY], ids=["sgd", "momentum and decay"])
def test_fedrep_by_hand(tmp_path, optimizer):
    """Head steps with the body held, body steps with the head held: held means held, whatever the optimizer."""
    client = {**WHOLE, "optimizer": optimizer}
    f, start, end = trained(tmp_path, client=client, algorithm={"name": "fedrep", "head_epochs": 4})
    (body, head), parts = parted(start.w), points()
    heads, sgd = [head] * 3, SGD(**optimizer)

    def alone(part, w, steps, free):
        """Descend in w[free] alone."""
        own, state = w[free].clone(), sgd.init([w[free]])
        for _ in range(steps):
            whole = w.clone()
            whole[free] = own
            g = whole - descend(part, whole, steps=1, lr=1.0)
            sgd.step_([own], [g[free]], state)
        return own

    for _ in range(3):
        heads = [alone(p, torch.cat([body, h]), 4, slice(BODY, None)) for p, h in zip(parts, heads, strict=True)]
        both = [(p, torch.cat([body, h])) for p, h in zip(parts, heads, strict=True)]
        body = mean([alone(p, w, EPOCHS, slice(0, BODY)) for p, w in both], parts)
    own = personal(f, end)
    torch.testing.assert_close(own[:, :BODY], body.expand(3, -1), rtol=0, atol=1e-12)
    torch.testing.assert_close(own[:, BODY:], torch.stack(heads), rtol=0, atol=1e-12)


def test_frozen_entries_stay_and_the_others_learn_around_them(tmp_path):
    """As if they were constants: descent in the body alone."""
    client = {**WHOLE, "optimizer": HEAVY}
    f, start, end = trained(tmp_path, client=client, algorithm={"name": "personal", "frozen": ["head.*"]})
    assert torch.equal(end.w[BODY:], start.w[BODY:])
    assert torch.equal(personal(f, end), end.w.expand(3, -1))
    free, sgd, w = slice(0, BODY), SGD(**HEAVY), start.w
    for _ in range(3):
        ends = []
        for part in points():
            whole = w.clone()
            own, state = whole[free], sgd.init([whole[free]])
            for _ in range(EPOCHS):
                sgd.step_([own], [(whole - descend(part, whole, steps=1, lr=1.0))[free]], state)  # own views whole
            ends.append(whole)
        w = mean(ends, points())
    torch.testing.assert_close(end.w, w, rtol=0, atol=1e-12)
    assert f.algorithm.vectors(start.spec) == {"delta": BODY}


def test_corrections_of_the_wrapped_algorithm_end_at_the_mask(tmp_path):
    """Ditto's pull to w_t would draw the private head to the server's, which nobody trains."""
    algorithm = {"name": "fedper", "inner": {"name": "ditto", "lam": 3.0}}
    f, start, server = trained(tmp_path, 1, algorithm=algorithm)
    pull = torch.tensor([3.0] * BODY + [0.0] * HEAD, dtype=torch.float64)
    for part, own in zip(points(), personal(f, server), strict=True):
        first = descend(part, start.w)  # the global model's training moves the head on
        begin = torch.cat([start.w[:BODY], first[BODY:]])
        v = descend(part, begin, correct=lambda g, x: g + pull * (x - start.w))
        torch.testing.assert_close(own, v, rtol=0, atol=1e-12)


@pytest.mark.parametrize("inner", INNER)
def test_nothing_private_leaves_and_the_server_has_none_of_it(tmp_path, inner):
    """Every vector as long as the model is shorter by the private entries, and with them the round's sum."""
    server_optimizer = {"lr": 0.5, "momentum": 0.9, "weight_decay": 0.1}
    algorithm = wrapped(inner)
    algorithm["inner"] |= {"server_optimizer": server_optimizer}
    f, start = digits(tmp_path, algorithm)
    dim, spec = len(start.w), start.spec
    private = spec.mask(["5.*", "*.bias"])
    shared = dim - int(private.sum())
    assert 0 < shared < dim
    plain = f.algorithm.inner.vectors(start.spec)
    assert dim in plain.values()
    assert f.algorithm.vectors(start.spec) == {name: shared if n == dim else n for name, n in plain.items()}
    assert f.pipeline.layout == f.algorithm.vectors(start.spec)  # what is not in it cannot be sent: `Update.pack`
    local = f.trainer.on((1,), 0)
    update, _, _ = f.algorithm.client_update(start, client_states(f, (1,), start), local)
    assert {name: rows.shape[1] for name, rows in update.vectors.items()} == f.algorithm.vectors(start.spec)
    server = federate(f, start)
    assert torch.equal(server.w[private], start.w[private])
    assert not torch.equal(server.w[~private], start.w[~private])
    heads = client_states(f, range(4), server)[PRIVATE]
    assert heads.shape == (4, int(private.sum()))
    assert all((a - b).abs().max() > 1e-3 for i, a in enumerate(heads) for b in heads[:i])
    assert torch.equal(personal_of(f, server)[:, private], heads)


COMPARING = (
    wrapped("moon"),
    wrapped("moon", private=["5.*"], frozen=["1.weight"]),
    {"name": "fedrep", "inner": {"name": "moon"}, "head_epochs": 2},
)


@pytest.mark.parametrize("algorithm", [*({"name": n} for n in PERSONAL), wrapped("ditto"), *COMPARING], ids=str)
def test_many_clients_at_once_are_one_after_the_other(tmp_path, algorithm):
    ends = {}
    for how in ("sequential", "vectorized"):
        f, start = digits(tmp_path / how, algorithm, client={"execution": {"name": how}})
        assert (f.trainer.width > 1) == (how == "vectorized")
        server = federate(f, start)
        ends[how] = [server.w, personal_of(f, server), *f.store.state_dict().values()]
    for a, b in zip(*ends.values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_models_are_compared_as_their_client_has_them(tmp_path):
    """MOON's z_glob and z_prev are of (u_t, v_k) and (last u_k, v_k), v_k as it was at the end of the last round."""
    f, start = digits(tmp_path, wrapped("moon"), rounds=1)
    server, private = federate(f, start), start.spec.mask(["5.*", "*.bias"])
    state, seen = client_states(f, (1,), server), []

    class Watched:
        def __init__(self, local):
            self.ids, self.round, self.num_examples = local.ids, local.round, local.num_examples
            self.optimizer, self.loss, self.local = local.optimizer, local.loss, local

        def train(self, start, correct=None, **how):
            seen.append(how["contrast"].models[:, 0])
            return self.local.train(start, correct, **how)

    f.algorithm.client_update(server, state, Watched(f.trainer.on((1,), 1)))
    glob, previous = seen[0]
    assert torch.equal(glob[private], state[PRIVATE][0])
    assert torch.equal(previous[private], state[PRIVATE][0])
    assert torch.equal(glob[~private], server.w[~private])
    assert torch.equal(previous[~private], state["previous"][0, ~private])
    assert (state[PRIVATE][0] - server.w[private]).abs().max() > 1e-3


@pytest.mark.parametrize("algorithm", [*({"name": n} for n in PERSONAL), wrapped("apfl")], ids=str)
def test_going_on_from_what_was_kept_is_not_having_stopped(tmp_path, algorithm):
    """Bit for bit, with half of the clients a round."""
    f, start = digits(tmp_path / "whole", algorithm, rounds=4, cohort={"size": 2})
    whole = federate(f, start)
    half, begin = digits(tmp_path / "half", algorithm, rounds=4, cohort={"size": 2})
    server, kept = federate(half.until(2), begin), half.store.state_dict()
    again, _ = digits(tmp_path / "again", algorithm, rounds=4, cohort={"size": 2})
    again.store.load_state_dict(kept, lambda k: True)
    resumed = federate(again, server)
    assert torch.equal(resumed.w, whole.w)
    assert resumed.extra.keys() == whole.extra.keys()
    assert all(torch.equal(v, whole.extra[k]) for k, v in resumed.extra.items())
    assert again.store.state_dict().keys() == f.store.state_dict().keys()
    assert all(torch.equal(v, again.store.state_dict()[k]) for k, v in f.store.state_dict().items())


@pytest.mark.parametrize("level", ["example", "client"])
def test_under_differential_privacy(tmp_path, level):
    """The head stays with the client, the body is noised; who trains twice, or tells more, is refused."""
    privacy = {"level": level, "noise_multiplier": 0.5, "randomness": "seeded", "delta": 1e-3}
    how = {"privacy": privacy, "rounds": 2, "checkpoint": {"clients_dir": str(tmp_path / "own")}}
    f, start = digits(tmp_path / "a", {"name": "fedper"}, **how)
    server, private = federate(f, start), start.spec.mask(["5.*"])
    assert torch.equal(server.w[private], start.w[private])
    assert (server.w[~private] != start.w[~private]).float().mean() > 0.99  # noise everywhere
    kept = [key for key in f.store.state_dict() if key.endswith(PRIVATE)]
    assert len(kept) == len(DIGITS) or level == "client"  # a Poisson cohort
    for name in ("ditto", "apfl", "fedrep", "ifca"):
        refused = {("example", n) for n in ("ditto", "apfl", "fedrep", "ifca")} | {("client", "ifca")}
        for algorithm in ({"name": name}, {"name": "personal", "inner": {"name": name}}):
            if name == "fedrep" and "inner" in algorithm:
                continue
            if (level, name) in refused:
                with pytest.raises(UsageError) as error:
                    digits(tmp_path / "refused", algorithm, **how)
                assert error.value.key == "algorithm.name"
                assert error.value.code == ("algorithm-losses" if name == "ifca" else "algorithm-example-level")
            else:
                g, start = digits(tmp_path / name, algorithm, **how)
                federate(g, start)
                assert g.store.state_dict()


# -- configuration -------------------------------------------------------------------------------------------------

MODEL = FlatSpec.of(MLP(hidden=4).build((1, 2, 2), 3))  # layers 1, 3 and 5


def test_the_head_is_the_last_layers():
    assert MODEL.layers() == ["1", "3", "5"]
    assert FedPer(head=2).masks(MODEL).private.equal(MODEL.mask(["3.*", "5.*"]))
    assert FedRep(private=("1.*",)).masks(MODEL).private.equal(MODEL.mask(["1.*"]))


def test_layers_by_class():
    spec = FlatSpec.of(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2), torch.nn.GroupNorm(1, 2)))
    assert spec.mask(["@*Norm*"]).equal(spec.mask(["1.*", "2.*"]))
    assert spec.mask(["@BatchNorm*"]).equal(spec.mask(["1.*"]))
    assert FedBN().masks(spec).private.sum() == 2 + 2 + 2 + 2 + 2 + 2


@pytest.mark.parametrize(
    ("algorithm", "told"),
    [
        (Personal(private=("conv*",)), "algorithm.private=['conv*']: 'conv*' matches nothing of 1.weight, 1.bias, "),
        (
            FedBN(),
            "algorithm.name='fedbn': each client keeps the normalisation layers, and the model has none (1.weight, ",
        ),
        (
            FedPer(head=3),
            "algorithm.head=3: each client keeps so many of the last layers, and the model has only 3 (1, 3, 5): one ",
        ),
        (Personal(private=("*",)), "algorithm.private=['*']: leaves nothing that is trained together; name fewer"),
        (Personal(private=("1.*",), frozen=("*.bias",)), "algorithm.frozen=['*.bias']: some of these are private too"),
    ],
)
def test_a_mask_that_cannot_be_meant(algorithm, told):
    with pytest.raises(ValueError, match="algorithm") as caught:
        algorithm.vectors(MODEL)
    assert str(caught.value).startswith(told)
    assert "\n" not in str(caught.value)


def test_a_mistake_is_found_before_anything_starts(tmp_path):
    with pytest.raises(UsageError, match=r"algorithm.private=\['x'\]: 'x' matches nothing"):
        digits(tmp_path, {"name": "personal", "private": ["x"]})


def test_the_configuration_nests_and_comes_back():
    table = {"name": "fedrep", "inner": {"name": "ditto", "lam": 0.5, "server_optimizer": {"lr": 0.7}}, "head": 2}
    config = build({"algorithm": table})
    assert config.algorithm == FedRep(inner=ALGORITHMS["ditto"](lam=0.5, server_optimizer=SGD(lr=0.7)), head=2)
    assert build(to_dict(config)) == config
    assert build().algorithm == FedAvg()


@pytest.mark.parametrize(
    ("inner", "told"),
    [
        ({"name": "fedprux"}, "algorithm.inner.name='fedprux': should be 'fedavg', "),
        ({"lamda": 1}, "algorithm.inner.lamda: unknown key"),
        ({"name": "ditto", "lam": -1}, "algorithm.inner.lam=-1: should be greater than or equal to 0"),
        ({"server_optimizer": {"lr": 0}}, "algorithm.inner.server_optimizer.lr=0: should be greater than 0"),
        ("ditto", "algorithm.inner='ditto': expected a section; write its name as .name=ditto"),
    ],
)
def test_mistakes_in_what_is_wrapped_name_the_whole_key(inner, told):
    with pytest.raises(UsageError) as caught:
        build({"algorithm": {"name": "personal", "inner": inner}})
    assert str(caught.value).startswith(told)


def test_the_reference_has_the_nested_section_once():
    (key,) = (key for key in reference().keys if key.name.startswith("algorithm.inner"))
    assert key.had_by("algorithm") == ("personal", "fedbn", "fedper", "fedrep", "ffa_lora")
    assert "fedavg" in reference().choices["algorithm.inner"].names
