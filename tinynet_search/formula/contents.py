"""The contents of a formula file as typed data, without pydantic: suggestions by the published formula load numpy alone.

Built by ``files.parse`` from a checked document, and by ``TinyFormula.load`` from the published one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from tinynet_search.formula.gaussian_process import Kernel
from trainables.storage.documents import Json

SCHEMA = 1
FORMS = ("paper", "default")
MIN_POINTS = 5
# A formula keeps a dense kernel matrix of its points for each of its four kernels: 32 MB each at this many.
MAX_POINTS = 2000

# What a formula was fitted to, as its author put it: a search's settings, or sentences.
Provenance: TypeAlias = Mapping[str, Json]


class DamagedError(ValueError):
    """What is wrong with a formula, without the name of its file."""


@dataclass(frozen=True)
class FormulaContents:
    """What a formula file contains; the attributes are those of ``TinyFormula``."""

    space: str
    space_version: int
    num_classes: int
    points: tuple[tuple[float, float, float], ...]
    forms: Mapping[str, Mapping[str, Kernel]]
    provenance: Provenance
    reason: str | None

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "FormulaContents":
        """The contents of a document that passes ``document.check_document``."""
        return cls(
            document["space"],
            document["space_version"],
            document["num_classes"],
            tuple(sorted((point["c"], point["r"], point["d"]) for point in document["points"])),
            {
                form: {target: Kernel(**values) for target, values in kernels.items()}
                for form, kernels in document["forms"].items()
            },
            document["provenance"],
            document["reason"],
        )
