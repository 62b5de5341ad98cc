"""A wrapper does as the algorithm inside, in every method of the protocol that it does not override."""

import inspect
from dataclasses import dataclass
from unittest.mock import Mock, sentinel

import pytest
import torch

from fedddp.algorithms import Algorithm, Around
from fedddp.algorithms.masked import Masked

METHODS = {name: method for name, method in vars(Algorithm).items() if inspect.isfunction(method) and name[0] != "_"}


@dataclass(frozen=True)
class Marked(Around):
    mark: str


@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"for_model"}))
def test_every_method_of_the_protocol_is_forwarded(name):
    inner = Mock(spec=list(METHODS))
    given = [getattr(sentinel, word) for word in [*inspect.signature(METHODS[name]).parameters][1:]]
    assert given
    assert getattr(Marked(inner, "mine"), name)(*given) is getattr(inner, name).return_value
    getattr(inner, name).assert_called_once_with(*given)
    assert len(inner.mock_calls) == 1


def test_for_a_model_it_is_the_same_wrapper_around_what_the_inner_one_becomes():
    inner = Mock(spec=list(METHODS))
    assert Marked(inner, "mine").for_model(sentinel.spec) == Marked(inner.for_model.return_value, "mine")
    inner.for_model.assert_called_once_with(sentinel.spec)


def test_wrappers_are_compared_by_all_they_hold_but_a_mask_is_only_itself():
    inner, mask = Mock(spec=list(METHODS)), torch.zeros(3, dtype=torch.bool)
    assert Marked(inner, "mine") == Marked(inner, "mine") != Marked(inner, "yours")
    assert Masked(inner, mask, mask, 3) != Masked(inner, mask, mask, 3)
