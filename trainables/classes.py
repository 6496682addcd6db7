"""Matches the classes of a network's outputs with those of a data set, by their names.

Called by evaluations and by the export before they compare outputs with labels.
"""

import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from search_spaces.errors import RequestError

# Key of the class names, a JSON list, in the metadata of safetensors and ONNX files.
METADATA_KEY = "class_names"


def class_metadata(names: Sequence[str] | None) -> dict[str, str]:
    """The metadata that records the class of each output; empty if it is unknown."""
    return {} if names is None else {METADATA_KEY: json.dumps(list(names), ensure_ascii=False)}


def classes_in(metadata: Mapping[str, str] | None) -> list[str] | None:
    """The class names in the metadata of a file; None if it has none that are valid."""
    try:
        names = json.loads((metadata or {})[METADATA_KEY])
    except (KeyError, ValueError, TypeError, RecursionError):
        return None
    valid = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return names if valid else None


@dataclass(frozen=True)
class ClassMatch:
    """The outputs of a network that are the classes of a data set.

    Attributes:
        columns: int64 (n,), the output of each of the data's classes in the order of the labels;
            None if output k is class k.
        outputs: number of outputs of the network.
        note: one line for the user if the outputs are reordered or selected, or if the order is
            assumed; else None.
    """

    columns: np.ndarray | None
    outputs: int
    note: str | None = None

    @property
    def classes(self) -> int:
        """Number of classes that are compared."""
        return self.outputs if self.columns is None else len(self.columns)

    def to_json(self) -> dict[str, int | str | None]:
        return {"compared": self.classes, "outputs": self.outputs, "note": self.note}

    def select(self, logits: np.ndarray) -> np.ndarray:
        """The logits (n, outputs) of the data's classes, in the order of the labels."""
        return logits if self.columns is None else logits[:, self.columns]


def match_classes(
    label: str, outputs: int, names: Sequence[str] | None, data: Sequence[str]
) -> ClassMatch:
    """Match classes by name.

    Args:
        label: what the outputs belong to, for messages: ``weights 'tinynet_e.in1k'``.
        outputs: number of outputs of the network.
        names: the class of each output, None if unknown. Then output k is assumed to be class k.
        data: the class of each label.

    Returns:
        The match. If the data has only some of the network's classes, only these are compared.

    Raises:
        RequestError: the numbers differ and the names are unknown, or a class of the data is not
            one of the network's.
    """
    if names is None:
        if outputs != len(data):
            raise RequestError(
                f"{label} are for {outputs} classes, but the data has {len(data)}: "
                f"pass data with {outputs} classes"
            )
        return ClassMatch(
            None,
            outputs,
            f"{label} do not record their classes: assuming the order of the data's classes, "
            f"{_examples(data)}",
        )
    names, data = _comparable(names), _comparable(data)
    if names == data:
        return ClassMatch(None, outputs)
    position = {name: number for number, name in enumerate(names)}
    missing = [name for name in data if name not in position]
    if missing:
        raise RequestError(
            f"class {missing[0]!r} of the data is not a class of {label} "
            f"({_examples(names)}): pass data whose classes have the same names"
        )
    if len(position) < len(names) or len(set(data)) < len(data):
        raise RequestError(
            f"the classes of {label} and of the data cannot be matched by name, because "
            f"{_repeated([*names] if len(position) < len(names) else [*data])!r} is the name of "
            "several: pass data whose classes have the same names in the same order"
        )
    columns = np.array([position[name] for name in data], dtype=np.int64)
    if len(columns) == outputs:
        return ClassMatch(columns, outputs, f"the outputs of {label} are reordered by class name")
    return ClassMatch(
        columns,
        outputs,
        f"only the outputs of the data's {len(columns)} classes are compared, of {outputs} "
        f"classes of {label}",
    )


def _comparable(names: Sequence[str]) -> list[str]:
    """Return the names in the form in which they are compared.

    The names of folders have no slash (those of a Parquet set may), and macOS writes letters and
    their accents separately.
    """
    return [unicodedata.normalize("NFC", name).replace("/", "_") for name in names]


def _examples(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name[:40]) for name in names[:3])
    return f"{shown}, ..." if len(names) > 3 else shown


def _repeated(names: list[str]) -> str:
    return next(name for name in names if names.count(name) > 1)
