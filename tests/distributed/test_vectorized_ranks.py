"""Clients of a cohort over ranks that train several of them at once."""

from dataclasses import replace

import pytest

from fedddp.federation import federate
from fedddp.sampling import assign, at_home
from tests.helpers.distributed import configured, experiment_of


class Noting:
    """A trainer that notes whom it trains when."""

    def __init__(self, trainer):
        self.trainer, self.data, self.width, self.blocks = trainer, trainer.data, trainer.width, []

    def on(self, ids, round):
        self.blocks.append((round, ids))
        return self.trainer.on(ids, round)


def trained(comm, table):
    """Who is trained here, the cohorts and what each client of one costs, the model, and what is said of the choice."""
    lines = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedddp.setup.assemble.log.info", lambda text, *args: lines.append(text % args))
        experiment = experiment_of(comm, table)
    f = experiment.federation
    noting = Noting(f.trainer)
    server = federate(replace(f, trainer=noting), experiment.server)
    cohorts = [f.sampler.cohort(t) for t in range(f.rounds)]
    work = [f.schedule.work(f.schedule.sizes[list(cohort.ids)]).tolist() for cohort in cohorts]
    return noting.blocks, list(zip(cohorts, work, strict=True)), server.w, lines


@pytest.mark.parametrize("algorithm", ["fedavg", "faulty:Counting"])
def test_a_cohort_is_trained_once_where_it_is_balanced_or_where_its_state_lives(run_ranks, tmp_path, algorithm):
    table = configured(
        tmp_path,
        data={"placement": "shared"},
        data__partition={"num_clients": 20, "name": "quantity", "alpha": 0.5, "min_size": 1},
        cohort={"size": 12},
        client={"precision": "float64"},
        client__execution={"name": "vectorized", "width": 4},
        algorithm={"name": algorithm},
        evaluate={"every": 0},
    )
    (alone,) = run_ranks(trained, 1, table)
    ranks = run_ranks(trained, 2, table)
    divide = assign if algorithm == "fedavg" else at_home
    for t, (cohort, work) in enumerate(alone[1]):
        blocks = [[ids for round, ids in rank[0] if round == t] for rank in ranks]
        assert [sum(own, ()) for own in blocks] == divide(cohort, work, 2)
        assert 1 < max(len(ids) for own in blocks for ids in own) <= 4
        assert sum((ids for round, ids in alone[0] if round == t), ()) == divide(cohort, work, 1)[0]
    assert all((rank[2] - alone[2]).abs().max() < 1e-12 for rank in ranks)
    assert [rank[3][-1:] for rank in ranks] == [
        ["clients train vectorized: 4 clients at once, layers folded over clients"],
        [],
    ]
