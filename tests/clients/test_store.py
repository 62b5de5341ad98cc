"""fedddp.clients.store: what clients remember between rounds."""

import torch

from fedddp.clients import ClientStore

NEW = {"c": torch.zeros(1, 2), "h": torch.ones(1, 1)}
SMALL = {"c": torch.zeros(1, 1)}
ERROR = {"error": torch.zeros(1, 1)}


def state(*values):
    rows = torch.tensor([float(v) for v in values])
    return {"c": torch.stack([rows, -rows], dim=1), "h": rows.unsqueeze(1)}


def values(s, ids):
    return s.get(ids, NEW)["h"].flatten().tolist()


def test_a_new_client_has_the_initial_state():
    initial = ClientStore().get((4, 7), NEW)
    assert {name: v.tolist() for name, v in initial.items()} == {"c": [[0, 0], [0, 0]], "h": [[1], [1]]}


def test_what_was_put_is_kept_from_the_commit_on():
    s = ClientStore()
    s.put((3, 8), state(30, 80), range(2))
    assert values(s, (3, 8, 5)) == [1, 1, 1]
    s.commit()
    assert values(s, (8, 5, 3)) == [80, 1, 30]
    assert s.get((3,), NEW)["c"].tolist() == [[30, -30]]


def test_an_interrupted_round_leaves_the_store_as_it_was():
    s = ClientStore()
    s.put((3,), state(30), range(1))
    s.commit()
    s.put((3, 4), state(31, 41), range(2))
    assert values(s, (3, 4)) == [30, 1]
    assert values(reloaded(s.state_dict()), (3, 4)) == [30, 1]


def test_what_is_kept_does_not_alias_what_was_put():
    s, mine = ClientStore(), state(30)
    s.put((3,), mine, range(1))
    mine["h"].zero_()
    s.commit()
    assert values(s, (3,)) == [30]
    s.get((3,), NEW)["h"].zero_()
    assert values(s, (3,)) == [30]


def test_what_is_kept_more_precisely_than_it_began_stays_so():
    """A compression's memory begins as float32 zeros and follows the precision of the updates."""
    s, third = ClientStore(), torch.tensor([[1 / 3]], dtype=torch.float64)
    s.put((3,), {"c": third.expand(1, 2), "h": third}, range(1))
    s.commit()
    assert torch.equal(reloaded(s.state_dict()).get((3,), NEW)["h"], third)


def reloaded(saved, mine=lambda client: True):
    s = ClientStore()
    s.put((99,), state(1), range(1))
    s.commit()
    s.load_state_dict(saved, mine)
    return s


def test_saved_and_loaded_it_is_the_same():
    s = ClientStore()
    s.put((3, 12), state(30, 120), range(2))
    s.commit()
    saved = s.state_dict()
    assert sorted(saved) == ["12/c", "12/h", "3/c", "3/h"]
    assert saved["3/c"].tolist() == [30, -30]
    again = reloaded(saved)
    assert again.state_dict().keys() == saved.keys()
    assert torch.equal(again.get((12, 3, 4), NEW)["c"], s.get((12, 3, 4), NEW)["c"])


def test_only_the_clients_that_live_here_are_loaded():
    s = ClientStore()
    s.put((3, 4, 5), state(30, 40, 50), range(3))
    s.commit()
    assert values(reloaded(s.state_dict(), lambda client: client % 2 == 0), (3, 4, 5)) == [1, 40, 1]


def test_stateless_clients_leave_nothing():
    s = ClientStore()
    s.put((1, 2), {}, range(2))
    s.commit()
    assert s.get((1, 2), {}) == {}
    assert s.state_dict() == {}


def test_only_the_rows_that_were_taken_change():
    s = ClientStore()
    s.put((3, 4), {"c": torch.tensor([[30.0], [float("nan")]])}, [0])
    s.commit()
    assert s.get((3, 4), SMALL)["c"].tolist() == [[30.0], [0.0]]


def with_another():
    another = ClientStore()
    return ClientStore(beside=another), another


def test_a_store_beside_is_committed_and_saved_with_the_first():
    """The same clients' vectors and what all ranks share, of both, told apart by name."""
    s, another = with_another()
    s.put((3,), {"c": torch.tensor([[1.0]])}, [0])
    another.put((3, 4), {"error": torch.tensor([[2.0], [3.0]])}, [0, 1])
    another.put_common({"q": torch.tensor([5.0, 6.0])})
    assert not another.common
    s.commit()
    saved = s.state_dict()
    assert sorted(saved) == ["3/beside/error", "3/c", "4/beside/error", "all/beside/q"]
    again, its = with_another()
    again.load_state_dict(saved, lambda client: client == 3)
    assert again.get((3, 4), SMALL)["c"].tolist() == [[1], [0]]
    assert its.get((3, 4), ERROR)["error"].tolist() == [[2], [0]]
    assert its.common["q"].tolist() == [5, 6]
    assert not again.common


def test_what_is_discarded_was_never_written():
    s, another = with_another()
    s.put((3,), {"c": torch.tensor([[1.0]])}, [0])
    s.commit()
    s.put((3, 4), {"c": torch.tensor([[2.0], [3.0]])}, [0, 1])
    another.put((3,), {"error": torch.tensor([[4.0]])}, [0])
    another.put_common({"q": torch.tensor([5.0])})
    s.discard()
    assert s.latest((3, 4), SMALL)["c"].tolist() == [[1], [0]]
    s.commit()
    assert sorted(s.state_dict()) == ["3/c"]
    assert s.get((3, 4), SMALL)["c"].tolist() == [[1], [0]]


def test_what_only_an_earlier_version_saved_is_left_out():
    s = ClientStore()
    s.load_state_dict({"3/c": torch.tensor([1.0]), "3/began": torch.tensor([1.0])}, lambda client: True)
    assert {name: rows.tolist() for name, rows in s.get((3, 4), SMALL).items()} == {"c": [[1], [0]]}
