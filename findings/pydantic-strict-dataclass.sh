#!/usr/bin/env bash
# pydantic 2.14.3 (source: pydantic on PyPI, pydantic-core's model and dataclass validators).
#
# Guess before the run: a standard dataclass and a BaseModel with the same fields, both in strict mode, take the same
# Python dictionary, since strict mode is about the types of values.
#
# Behaviour: with strict=True in its own configuration the model takes the dictionary; the dataclass refuses it
# (dataclass_exact_type) and wants an instance of itself. From JSON text both take it. A TypedDict made of the dataclass's
# fields takes the dictionary too, and checks the values as strictly. So a reader that first parses JSON with bounds of its
# own, and then checks what it got, cannot hand the result to a strict dataclass.
#
# Output seen:
#   model, dictionary: taken
#   dataclass, dictionary: dataclass_exact_type
#   dataclass, JSON text: taken
#   typed dictionary, dictionary: taken
#   typed dictionary, text for a number: int_type
set -euo pipefail

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m venv "$scratch/venv"
"$scratch/venv/bin/python" -m pip install --quiet pydantic==2.14.3

cat > "$scratch/strict.py" << 'PYTHON'
from dataclasses import dataclass

import typing_extensions
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

STRICT = ConfigDict(strict=True)


class Model(BaseModel):
    model_config = STRICT
    epochs: int


@dataclass
class Data:
    __pydantic_config__ = STRICT
    epochs: int


Shape = typing_extensions.TypedDict("Shape", {"epochs": int})
Shape.__pydantic_config__ = STRICT


def outcome(check, value):
    try:
        check(value)
        return "taken"
    except ValidationError as error:
        return error.errors()[0]["type"]


print("model, dictionary:", outcome(Model.model_validate, {"epochs": 3}))
print("dataclass, dictionary:", outcome(TypeAdapter(Data).validate_python, {"epochs": 3}))
print("dataclass, JSON text:", outcome(TypeAdapter(Data).validate_json, '{"epochs": 3}'))
print("typed dictionary, dictionary:", outcome(TypeAdapter(Shape).validate_python, {"epochs": 3}))
print("typed dictionary, text for a number:", outcome(TypeAdapter(Shape).validate_python, {"epochs": "3"}))
PYTHON

"$scratch/venv/bin/python" "$scratch/strict.py" | tee "$scratch/seen"
diff "$scratch/seen" - << 'SEEN'
model, dictionary: taken
dataclass, dictionary: dataclass_exact_type
dataclass, JSON text: taken
typed dictionary, dictionary: taken
typed dictionary, text for a number: int_type
SEEN
