"""The partition of Karimireddy et al. 2020: a share of each client's examples is IID, the rest sorted by label."""

import numpy as np
import pytest

from fedddp.data.partition import Similarity

LABELS = np.random.default_rng(0).integers(10, size=1003)


@pytest.mark.parametrize("similarity", [0.0, 0.1, 1.0])
def test_everything_is_dealt_once_and_evenly(similarity):
    split = Similarity(20, similarity).split(LABELS, 3)
    assert sorted(split.order.tolist()) == list(range(1003))
    assert split.sizes.max() - split.sizes.min() <= 1
    assert np.array_equal(split.order, Similarity(20, similarity).split(LABELS, 3).order)
    assert not np.array_equal(split.order, Similarity(20, similarity).split(LABELS, 4).order)


def test_the_share_decides_how_many_labels_a_client_sees():
    mixes = {s: Similarity(20, s).split(LABELS, 0).counts(LABELS, 10) for s in (0.0, 0.5, 1.0)}
    largest = {s: float((m.max(axis=1) / m.sum(axis=1)).mean()) for s, m in mixes.items()}
    assert (np.count_nonzero(mixes[0.0], axis=1) <= 2).all()
    assert largest[0.0] > 0.75 > largest[0.5] > 0.45 > 0.3 > largest[1.0]
    first = mixes[0.0].argmax(axis=1)
    assert (np.diff(first) >= 0).all()  # in the order of the labels
