"""Tests that classes are matched by name: equal, reordered, a part of them, or rejected."""

import numpy as np
import pytest
import torch
from torch import nn

from search_spaces import RequestError
from trainables.classes import class_metadata, classes_in, match_classes
from trainables.modules import SelectedOutputs

pytestmark = pytest.mark.quick

LOGITS = np.array([[1.0, 2.0, 3.0]])


def test_equal_classes_keep_the_outputs() -> None:
    match = match_classes("weights 'w'", 3, ["a", "b", "c"], ("a", "b", "c"))
    assert (match.columns, match.classes, match.note) == (None, 3, None)
    assert match.select(LOGITS) is LOGITS


def test_outputs_are_reordered_by_name() -> None:
    match = match_classes("weights 'w'", 3, ["a", "b", "c"], ["c", "a", "b"])
    assert match.select(LOGITS).tolist() == [[3, 1, 2]]
    assert match.note == "the outputs of weights 'w' are reordered by class name"


def test_outputs_of_some_classes_are_selected() -> None:
    match = match_classes("weights 'w'", 3, ["a", "b", "c"], ["c", "a"])
    assert match.select(LOGITS).tolist() == [[3, 1]]
    assert (match.classes, match.outputs) == (2, 3)
    assert "only the outputs of the data's 2 classes are compared, of 3 classes" in str(match.note)
    assert match.columns is not None
    selected = SelectedOutputs(nn.Identity(), match.columns)
    assert selected(torch.from_numpy(LOGITS)).tolist() == [[3, 1]]


def test_unknown_classes_are_assumed_to_be_in_order() -> None:
    match = match_classes("weights 'w'", 2, None, ["a", "b"])
    assert match.columns is None
    assert "do not record their classes: assuming the order" in str(match.note)
    with pytest.raises(RequestError, match="weights 'w' are for 3 classes, but the data has 2"):
        match_classes("weights 'w'", 3, None, ["a", "b"])


@pytest.mark.parametrize(
    ("names", "data", "words"),
    [
        (["a", "b"], ["a", "x"], "class 'x' of the data is not a class of weights 'w' ('a', 'b')"),
        (["a", "b"], ["a", "b", "c"], "class 'c' of the data"),
        (["a", "b", "a"], ["b", "a", "a"], "because 'a' is the name of several"),
        (["a", "b", "c"], ["b", "b"], "because 'b' is the name of several"),
    ],
)
def test_other_classes_are_rejected(names: list[str], data: list[str], words: str) -> None:
    with pytest.raises(RequestError) as refused:
        match_classes("weights 'w'", len(names), names, data)
    assert words in str(refused.value)


def test_equal_lists_match_even_if_names_repeat() -> None:
    assert match_classes("weights 'w'", 2, ["crane", "crane"], ["crane", "crane"]).columns is None


def test_metadata_keeps_the_names() -> None:
    names = ["tench, Tinca tinca", "größer", ""]
    assert classes_in(class_metadata(names)) == names
    assert class_metadata(None) == {}


@pytest.mark.parametrize("text", [None, "", "{", "3", "null", '{"a": 1}', '["a", 1]', "[" * 9999])
def test_damaged_metadata_is_ignored(text: str | None) -> None:
    assert classes_in({} if text is None else {"class_names": text}) is None
