"""The contents of a formula file as typed data.

Built by ``files.parse`` from a validated document, and by ``TinyFormula.load`` from the published
one. It does not use pydantic, so a suggestion by the published formula imports only numpy.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from tinynet_search.formula.gaussian_process import Kernel
from trainables.storage.documents import Json

SCHEMA = 1
FORMS = ("paper", "default")
MIN_POINTS = 5
# A formula holds a dense kernel matrix of its points for each of its four kernels: 32 MB each at
# this number of points.
MAX_POINTS = 2000

# Describes what a formula was fitted to: the settings of a search, or free text.
Provenance: TypeAlias = Mapping[str, Json]


class DamagedError(ValueError):
    """A formula is invalid; the message does not contain the name of its file."""


@dataclass(frozen=True)
class FormulaContents:
    """The contents of a formula file; for the attributes see ``TinyFormula``."""

    space: str
    space_version: int
    num_classes: int
    points: tuple[tuple[float, float, float], ...]
    forms: Mapping[str, Mapping[str, Kernel]]
    provenance: Provenance
    reason: str | None

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "FormulaContents":
        """Build the contents from a document that passes ``document.check_document``."""
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
