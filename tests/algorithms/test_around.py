"""A wrapper does as the algorithm inside, in every method and property of the base class that it does not override."""

import inspect
from dataclasses import dataclass
from unittest.mock import Mock, sentinel

import pytest
import torch

from fedddp.algorithms import Algorithm, Around
from fedddp.algorithms.masked import Masks

METHODS = {name: method for name, method in vars(Algorithm).items() if inspect.isfunction(method) and name[0] != "_"}
PROPERTIES = [name for name, member in vars(Algorithm).items() if isinstance(member, property)]
SAME_WRAPPER = {"with_plain_mean"}
"""Methods that return the wrapper around what the inner algorithm becomes."""


@dataclass(frozen=True)
class Marked(Around):
    mark: str


@pytest.mark.parametrize("name", sorted(METHODS.keys() - SAME_WRAPPER))
def test_every_method_is_forwarded(name):
    inner = Mock(spec=list(METHODS))
    given = [getattr(sentinel, word) for word in [*inspect.signature(METHODS[name]).parameters][1:]]
    assert given
    assert getattr(Marked(inner, "mine"), name)(*given) is getattr(inner, name).return_value
    getattr(inner, name).assert_called_once_with(*given)
    assert len(inner.mock_calls) == 1


@pytest.mark.parametrize("name", PROPERTIES)
def test_every_property_is_forwarded(name):
    inner = Mock(spec=[*METHODS, *PROPERTIES])
    assert getattr(Marked(inner, "mine"), name) is getattr(inner, name)


@pytest.mark.parametrize("name", sorted(SAME_WRAPPER))
def test_it_is_the_same_wrapper_around_what_the_inner_one_becomes(name):
    inner = Mock(spec=list(METHODS))
    given = [getattr(sentinel, word) for word in [*inspect.signature(METHODS[name]).parameters][1:]]
    assert getattr(Marked(inner, "mine"), name)(*given) == Marked(getattr(inner, name).return_value, "mine")
    getattr(inner, name).assert_called_once_with(*given)


def test_wrappers_are_compared_by_all_they_hold_but_a_mask_is_only_itself():
    inner, mask = Mock(spec=list(METHODS)), torch.zeros(3, dtype=torch.bool)
    assert Marked(inner, "mine") == Marked(inner, "mine") != Marked(inner, "yours")
    assert Masks(mask, mask, 3) != Masks(mask, mask, 3)
