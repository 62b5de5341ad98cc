"""Every algorithm whose clients remember something, with every compression: what it rests on holds, or it is refused.

SCAFFOLD's c and FedDyn's h, which are means over what clients hold, are in test_optimum.py.
"""

import pytest
import torch

from fedddp.aggregation.compression import COMPRESSIONS
from fedddp.algorithms import ADAPTED, ALGORITHMS
from fedddp.algorithms.personal import INNER
from fedddp.config import UsageError, build
from fedddp.federation import federate
from fedddp.flat import FlatSpec, flatten
from tests.helpers.support import assemble, client_states
from tests.helpers.zoo import BATCHED, SIZES, dataset, task_of

pytestmark = pytest.mark.slow

COMPRESSED = {
    "none": {},
    "int8": {"bucket": 64},
    "random_k": {"share": 0.5},
    "top_k": {"share": 0.2},
    "power_sgd": {"rank": 1},
}
KEYS = {"fedbn": {"private": ["*.bias"]}}
LOSSY = "use aggregation.compression none, top_k or power_sgd"
LATE = "use aggregation.compression int8, random_k or none"
REFUSED = {(name, lossy): LOSSY for name in ("scaffold", "feddyn") for lossy in ("int8", "random_k")}
REFUSED |= {(name, late): LATE for name in ("ifca", "streaming_diloco") for late in ("top_k", "power_sgd")}
STATEFUL = ("streaming_diloco", "scaffold", "feddyn", "moon", "ditto", "apfl", "ifca", "fedbn", "fedper", "fedrep")
PAIRS = [(name, compression) for name in STATEFUL for compression in COMPRESSIONS]
ALLOWED = [pair for pair in PAIRS if pair not in REFUSED]


def federation(folder, algorithm, compression, **sections):
    return assemble(
        folder,
        dataset(),
        SIZES,
        task=task_of(BATCHED["mlp"]),
        algorithm=algorithm,
        aggregation={"compression": {"name": compression, **COMPRESSED[compression]}},
        client={
            "precision": "float64",
            "batch_size": 5,
            "optimizer": {"lr": 0.1},
            "execution": {"name": "sequential"},
        },
        cohort={"size": 4},
        run={"rounds": 4},
        **sections,
    )


def test_no_algorithm_and_no_compression_is_forgotten():
    assert COMPRESSED.keys() == COMPRESSIONS.keys()
    module = task_of(BATCHED["mlp"]).model(0)
    stateless = ALGORITHMS.keys() - ADAPTED.keys() - set(STATEFUL)
    for name in stateless - {"personal"}:  # "personal" remembers what its inner one does
        algorithm = build({"algorithm": {"name": name}}).algorithm
        assert not algorithm.init_client(algorithm.init_server(flatten(module), FlatSpec.of(module))), name


@pytest.mark.parametrize("wrapped", [False, True], ids=["alone", "inside personal"])
@pytest.mark.parametrize("pair", REFUSED, ids=" ".join)
def test_what_would_lose_its_footing_is_refused_before_anything_starts(tmp_path, pair, wrapped):
    algorithm, remedy = {"name": pair[0]}, REFUSED[pair]
    if wrapped:
        algorithm = {"name": "personal", "inner": algorithm, "private": ["5.*"]}
    front = f"^algorithm.name='{algorithm['name']}': .*{remedy}"
    if wrapped and pair[0] not in INNER:
        front = f"^algorithm.inner.name='{pair[0]}': should be 'fedavg'"
    with pytest.raises(UsageError, match=front):
        federation(tmp_path, algorithm, pair[1])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["scaffold", "feddyn"])
def test_a_ring_of_32_bits_cuts_off_as_much(tmp_path, name):
    ring = {"enabled": True, "bits": 32}
    with pytest.raises(UsageError, match=f"^algorithm.name='{name}': .*privacy.secure_aggregation.bits=64"):
        federation(tmp_path, {"name": name}, "none", privacy={"secure_aggregation": ring})


def test_a_random_k_of_all_coordinates_leaves_nothing_out(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(COMPRESSED, "random_k", {"share": 1.0})
        f, server = federation(tmp_path / "all", {"name": "scaffold"}, "random_k")
    g, same = federation(tmp_path / "none", {"name": "scaffold"}, "none")
    torch.testing.assert_close(federate(f, server).w, federate(g, same).w, rtol=0, atol=1e-14)


@pytest.mark.parametrize("pair", ALLOWED, ids=" ".join)
def test_what_clients_hold_follows_from_the_models_they_were_sent(tmp_path, pair):
    """Compression changes the models that are sent, and nothing that a client keeps for itself."""
    name, compression = pair
    f, server = federation(tmp_path, {"name": name, **KEYS.get(name, {})}, compression)
    held = {}
    for t in range(4):
        for k in f.sampler.cohort(t).ids:
            state = held.get(k) or f.algorithm.init_client(server)
            held[k] = f.algorithm.client_update(server, state, f.trainer.on((k,), t))[1]
        server = federate(f.until(t + 1), server)
    kept = {k: client_states(f, (k,), server) for k in held}
    assert all(torch.equal(kept[k][key], vector) for k, state in held.items() for key, vector in state.items())
    assert len(held) > 4
    assert any(vector.abs().max() > 1e-3 for state in held.values() for vector in state.values())


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("name", ["ditto", "apfl"])
def test_the_global_model_beside_personal_ones_is_federated_averagings(tmp_path, name, compression):
    f, server = federation(tmp_path / "a", {"name": name}, compression)
    g, same = federation(tmp_path / "b", {"name": "fedavg"}, compression)
    assert torch.equal(federate(f, server).w, federate(g, same).w)


@pytest.mark.parametrize("compression", ["none", "int8", "random_k"])
def test_ifcas_clusters_move_by_what_their_own_clients_send(tmp_path, compression):
    """One that nobody picks stays to the bit, also where others are compressed beside it."""
    f, server = federation(tmp_path, {"name": "ifca", "clusters": 4}, compression)
    idle = 0
    for t in range(4):
        before, server = server, federate(f.until(t + 1), server)
        picked = {int(client_states(f, (k,), server)["cluster"]) for k in f.sampler.cohort(t).ids if SIZES[k]}
        for j in range(4):
            was, now = (s.w if j == 0 else s.extra[f"theta.{j}"] for s in (before, server))
            assert torch.equal(was, now) == (j not in picked)
        idle += 4 - len(picked)
    assert idle
