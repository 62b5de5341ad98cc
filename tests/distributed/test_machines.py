"""Two machines: network namespaces with a cable between them, and ranks that are started without hints."""

import os
import sys

import pytest

from benchmarks import machines, wire

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(wire.missing()), reason=f"network namespaces: {wire.missing()}"),
]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"])
    for name in ("GLOO_SOCKET_IFNAME", "IS_HOST", "RDZV_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("way", ["launch", "torchrun"])
def test_machines_start_without_hints(way):
    found = machines.measured(way, "start")
    assert (found["state"], found["rounds"]) == ("done", 10), found
    assert [side["exit"] for side in found["machines"]] == [0, 0]
    assert found["machines"][1]["printed"] >= 10  # a line per round


def test_both_sides_of_a_cut_link_end_within_their_timeout():
    found = machines.measured("launch", "cut for good")
    for side in found["machines"]:
        assert side["exit"] == 1, found
        assert side["seconds"] < machines.TIMEOUT + 20
    assert found["state"] == "failed"


def test_a_link_that_comes_back_costs_no_run():
    found = machines.measured("launch", "cut for 10 s")
    assert (found["state"], [side["exit"] for side in found["machines"]]) == ("done", [0, 0]), found


def test_the_loss_of_the_machine_with_the_store_is_noticed():
    found = machines.measured("launch", "machine 0 killed")
    other = found["machines"][1]
    assert other["exit"] == 1
    assert other["seconds"] < machines.TIMEOUT


@pytest.mark.parametrize("way", ["launch", "party"])
def test_a_run_over_a_slow_link_ends_well(way):
    """Rank 0 stays until the others have left: one that asks the store in the last collective still finds it."""
    found = machines.measured(way, "round trip of 300 ms")
    assert (found["state"], [side["exit"] for side in found["machines"]]) == ("done", [0, 0]), found
    assert found["folders"] == 1
