"""What only a GPU shows: python -m pytest tests/gpu"""

import pytest
import torch

from fedddp.comm import Comm, Place
from fedddp.config import build
from fedddp.experiment import connect
from fedddp.federation import federate
from fedddp.preparation import prepare, resolve

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def configured(tmp_path, device, model):
    return build(
        {
            "run": {"device": device, "rounds": 2, "dir": str(tmp_path), "threads": 1},
            "data": {"partition": {"num_clients": 20}},
            "cohort": {"size": 4},
            "model": {"name": model},
            "client": {"precision": "float64", "batch_size": 50},
            "telemetry": {"tensorboard": False, "progress": "off"},
        }
    )


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_gpu_and_cpu_train_the_same_model(tmp_path, model):
    results = {}
    for device in ("cpu", "cuda"):
        place = Place()
        experiment = connect(prepare(resolve(configured(tmp_path, device, model), place), place))
        server = federate(experiment.federation, experiment.server)
        assert server.w.device.type == device
        results[device] = server.w.cpu()
    torch.testing.assert_close(results["cpu"], results["cuda"], rtol=0, atol=1e-9)  # float64, order of sums differs


def sum_on_a_shared_gpu(rank, meeting, results):
    store = torch.distributed.FileStore(meeting, 2)
    device = torch.device("cuda", 0)
    comm = Comm.connect(Place(rank, 2, rank, 2), device, timeout=60, store=store)
    total = comm.all_reduce(torch.full((1000,), rank + 1.0, device=device), "sum")
    results[rank] = (comm.backend, comm.remark, total.device.type, float(total.sum()))


def test_ranks_that_share_a_gpu_meet_through_gloo(tmp_path):
    context = torch.multiprocessing.get_context("spawn")
    results = context.Manager().dict()
    ranks = [context.Process(target=sum_on_a_shared_gpu, args=(r, str(tmp_path / "meet"), results)) for r in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
    for rank in range(2):
        backend, remark, where, total = results[rank]
        assert (backend, where, total) == ("gloo", "cuda", 3000.0)
        assert "share" in remark
