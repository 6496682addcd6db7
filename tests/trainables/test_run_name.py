"""Run names are built from an id and a number of epochs; other texts are rejected."""

import copy
import json
import pickle

import pytest

from trainables.run_name import RunName

pytestmark = pytest.mark.quick

NAME = "0123456789-e12"


def test_parts() -> None:
    run = RunName("0123456789", 12)
    assert run == NAME
    assert (run.id, run.epochs) == ("0123456789", 12)
    assert RunName.parse(NAME) == run
    assert run.with_epochs(3) == RunName("0123456789", 3)


def test_a_run_name_is_a_string() -> None:
    run = RunName("0123456789", 12)
    assert json.loads(json.dumps({"run": run})) == {"run": NAME}
    assert {run: 1}[NAME] == 1  # type: ignore[index]
    for again in (pickle.loads(pickle.dumps(run)), copy.deepcopy(run)):
        assert again == run
        assert type(again) is RunName
        assert again.epochs == 12


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0123456789",
        "0123456789-e",
        "0123456789-e0",
        "0123456789-e01",
        "0123456789-e1234567",
        "0123456789-e1\n",
        "012345678-e1",
        "012345678G-e1",
        "0123456789-e1.json",
        "../3456789-e1",
        "0123456789-e１",
    ],
)
def test_other_texts_are_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="is not a run name"):
        RunName.parse(text)


def test_run_names_among_file_names() -> None:
    names = [f"{NAME}.json", "0123456789-e3.json", "notes.txt", NAME, ".hidden-e3.json"]
    assert RunName.parsed(names, ".json") == {NAME, "0123456789-e3"}
    assert RunName.parsed(names) == {NAME}
