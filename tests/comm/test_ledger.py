"""The ledger: equal messages are merged, nothing is lost or counted twice, whichever thread writes."""

import threading

from fedddp.comm.ledger import Entry, Ledger


def test_equal_messages_are_merged_and_taken_once():
    ledger = Ledger()
    ledger.add("all_reduce", "float32", (10,), 40, "aggregate")
    ledger.add("broadcast", "float32", (10,), 40, "aggregate")
    ledger.add("all_reduce", "float32", (10,), 44, "aggregate")
    ledger.add("all_reduce", "float32", (11,), 40, "aggregate")
    ledger.add("all_reduce", "int64", (10,), 40, "aggregate")
    ledger.add("all_reduce", "float32", (10,), 40, "evaluate")
    assert ledger.take() == (
        Entry("all_reduce", "float32", (10,), 84, "aggregate", 2),
        Entry("broadcast", "float32", (10,), 40, "aggregate", 1),
        Entry("all_reduce", "float32", (11,), 40, "aggregate", 1),
        Entry("all_reduce", "int64", (10,), 40, "aggregate", 1),
        Entry("all_reduce", "float32", (10,), 40, "evaluate", 1),
    )
    assert ledger.take() == ()


def test_threads_may_write_while_it_is_taken():
    ledger, taken = Ledger(), []
    writers = [
        threading.Thread(target=lambda: [ledger.add("store", "bytes", (), 3, "progress") for _ in range(5000)])
        for _ in range(4)
    ]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        taken += ledger.take()
    taken += ledger.take()
    assert sum(entry.count for entry in taken) == 20_000
    assert sum(entry.bytes for entry in taken) == 60_000
