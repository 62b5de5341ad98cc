"""Quick checks of the project: pytest"""

from pathlib import Path

import pytest
import torch
from model import Residual

import fedddp

CONFIG = Path(__file__).with_name("config.toml")


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
def test_the_model_fits_the_data(shape):
    module = Residual().build(shape, 7)
    assert module(torch.zeros(2, *shape)).shape == (2, 7)


def test_every_parameter_gets_a_gradient():
    module = Residual(blocks=2).build((1, 28, 28), 10)
    module(torch.randn(4, 1, 28, 28)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in module.parameters())


def test_it_learns(tmp_path):
    result = fedddp.run(CONFIG, {"run.rounds": 2, "run.dir": str(tmp_path)})
    assert result.summary["final_test_accuracy"] > 0.2  # twice as good as guessing


def test_clients_train_alike_one_by_one_and_in_batches(tmp_path):
    small = {"run.rounds": 1, "run.dir": str(tmp_path), "client.local_steps": 5}
    one, many = (
        fedddp.run(CONFIG, small, name=how, client={"execution": {"name": how}}) for how in ("sequential", "vectorized")
    )
    torch.testing.assert_close(one.w, many.w, rtol=1e-3, atol=1e-5)  # sums in another order


def test_a_width_that_cannot_be_is_refused():
    with pytest.raises(fedddp.UsageError, match=r"model\.width"):
        fedddp.run(CONFIG, {"model.width": 3})
