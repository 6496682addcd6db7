"""The ``config.json`` of an export and of a trial as typed documents, validated when they are read.

Used by the exporter, by ``find_subject`` and by evaluations.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    JsonValue,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    Tag,
    model_serializer,
)

from search_spaces import Network
from tinynet_search.store.schema import (
    Classes,
    ClassNames,
    DataSettings,
    Document,
    Fingerprint,
    Multipliers,
    Seed,
    WrittenRecipe,
)
from trainables.result import NetworkFigures
from trainables.storage.documents import SMALL, parsed
from trainables.storage.folder import read_file

SCHEMA = 1
# Integers stay integers, so a document that is read and written again has the same bytes.
Number = int | float
Count = Annotated[int, Field(ge=1)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Shift = Annotated[Number, Field(ge=-1e6, le=1e6)]
Scale = Annotated[Number, Field(ge=1e-6, le=1e6)]


def figures_of(network: Network) -> NetworkFigures:
    """The figures of a network as read from a file, where tuples are lists."""
    return NetworkFigures.from_json(json.loads(json.dumps(NetworkFigures.of(network).to_json())))


def _figures(value: object) -> NetworkFigures:
    # The error message is prefixed with the name of the field.
    return value if isinstance(value, NetworkFigures) else NetworkFigures.from_json(value, "it")


Figures = Annotated[
    NetworkFigures, BeforeValidator(_figures), PlainSerializer(NetworkFigures.to_json)
]


class WeightsOrigin(Document):
    """The origin of the weights, without local paths."""

    origin: str = Field(validation_alias="from", serialization_alias="from")


class TensorSpec(Document):
    name: str
    dtype: Literal["float32"]
    shape: list[int | str]


class Preprocessing(Document):
    """The conversion of an image to the network's input.

    The image is resized to ``resize``, or resized by its short side and then cropped.

    Attributes:
        crop_ratio: Pixels after the crop divided by the short side before it.
        mean, std: Normalisation of RGB in [0, 1].
        assumed: Whether the preprocessing is assumed because the training of the weights is
            unknown.
    """

    colour: Literal["RGB"]
    resize: Annotated[list[Count], Field(min_length=2, max_length=2)] | None = None
    resize_short_side: Count | None = None
    interpolation: Literal["bilinear", "bicubic"]
    antialias: bool
    centre_crop: Count | None = None
    crop_ratio: Annotated[Number, Field(ge=0.1, le=1)]
    scale: Literal["0 to 1"]
    mean: Annotated[list[Shift], Field(min_length=3, max_length=3)]
    std: Annotated[list[Scale], Field(min_length=3, max_length=3)]
    size: Count
    assumed: bool

    @model_serializer(mode="wrap")
    def _drop_unused_steps(self, dump: SerializerFunctionWrapHandler) -> dict[str, JsonValue]:
        return {key: value for key, value in dump(self).items() if value is not None}

    def to_json(self) -> dict[str, Any]:
        return self.model_dump()


class TrainedBy(Document):
    """How the weights of a network were trained.

    Attributes:
        data: The ``[data]`` settings.
        data_fingerprint: Fingerprint of the data.
        metrics: Metrics of the last epoch, None if the training has not ended.
    """

    recipe: Annotated[WrittenRecipe, PlainSerializer(asdict)]
    data: DataSettings
    data_fingerprint: Fingerprint
    seed: Seed
    metrics: dict[str, Number] | None = None

    @model_serializer(mode="wrap")
    def _drop_missing_metrics(self, dump: SerializerFunctionWrapHandler) -> dict[str, JsonValue]:
        values = dump(self)
        return {key: values[key] for key in values if key != "metrics" or values[key] is not None}


class BothFiles(Document):
    """A value of the float32 file and of the int8 file."""

    float32: float
    int8: float


class Int8Cost(Document):
    """The cost of quantisation: both files evaluated on the same validation images.

    Attributes:
        top1, top1_change, agreement: In percent.
        largest_difference, mean_difference, largest_output: Of the logits.
    """

    data: Fingerprint
    images: Count
    top1: BothFiles
    top1_change: float
    agreement: float
    largest_difference: float
    mean_difference: float
    largest_output: float
    images_per_s: BothFiles


class Quantised(Document):
    weights: str
    activations: str
    calibration_images: Count


class _File(Document):
    format: str
    bytes: int
    sha256: Digest
    versions: dict[str, str]


class CheckedFile(_File):
    """A file and its comparison with torch."""

    batches_compared: list[int]
    largest_difference: float
    largest_output: float
    tolerance: float


class QuantisedFile(_File):
    """An int8 file and its comparison with the float32 file."""

    quantised: Quantised
    compared_with_float32: Int8Cost


def _kind(value: object) -> str:
    """The kind of a listed file, given as parsed JSON or as an object."""
    quantised = (
        "quantised" in value if isinstance(value, dict) else isinstance(value, QuantisedFile)
    )
    return "int8" if quantised else "float32"


ExportedFile = Annotated[
    Annotated[CheckedFile, Tag("float32")] | Annotated[QuantisedFile, Tag("int8")],
    Discriminator(_kind),
]


class ExportConfig(Document):
    """The config.json of an export.

    Attributes:
        network: Figures of the network of ``rdw`` and ``num_classes``.
        class_names: The class of each output, None if unknown.
        weights_sha256: Digest of all weights as safetensors, independent of the written formats.
        trained: How the weights were trained, None if unknown.
        files: Exported files by name.
    """

    version: Literal[1] = Field(validation_alias="schema", serialization_alias="schema")
    name: Annotated[str, Field(min_length=1)]
    space: Annotated[str, Field(max_length=200)]
    space_version: int
    num_classes: Classes
    class_names: ClassNames | None
    network: Figures
    weights_sha256: Digest
    rdw: Multipliers
    weights: WeightsOrigin
    input: TensorSpec
    output: TensorSpec
    preprocessing: Preprocessing
    trained: TrainedBy | None
    files: dict[str, ExportedFile]

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(by_alias=True)


class TrialConfig(Document):
    """The fields of a trial's config.json that are read: its network and its training."""

    space: Annotated[str, Field(max_length=200)]
    space_version: int
    num_classes: Classes
    class_names: ClassNames
    network: Figures
    rdw: Multipliers
    recipe: WrittenRecipe
    data: DataSettings
    data_fingerprint: Fingerprint
    seed: Seed
    metrics: dict[str, Number]

    @property
    def trained(self) -> TrainedBy:
        return TrainedBy(
            recipe=self.recipe,
            data=self.data,
            data_fingerprint=self.data_fingerprint,
            seed=self.seed,
            metrics=self.metrics,
        )


def read_config(file: Path) -> ExportConfig | TrialConfig:
    """Read the configuration of an export or a trial; only an export's has a ``schema``.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file is damaged. The one-line message contains the name of the field.
    """
    values = parsed(read_file(file, SMALL))
    kind = ExportConfig if isinstance(values, dict) and "schema" in values else TrialConfig
    return kind.from_json(values)
