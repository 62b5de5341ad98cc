"""IFCA: the recursion by hand, its limit with one cluster, and that it finds who belongs together."""

import pytest
import torch

from fedddp.algorithms import IFCA
from fedddp.federation import federate
from fedddp.flat import FlatSpec
from fedddp.optim import SGD
from tests.helpers.planes import BODY, HEAD, descend, mean, personal, planes
from tests.helpers.support import assemble, client_states, few_digits

SIZES = (4, 7, 5, 9)
SLOPES = torch.tensor([[2.0, -1, 0, 1, 3], [-2, 1, 1, -1, 0]], dtype=torch.float64)
TEAM = [0, 1, 1, 0]


def teams():
    """Clients 0 and 3 on one plane, 1 and 2 on another."""
    stream, parts = torch.Generator().manual_seed(1), []
    for n, team in zip(SIZES, TEAM, strict=True):
        f = torch.randn(n, BODY + HEAD, generator=stream, dtype=torch.float64)
        parts.append(torch.cat([f, (f @ SLOPES[team]).unsqueeze(1)], dim=1))
    return parts


def misfit(part, w):
    return float(((part[:, :-1] @ w - part[:, -1]) ** 2).mean() / 2)


def models(server, clusters):
    return [server.w, *(server.extra[f"theta.{j}"] for j in range(1, clusters))]


@pytest.mark.parametrize("weighting", ["uniform", "examples"])
def test_the_recursion(tmp_path, weighting):
    """Each client from the model that fits it best, each model to the mean of those who picked it; plain by default."""
    table = {"name": "ifca", "clusters": 3} | ({"weighting": weighting} if weighting == "examples" else {})
    f, start = planes(tmp_path, teams(), run={"rounds": 5}, algorithm=table)
    theta, parts = models(start, 3), teams()
    for _ in range(5):
        picks = [min(range(3), key=lambda j, p=p: misfit(p, theta[j])) for p in parts]
        for j in set(picks):
            mine = [p for p, pick in zip(parts, picks, strict=True) if pick == j]
            ends = [descend(p, theta[j]) for p in mine]
            theta[j] = mean(ends, mine) if weighting == "examples" else torch.stack(ends).mean(dim=0)
    end = federate(f, start)
    assert client_states(f, range(4), end)["cluster"].flatten().tolist() == picks
    torch.testing.assert_close(torch.stack(models(end, 3)), torch.stack(theta), rtol=0, atol=1e-12)
    torch.testing.assert_close(personal(f, end), torch.stack([theta[j] for j in picks]), rtol=0, atol=1e-12)


def test_teams_find_each_other_where_one_model_fits_neither(tmp_path):
    f, start = planes(tmp_path, teams(), run={"rounds": 80}, algorithm={"name": "ifca"})
    end = federate(f, start)
    a, b, c, d = client_states(f, range(4), end)["cluster"].flatten().tolist()
    assert (a, b) == (d, c)
    assert a != b
    for part, team, own in zip(teams(), TEAM, personal(f, end), strict=True):
        torch.testing.assert_close(own, SLOPES[team], rtol=0, atol=0.05)
        assert misfit(part, own) < 1e-3
    g, start = planes(tmp_path / "one", teams(), run={"rounds": 80})
    alone = federate(g, start).w
    assert min(misfit(part, alone) for part in teams()) > 0.1


@pytest.mark.parametrize("server_optimizer", [{"lr": 1.0}, {"lr": 0.5, "momentum": 0.8}])
def test_with_one_cluster_it_is_federated_averaging(tmp_path, server_optimizer):
    def trained(**algorithm):
        algorithm |= {"server_optimizer": server_optimizer, "weighting": "uniform"}
        f, start = planes(tmp_path / algorithm["name"], teams(), run={"rounds": 3}, algorithm=algorithm)
        return federate(f, start)

    ifca, fedavg = trained(name="ifca", clusters=1), trained(name="fedavg")
    torch.testing.assert_close(ifca.w, fedavg.w, rtol=0, atol=1e-15)
    for name, vector in fedavg.extra.items():
        torch.testing.assert_close(ifca.extra[f"{name}.0"], vector, rtol=0, atol=1e-15)


def test_a_cluster_that_nobody_picks_keeps_its_model_and_its_momentum(tmp_path):
    algorithm = {"name": "ifca", "clusters": 4, "server_optimizer": {"momentum": 0.5}}
    f, start = planes(tmp_path, teams()[:1], run={"rounds": 1}, algorithm=algorithm)
    end = federate(f, start)
    (pick,) = client_states(f, (0,), end)["cluster"].flatten().int().tolist()
    for j, (before, after) in enumerate(zip(models(start, 4), models(end, 4), strict=True)):
        assert torch.equal(before, after) == (j != pick)
        assert (end.extra[f"momentum.{j}"].abs().max() > 0) == (j == pick)
    assert torch.isfinite(torch.stack(models(end, 4))).all()


def test_first_models_are_shuffles_that_depend_on_the_seed(tmp_path):
    starts = []
    for seed in (0, 1):
        _, start = assemble(
            tmp_path / str(seed), few_digits(8), (4, 4), model={"name": "mlp", "hidden": 6}, algorithm={"name": "ifca"},
            run={"seed": seed},
        )  # fmt: skip
        starts.append(start)
        first, other = models(start, 2)
        sizes = [784 * 6, 6, 36, 6, 60, 10]
        for a, b in zip(first.split(sizes), other.split(sizes), strict=True):
            assert not torch.equal(a, b)
            assert torch.equal(a.sort().values, b.sort().values)
    assert not torch.equal(starts[0].extra["theta.1"], starts[1].extra["theta.1"])


def test_names_of_many_clusters_do_not_meet():
    spec = FlatSpec.of(torch.nn.Linear(4, 2))
    algorithm = IFCA(clusters=12, server_optimizer=SGD(momentum=0.5))
    server = algorithm.init_server(torch.arange(10.0), spec)
    assert len(server.extra) == 11 + 12
    client = {"cluster": torch.tensor([[11.0], [1.0], [0.0]])}
    rows = algorithm.personal_params(server, client)
    assert torch.equal(rows, torch.stack([server.extra["theta.11"], server.extra["theta.1"], server.w]))
