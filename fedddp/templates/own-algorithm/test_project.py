"""Quick checks of the project: pytest"""

from pathlib import Path
from types import SimpleNamespace

import torch
from algorithm import Steady

import fedddp
from fedddp.algorithms import FedAvg
from fedddp.types import ServerState

CONFIG = Path(__file__).with_name("config.toml")


def test_the_servers_step_by_hand():
    server = ServerState(torch.tensor([1.0, 2.0]), None, {"m": torch.tensor([0.5, 0.0])})
    after = Steady(beta=0.5).server_update(server, SimpleNamespace(vectors={"delta": torch.tensor([1.0, -1.0])}), None)
    assert after.extra["m"].tolist() == [1.25, -1.0]
    assert after.w.tolist() == [2.25, 1.0]
    assert after.round == 1


def test_without_pull_and_momentum_it_is_fedavg(tmp_path):
    few = {"run.rounds": 1, "run.dir": str(tmp_path)}
    mine = fedddp.run(CONFIG, few, name="mine", algorithm=Steady(mu=0.0, beta=0.0))
    fedavg = fedddp.run(CONFIG, few, name="fedavg", algorithm=FedAvg())
    torch.testing.assert_close(mine.w, fedavg.w, rtol=1e-3, atol=1e-4)  # float32, in another order


def test_the_pull_keeps_clients_nearer(tmp_path):
    few = {"run.rounds": 1, "run.dir": str(tmp_path)}
    start = fedddp.assemble(CONFIG, few)
    w = start.server.w.clone()
    start.close()
    free, held = (fedddp.run(CONFIG, few, name=f"mu-{mu}", algorithm=Steady(mu=mu, beta=0.0)) for mu in (0.0, 5.0))
    assert (held.w - w).norm() < 0.5 * (free.w - w).norm()


def test_it_learns(tmp_path):
    result = fedddp.run(CONFIG, {"run.rounds": 3, "run.dir": str(tmp_path)})
    assert result.summary["final_test_accuracy"] > 0.2
