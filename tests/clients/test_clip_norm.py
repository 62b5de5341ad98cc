"""`client.clip_norm`: the gradient of a local step is no longer than that, whatever the algorithm adds to it."""

import pytest
import torch

from fedddp.config import UsageError, build
from tests.helpers.support import assemble, client_states, few_digits

SIZES, LR, MU, BATCH = (4, 8, 12), 0.1, 0.3, 4


def plain(f, server, client, bound, mu):
    """One client's steps with `torch.nn.utils.clip_grad_norm_`, over the batches that it was dealt; its delta [D]."""
    local = f.trainer.on((client,), 0)
    order = f.trainer.plan(local)
    x, y = f.trainer.data.examples(client)
    module = f.trainer._task.model(0).double()
    torch.nn.utils.vector_to_parameters(server.w.clone(), module.parameters())
    before = [p.detach().clone() for p in module.parameters()]
    norms = []
    for index, mask in zip(order.index[0], order.mask[0], strict=True):
        rows = index[mask]
        module.zero_grad()
        proximal = sum(((p - q) ** 2).sum() for p, q in zip(module.parameters(), before, strict=True))
        loss = torch.nn.functional.cross_entropy(module(f.trainer.data.normalize(x[rows])), y[rows])
        (loss + mu / 2 * proximal).backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(module.parameters(), bound)))
        with torch.no_grad():
            for p in module.parameters():
                p -= LR * p.grad
    return torch.nn.utils.parameters_to_vector(module.parameters()).detach() - server.w, norms


@pytest.mark.parametrize("execution", ["sequential", "vectorized"])
@pytest.mark.parametrize("algorithm", [{"name": "fedavg"}, {"name": "fedprox", "mu": MU}])
def test_steps_are_those_of_a_plain_loop_that_clips(tmp_path, execution, algorithm):
    """Some steps are clipped, some are not; clip_grad_norm_ adds 1e-6 to the norm, hence the tolerance."""
    bound = 1.5
    client = {"local_epochs": 3, "batch_size": BATCH, "precision": "float64", "clip_norm": bound}
    client["execution"] = {"name": execution, "width": 3}
    f, server = assemble(
        tmp_path,
        few_digits(24),
        SIZES,
        model={"name": "mlp", "hidden": 4},
        client=client,
        algorithm=algorithm,
    )
    ids = [(0, 1, 2)] if execution == "vectorized" else [(0,), (1,), (2,)]
    updates = [f.algorithm.client_update(server, client_states(f, k, server), f.trainer.on(k, 0))[0] for k in ids]
    deltas = torch.cat([u.vectors["delta"] for u in updates])
    seen = []
    for client, delta in enumerate(deltas):
        expected, norms = plain(f, server, client, bound, algorithm.get("mu", 0))
        assert (delta - expected).abs().max() < 1e-6
        seen += norms
    assert min(seen) < bound < max(seen)


def test_a_gradient_of_zero_stays_zero(tmp_path):
    f, _ = assemble(tmp_path, few_digits(24), SIZES, client={"clip_norm": 1.0})
    limited = f.trainer.limited(None)
    assert limited(torch.zeros(2, 3), torch.ones(2, 3)).tolist() == [[0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("value", [0, -1, "much"])
def test_a_bound_is_a_positive_number(value):
    with pytest.raises(UsageError, match=r"client\.clip_norm"):
        build({"client": {"clip_norm": value}})
