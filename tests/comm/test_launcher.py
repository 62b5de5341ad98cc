"""Which rank is told as the cause when several failed."""

import pytest

from fedddp.comm.launcher import in_order
from fedddp.comm.machines import Failure


@pytest.mark.parametrize(
    ("codes", "first", "order"),
    [
        ({0: 1, 1: 1}, 1, [1, 0]),
        ({0: -9, 1: 1}, 1, [0, 1]),  # rank 1 noticed that rank 0 was killed, and was seen to end before it
        ({0: -15, 1: 1}, 1, [1, 0]),  # the launcher ended rank 0
        ({0: 1, 1: -6, 2: -15}, 0, [1, 0, 2]),
    ],
)
def test_who_was_ended_by_a_signal_comes_first(codes, first, order):
    failed = {rank: Failure(code, "") for rank, code in codes.items()}
    assert [*in_order(failed, first)] == order
