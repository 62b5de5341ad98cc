"""Inputs of any shape, and test sets smaller than the number of ranks, on several ranks with default telemetry."""

import json

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fedddp.comm import Place
from fedddp.config import build
from fedddp.data import Partition
from fedddp.federation import federate
from fedddp.setup.assemble import connect
from fedddp.setup.load import prepare
from fedddp.setup.resolve import resolve
from tests.helpers.inputs import KINDS, MLP, Kind


def trained(comm, folder, data, sections):
    """Two rounds; the metrics that rank 0 wrote, and how many clients and test examples it counted."""
    place = Place(comm.rank, comm.world_size, comm.rank, comm.world_size)
    quiet = {"run": {"dir": folder, "name": "run", "device": "cpu", "threads": 1, "rounds": 2}}
    named = {"data": {"name": "synthetic", "partition": {"num_clients": 4}}, "telemetry": {"progress": "off"}}
    config = resolve(build(quiet, named, {"model": MLP, **sections}), place)
    partition = Partition.dealt(np.arange(len(data.train)), np.array([len(data.train) // 4] * 4))
    prepared = prepare(config, place, data, partition)
    if comm.rank == 0:
        comm.check_signature(prepared.signature)  # anew: the same ranks train several times
    comm.barrier("done")
    experiment = connect(prepared, comm=comm)
    federate(experiment.federation, experiment.server)
    experiment.federation.telemetry.close(experiment.federation.telemetry.summary())
    return experiment.federation.telemetry.history


ON_RANKS = ("vector", "sequence", "tokens", "2 channels", "4 channels", "volume", "a vector of bytes")


def trained_on_all(comm, folder):
    kinds = {name: KINDS[name] for name in ON_RANKS}
    return {name: trained(comm, f"{folder}/{name}", kind.dataset(), kind.sections) for name, kind in kinds.items()}


def pages(folder):
    events = EventAccumulator(str(folder / "run" / "tensorboard"))
    events.Reload()
    return [event.step for event in events.Scalars("1 learning/accuracy test")], set(events.Tags()["images"])


def test_inputs_of_any_shape_train_on_two_ranks(run_ranks, tmp_path):
    """Of all kinds in one pair of processes, which need seconds to start."""
    first, second = run_ranks(trained_on_all, 2, str(tmp_path), limit=180.0)
    for kind, history in first.items():
        assert [m["test_accuracy"] for m in history] == [m["test_accuracy"] for m in second[kind]]
        assert [m["participants"] for m in history] == [4, 4]
        steps, pictures = pages(tmp_path / kind)
        assert steps == [1, 2]
        assert pictures >= {
            "2 clients/partition",
            "1 learning/picture: confusion",
            "1 learning/picture: accuracy of classes",
        }


@pytest.mark.parametrize(
    ("ranks", "examples", "sections"),
    [
        (2, 1, {}),
        (3, 2, {"evaluate": {"where": "rank0"}}),
        (3, 1, {"attack": {"name": "backdoor", "num_clients": 1}}),
        (3, 1, {"evaluate": {"holdout": 0.2, "personal_every": 1}}),
        (3, 1, {"aggregation": {"sum": "exact"}, "privacy": {"guard": True}}),
    ],
)
def test_a_rank_without_a_test_example_counts_nothing(ranks, examples, sections, run_ranks, tmp_path):
    data, sections = Kind((1, 6, 6)).dataset(num_test=examples), {"telemetry": {"tensorboard": False}, **sections}
    found = run_ranks(trained, ranks, str(tmp_path), data, sections)
    (alone,) = run_ranks(trained, 1, str(tmp_path / "alone"), data, sections)
    for both in zip(found[0], alone, strict=True):
        accuracy, expected = (m["test_accuracy"] for m in both)
        assert accuracy == expected
        assert both[0]["test_loss"] == pytest.approx(both[1]["test_loss"], rel=1e-3)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == found[0]
