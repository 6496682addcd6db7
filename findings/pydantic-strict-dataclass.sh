#!/usr/bin/env bash
# pydantic 2.14.3 (source: pydantic on PyPI, pydantic-core's model and dataclass validators).
#
# Expectation: a standard dataclass and a BaseModel with the same fields, both in strict mode,
# accept the same Python dictionary, since strict mode concerns the types of values.
#
# Behaviour: with strict=True in its configuration, the model accepts the dictionary. The dataclass
# rejects it (dataclass_exact_type) and requires an instance of itself. Both accept JSON text. A
# TypedDict with the dataclass's fields also accepts the dictionary and checks the values equally
# strictly. A reader that parses JSON with its own limits and then validates the result therefore
# cannot pass the result to a strict dataclass.
#
# Observed output:
#   model, dictionary: accepted
#   dataclass, dictionary: dataclass_exact_type
#   dataclass, JSON text: accepted
#   typed dictionary, dictionary: accepted
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
        return "accepted"
    except ValidationError as error:
        return error.errors()[0]["type"]


data, shape = TypeAdapter(Data), TypeAdapter(Shape)
print("model, dictionary:", outcome(Model.model_validate, {"epochs": 3}))
print("dataclass, dictionary:", outcome(data.validate_python, {"epochs": 3}))
print("dataclass, JSON text:", outcome(data.validate_json, '{"epochs": 3}'))
print("typed dictionary, dictionary:", outcome(shape.validate_python, {"epochs": 3}))
print("typed dictionary, text for a number:", outcome(shape.validate_python, {"epochs": "3"}))
PYTHON

"$scratch/venv/bin/python" "$scratch/strict.py" | tee "$scratch/output"
diff "$scratch/output" - << 'EXPECTED'
model, dictionary: accepted
dataclass, dictionary: dataclass_exact_type
dataclass, JSON text: accepted
typed dictionary, dictionary: accepted
typed dictionary, text for a number: int_type
EXPECTED
