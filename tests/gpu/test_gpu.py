"""What only a GPU shows: python -m pytest tests/gpu"""

import pytest
import torch

from fedddp.checkpoints.saved import vector_sha256
from fedddp.comm import Comm, Place
from fedddp.config import build
from fedddp.federation import federate
from fedddp.setup.assemble import connect
from fedddp.setup.load import prepare
from fedddp.setup.resolve import resolve
from tests.helpers.distributed import configured as small
from tests.helpers.distributed import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def experiment(tmp_path, device, model="mlp", rounds=2, **client):
    table = {
        "run": {"device": device, "rounds": rounds, "dir": str(tmp_path), "threads": 1},
        "data": {"partition": {"num_clients": 20}},
        "cohort": {"size": 4},
        "model": {"name": model},
        "client": {"precision": "float64", "batch_size": 50, **client},
        "checkpoint": {"every": 0},
        "telemetry": {"tensorboard": False, "progress": "off"},
    }
    return connect(prepare(resolve(build(table), Place()), Place()))


@pytest.mark.parametrize("execution", ["sequential", "auto"])
@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_gpu_and_cpu_train_and_score_the_same_model(tmp_path, model, execution):
    results, scores = {}, {}
    for device in ("cpu", "cuda"):
        e = experiment(tmp_path, device, model, execution={"name": execution})
        server = federate(e.federation, e.server)
        assert server.w.device.type == device
        results[device], scores[device] = server.w.cpu(), e.federation.evaluation.server.score(server.w)
    torch.testing.assert_close(results["cpu"], results["cuda"], rtol=0, atol=1e-9)  # float64, order of sums differs
    assert torch.equal(scores["cpu"].confusion, scores["cuda"].confusion)
    assert scores["cpu"].loss == pytest.approx(scores["cuda"].loss, rel=1e-9)


@pytest.mark.parametrize("execution", ["sequential", "vectorized"])
def test_a_run_in_bfloat16_learns(tmp_path, execution):
    e = experiment(tmp_path, "cuda", rounds=5, precision="bfloat16", batch_size=10, execution={"name": execution})
    server = federate(e.federation, e.server)
    assert server.w.dtype == torch.float32
    assert e.federation.evaluation.server.score(server.w).accuracy > 0.8


@pytest.mark.parametrize("execution", ["sequential", "auto"])
def test_later_rounds_need_no_more_memory_than_the_first_few(tmp_path, execution):
    """The first few: convolutions get their workspace, and a round's leftovers overlap with the next one."""
    e = experiment(tmp_path, "cuda", "cnn", precision="float32", execution={"name": execution})
    server, peaks = e.server, []
    for rounds in (4, 8, 16):
        torch.cuda.reset_peak_memory_stats()
        server = federate(e.federation.until(rounds), server)
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[2] <= peaks[1], peaks


def train_on_the_first(comm, table):
    """Ranks that share a GPU, however many there are."""
    place = Place(comm.rank, comm.world_size, 0, comm.world_size)
    e = connect(prepare(resolve(build(table), place), place), comm=comm)
    server = federate(e.federation, e.server)
    return comm.backend, comm.remark, server.w.device.type, vector_sha256(server.w), server.w.cpu()


def test_ranks_that_share_a_gpu_train_through_gloo(tmp_path, run_ranks):
    table = small(
        tmp_path, run={"device": "cuda"}, client={"precision": "float64"}, data={"partition": {"num_clients": 4}}
    )
    ranks = run_ranks(train_on_the_first, 2, table, device="cuda:0", backend="auto", timeout=60, limit=200)
    assert [r[0] for r in ranks] == ["gloo"] * 2
    assert [r[2] for r in ranks] == ["cuda"] * 2
    assert all("2 ranks use 1 GPU" in r[1] for r in ranks)
    assert ranks[0][3] == ranks[1][3]
    alone = train_on_the_first(Comm.alone("cuda:0"), table)
    torch.testing.assert_close(ranks[0][4], alone[4], rtol=0, atol=1e-9)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs a GPU for each of two ranks")
def test_ranks_with_a_gpu_each_train_through_nccl(tmp_path, run_ranks):
    ranks = torch.cuda.device_count()
    table = small(tmp_path, run={"device": "cuda"}, data={"partition": {"num_clients": 2 * ranks}})
    results = run_ranks(named, ranks, table, device="cuda", backend="auto", timeout=60, limit=200)
    assert {backend for backend, _ in results} == {"nccl"}
    assert len({sha for _, sha in results}) == 1


def named(comm, table):
    return comm.backend, train(comm, table)["sha256"]
