"""Rules and attacks that do not fit the rest of a configuration are refused, in one line each."""

import pytest

from fedddp.comm import Place
from fedddp.config import UsageError, build, to_dict
from fedddp.setup.resolve import resolve
from fedddp.setup.robustness import told_of_attack

TEN = {"data": {"partition": {"num_clients": 10}}}
SECURE = {"privacy": {"secure_aggregation": {"enabled": True}}}
CLIENT = {"privacy": {"level": "client", "noise_multiplier": 1.0}}


def resolved(*layers):
    return resolve(build(TEN, *layers), Place())


def rule(name, **keys):
    return {"aggregation": {"rule": {"name": name, **keys}}}


def attack(name, **keys):
    return {"attack": {"name": name, **keys}}


@pytest.mark.parametrize(
    ("layers", "told"),
    [
        ([rule("krum"), SECURE], "aggregation.rule.name=krum: krum needs single updates; secure aggregation hides"),
        ([rule("norm_bound"), CLIENT], "aggregation.rule.name=norm_bound: .*privacy.level=client adds its noise"),
        (
            [attack("alie"), SECURE],
            "attack.name=alie: alie needs single updates; secure aggregation hides them: use an",
        ),
        (
            [rule("krum", num_byzantine=4)],
            r"krum: needs 11 clients a round \(m >= 2 f \+ 3\), there are 10; set a lower",
        ),
        ([rule("krum"), attack("ipm", num_clients=4)], r"krum: needs 11 clients .*by default attack.num_clients"),
        ([rule("trimmed_mean", num_byzantine=5)], r"needs 11 clients a round \(m > 2 f\), there are 10"),
        ([rule("krum"), {"cohort": {"size": 4}}], "needs 5 clients a round .*, there are 4"),
        ([rule("multi_krum", num_byzantine=2, selected=9)], "needs 11 clients a round .*selected.*, there are 10"),
        (
            [rule("krum"), {"aggregation": {"sum": "exact"}}],
            "aggregation.sum=exact: promises .*use aggregation.sum=fast",
        ),
        *(
            (
                [rule("centered_clipping", momentum=0.5), {"algorithm": {"name": name}}],
                f"aggregation.rule.momentum=0.5: .*algorithm.name='{name}'.*use momentum=0",
            )
            for name in ("scaffold", "feddyn", "ifca")
        ),
        ([attack("ipm", num_clients=11)], "attack.num_clients=11: there are only 10 clients"),
        ([{"attack": {"num_clients": 2}}], "num_clients=2 has no effect with attack.name=none; name an attack"),
        ([rule("kurm")], "aggregation.rule.name='kurm': .*did you mean 'krum'"),
        ([rule("median", trim=1)], "aggregation.rule.trim: unknown key; nothing is to be set here"),
    ],
)
def test_what_cannot_be_is_refused(layers, told):
    with pytest.raises(UsageError, match=told):
        resolved(*layers)


@pytest.mark.parametrize(
    "layers",
    [
        [rule("mean"), SECURE],
        [attack("sign_flip"), SECURE],
        [rule("krum", num_byzantine=3)],
        [rule("centered_clipping", momentum=0.5), {"algorithm": {"name": "fednova"}}],
        [rule("centered_clipping"), {"algorithm": {"name": "scaffold"}}],
        [rule("median"), {"aggregation": {"sum": "exact"}}],
        [rule("trimmed_mean", num_byzantine=4)],
        [rule("median"), {"privacy": {"level": "example", "noise_multiplier": 1.0}}],
        [attack("backdoor", num_clients=0)],
    ],
)
def test_what_can_be_is_not(layers):
    resolved(*layers)


@pytest.mark.parametrize("name", ["krum", "multi_krum", "trimmed_mean"])
def test_a_rule_expects_as_many_byzantine_clients_as_there_are_unless_it_is_told(name):
    faced = [
        ({}, 1),
        (attack("sign_flip"), 1),
        (attack("sign_flip", num_clients=3), 3),
        (attack("alie", num_clients=0), 1),
    ]
    for layer, expected in faced:
        assert resolved(rule(name), layer).aggregation.rule.num_byzantine == expected
        assert to_dict(resolved(rule(name), layer))["aggregation"]["rule"]["num_byzantine"] == expected
        assert resolved(rule(name, num_byzantine=2), layer).aggregation.rule.num_byzantine == 2
    again = to_dict(resolved(rule(name), attack("ipm", num_clients=2)))
    assert to_dict(resolved(again)) == again


def test_the_default_is_the_mean_and_nobody_attacks():
    table = to_dict(resolved())
    assert (table["aggregation"]["rule"], table["attack"]) == ({"name": "mean"}, {"name": "none", "num_clients": 0})
    assert told_of_attack(resolved()) == []


def test_who_is_byzantine_is_told_in_a_line():
    (line,) = told_of_attack(resolved(attack("sign_flip", num_clients=2)))
    assert line.startswith("attack sign_flip: 2 Byzantine clients: ")
    assert told_of_attack(resolved(attack("backdoor", num_clients=0))) == ["attack backdoor: 0 Byzantine clients"]
