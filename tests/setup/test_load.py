"""fedddp.setup.load: which examples a rank holds, and what rank 0 keeps of the partition."""

import numpy as np
import pytest

from fedddp.checkpoints.saved import differences
from fedddp.comm import Place
from fedddp.config import UsageError, build, flatten, to_dict, to_toml
from fedddp.data import Partition
from fedddp.setup.load import load_data, prepare
from fedddp.setup.resolve import resolve


def resolved(tmp_path, place, placement="auto", **partition):
    table = {
        "run": {"dir": str(tmp_path), "threads": 1, "device": "cpu"},
        "data": {"name": "synthetic", "args": {"num_train": 200, "num_test": 1}, "placement": placement},
        "model": {"name": "mlp", "hidden": 2},
    }
    table["data"]["partition"] = partition
    return resolve(build(table), place)


def prepared(tmp_path, place, placement="auto", **partition):
    return prepare(resolved(tmp_path, place, placement, **partition), place)


@pytest.mark.parametrize(
    ("given", "num_clients", "ranks", "expected"),
    [
        ("auto", 0, 1, "home"),
        ("auto", 0, 4, "home"),
        ("auto", 3, 4, "home"),
        ("auto", 4, 4, "home"),
        ("auto", 5, 4, "shared"),
        ("auto", 2, 1, "shared"),
        ("home", 5, 4, "home"),
        ("shared", 4, 4, "shared"),
    ],
)
def test_examples_are_shared_where_a_rank_stands_for_several_clients(given, num_clients, ranks, expected):
    data = {"placement": given, "partition": {"num_clients": num_clients}}
    config = resolve(build({"data": data}), Place(world_size=ranks))
    assert config.data.placement == expected
    assert f'placement = "{expected}"' in to_toml(config)


@pytest.mark.parametrize(("placement", "held"), [("home", 100), ("shared", 200)])
def test_a_rank_holds_what_its_placement_says(tmp_path, placement, held):
    p = prepared(tmp_path, Place(1, 2), placement, name="iid", num_clients=20)
    assert p.data.placement == placement
    assert [p.data.holds(k) for k in range(20)] == [k % 2 == 1 or placement == "shared" for k in range(20)]
    assert len(p.data._x) == held


def test_all_ranks_must_agree_on_the_placement(tmp_path):
    one, other = (prepared(tmp_path, Place(1, 2), where, num_clients=2).signature for where in ("home", "shared"))
    assert [key for key in one if one[key] != other[key]] == ["data.placement"]


def owned(tmp_path, run_seed, **partition):
    p = resolved(tmp_path, Place(), name="quantity", num_clients=6, **partition)
    return load_data(p.model_copy(update={"run": p.run.model_copy(update={"seed": run_seed})}))[1].order.tolist()


def test_a_partition_with_a_seed_of_its_own_stays_while_the_run_s_seed_changes(tmp_path):
    assert owned(tmp_path, 0, seed=3) == owned(tmp_path, 1, seed=3) == owned(tmp_path, 3)
    assert owned(tmp_path, 0) == owned(tmp_path, 0, seed=0) == owned(tmp_path, 0, seed="off")
    assert owned(tmp_path, 0) != owned(tmp_path, 1)


@pytest.mark.parametrize(
    ("partition", "key"),
    [
        ({"name": "natural", "seed": 1}, "seed=1"),
        ({"name": "file", "path": "clients.json", "seed": 0}, "seed=0"),
        ({"name": "iid", "seed": -1}, "data.partition.seed=-1"),
        ({"name": "iid", "seed": 1.5}, "data.partition.seed=1.5"),
        ({"name": "iid", "seed": "run"}, "data.partition.seed='run'"),
    ],
)
def test_a_seed_that_draws_nothing_is_refused(tmp_path, partition, key):
    with pytest.raises(UsageError, match=key):
        resolved(tmp_path, Place(), **partition)


@pytest.mark.parametrize("change", [{"order": [0, 1, 3, 2]}, {"starts": [0, 1]}, {"sizes": [2, 1]}])
def test_the_signature_tells_who_owns_what(tmp_path, change):
    def signature(**arrays):
        partition = Partition(**{name: np.array(numbers) for name, numbers in arrays.items()})
        place, config = Place(1, 2), resolved(tmp_path, Place(1, 2), num_clients=2)
        return prepare(config, place, load_data(config)[0], partition).signature["data and partition"]

    arrays = {"order": [0, 1, 2, 3], "starts": [0, 2], "sizes": [2, 2]}
    assert signature(**arrays) == signature(**arrays) != signature(**{**arrays, **change})


def test_a_run_may_go_on_with_the_examples_placed_otherwise():
    """Four clients on four ranks are at home; on two ranks the same command shares them."""
    four, two = (
        flatten(to_dict(resolve(build({"data": {"partition": {"num_clients": 4}}}), Place(world_size=ranks))))
        for ranks in (4, 2)
    )
    assert four["data.placement"] != two["data.placement"]
    assert differences(four, two) == []


def test_rank_0_counts_the_clients_of_the_picture_and_nobody_else(tmp_path):
    first, second = (prepared(tmp_path, Place(r, 2), name="overlapping", num_clients=10_000, size=7) for r in (0, 1))
    assert second.output is None
    assert first.output.counts.num_clients == 10_000
    assert first.output.counts.counts.shape == (60, 10)
    assert (first.output.counts.counts.sum(axis=1) == 7).all()
    assert np.array_equal(first.data.sizes.numpy(), np.full(10_000, 7))


@pytest.mark.parametrize(
    "privacy",
    [
        {"level": "client", "noise_multiplier": 1.0},
        {"level": "example", "noise_multiplier": 1.0},
        {"secure_aggregation": {"enabled": True}},
    ],
    ids=["client level", "example level", "secure aggregation"],
)
def test_the_picture_of_the_partition_has_no_labels_where_they_are_protected(tmp_path, privacy):
    table = {"run": {"dir": str(tmp_path)}, "data": {"partition": {"num_clients": 4}}, "privacy": privacy}
    table["model"] = {"name": "logistic"}
    if "level" not in privacy:
        place = Place(0, 4)
    else:
        pytest.importorskip("opacus")
        place = Place()
    drawn = prepare(resolve(build(table), place), place).output.counts
    assert not drawn.by_label
    assert drawn.counts.tolist() == [[2500]] * 4


@pytest.mark.parametrize("name", ["krum", "multi_krum", "trimmed_mean"])
def test_a_rule_expects_as_many_byzantine_clients_as_there_are_unless_its_key_is_set(name):
    def resolved(*layers):
        return resolve(build({"data": {"partition": {"num_clients": 10}}}, *layers), Place())

    def rule(**keys):
        return {"aggregation": {"rule": {"name": name, **keys}}}

    expected = [("none", 0, 1), ("sign_flip", 1, 1), ("sign_flip", 3, 3), ("alie", 0, 1)]
    for attack, count, faced in expected:
        layer = {"attack": {"name": attack, "num_clients": count}}
        assert resolved(rule(), layer).aggregation.rule.num_byzantine == faced
        assert to_dict(resolved(rule(), layer))["aggregation"]["rule"]["num_byzantine"] == faced
        assert resolved(rule(num_byzantine=2), layer).aggregation.rule.num_byzantine == 2
    again = to_dict(resolved(rule(), {"attack": {"name": "ipm", "num_clients": 2}}))
    assert to_dict(resolved(again)) == again


def test_the_default_is_the_mean_and_nobody_attacks():
    table = to_dict(resolve(build(), Place()))
    assert (table["aggregation"]["rule"], table["attack"]) == ({"name": "mean"}, {"name": "none", "num_clients": 0})
