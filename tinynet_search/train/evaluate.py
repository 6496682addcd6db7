"""``--eval-only``: weights from anywhere on the validation images of any data; nothing is trained or written."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from search_spaces import RequestError
from search_spaces.networks import NETWORKS
from search_spaces.weights import SUFFIXES, Source, load_weights, locate
from tinynet_search.config import Config
from tinynet_search.errors import require
from tinynet_search.export.subject import CONFIG, Subject, file_digest, read_subject
from tinynet_search.store.directory import JOB
from tinynet_search.store.schema import Settings
from tinynet_search.store.train_job import job_around
from tinynet_search.tracking.evaluations import EvaluationReport
from tinynet_search.train.checkpoints import (
    checkpoint_of,
    checkpoint_subject,
    of_job,
    plain_weights,
)
from tinynet_search.train.local import take_machine
from tinynet_search.train.request import Chooser, TrainRequest, read_request, settled
from tinynet_search.train.run import pixels_warning
from trainables.data import ImageData, Reading, open_data
from trainables.recipe import Recipe

if TYPE_CHECKING:
    from torch import nn

# timm's names of named networks that are called otherwise here.
TIMM = {"ghostnet_050": "ghostnet_0.5x", "ghostnet_100": "ghostnet_1.0x"}
# Of a checkpoint's two sets, the one that ranks.
WEIGHT_SETS: Mapping[Literal["ema", "raw"], Literal["EMA", "raw"]] = {"ema": "EMA", "raw": "raw"}


def evaluate_weights(
    request: TrainRequest, weights: str, say: Callable[[str], None]
) -> EvaluationReport:
    """Top-1, top-5 and loss of weights on the data's validation images.

    Args:
        weights: a file, timm's name of published ones, or the folder of a trial, an export or a checkpoint.

    Raises:
        RequestError: the weights, the data and the network do not go together, or one of them is not there.
    """
    require("torch", "timm", "safetensors")
    if not weights.strip():
        raise RequestError(
            f"--weights {weights!r} names nothing: give a file, timm's name, or a folder"
        )
    folder = Path(weights).expanduser()
    if (folder / JOB).is_file():
        folder = of_job(folder, request.space)
        weights = str(folder)
    subject = _of_folder(folder, request) if folder.is_dir() else None
    if subject is None and not _names_one(request):
        request = replace(request, network=_network_of(weights))
    chooser = Chooser(request) if subject is None or _names_one(request) else None
    values = read_request(request)
    if not values.get("data"):
        values["data"] = _own_data(subject)
    config = settled(
        values, chooser.space if chooser else subject.space if subject else "", request
    )
    data = open_data(config.data_settings())
    classes = len(data.class_names)
    chosen = (
        chooser.network(subject.network.num_classes if subject else classes) if chooser else None
    )
    if subject is None:
        assert chosen is not None
        subject = Subject(chosen.label, chosen.space, chosen.network)
    elif chosen is not None and chosen.network != subject.network:
        raise RequestError(
            f"weights {weights!r} are of {subject.name}, not of {chosen.label}: leave the network out"
        )
    if subject.network.num_classes != classes:
        raise _other_classes(weights, subject.network.num_classes, classes)
    source = Source(subject.weights, weights) if subject.weights else locate(weights)
    if source.published is not None and source.published.num_classes != classes:
        raise _other_classes(weights, source.published.num_classes, classes)
    return _evaluated(subject, source, config, data, say)


def _evaluated(
    subject: Subject, source: Source, config: Config, data: ImageData, say: Callable[[str], None]
) -> EvaluationReport:
    import torch

    from tinynet_search.export.images import preprocessing_of, validation_batches
    from trainables.evaluation import evaluate
    from trainables.execution import Execution
    from trainables.modules import pick_device
    from trainables.trainer import evaluated_at_once

    recipe = _recipe(subject, config)
    preprocessing = preprocessing_of(subject, source, recipe, config.data_settings())
    at_once = evaluated_at_once(recipe)
    loaders = take_machine(config.scaling, subject.network.macs * at_once)
    device = pick_device()
    chosen = Execution(**config.execution.model_dump()).on(device)
    module = subject.network.build().eval()
    with plain_weights(source, recipe.ranks) as plain:
        digest = file_digest(plain.path)
        _load(module, plain)
    if source.published is None and subject.weights is None:
        say(
            f"weights {source.label!r} say nothing of how their images were prepared: taken as the recipe {recipe.name} does"
        )
    warning = pixels_warning(data, subject.network)
    if warning:
        say(f"warning: {warning}")
    checkpoint = checkpoint_of(source)
    module = module.to(device, memory_format=chosen.layout)  # type: ignore[call-overload]
    reading = Reading(loaders, chosen.pinned)
    every = np.arange(data.val_size)
    started = time.perf_counter()
    with torch.inference_mode():
        batches = validation_batches(
            data,
            every,
            subject.network,
            recipe,
            preprocessing,
            device,
            reading=reading,
            at_once=at_once,
        )
        (scores,) = evaluate(module, batches, device, bf16=chosen.bf16)
    seconds = time.perf_counter() - started
    return EvaluationReport(
        label=subject.name,
        space=subject.space,
        network=subject.network,
        weights=source.label,
        weights_sha256=digest,
        checkpoint=checkpoint,
        weight_set=WEIGHT_SETS[recipe.ranks] if checkpoint else None,
        data=config.data_settings(),
        fingerprint=data.fingerprint,
        preprocessing=preprocessing,
        top1=scores.top1,
        top5=scores.top5,
        loss=scores.loss,
        images=scores.images,
        seconds=round(seconds, 3),
        images_per_s=round(scores.images / seconds, 1),
        device=device.type,
        precision="bf16" if chosen.bf16 else "float32",
        warning=warning,
    )


def _network_of(weights: str) -> str:
    """The named network that published weights are of.

    Raises:
        RequestError: they are a file, or of a network that has no name here.
    """
    from search_spaces.published import find_published

    path = Path(weights).expanduser()
    if path.is_file():
        raise RequestError(
            f"which network are these weights of? give its name, --rdw or --c beside {weights!r}"
        )
    if path.suffix in SUFFIXES or "/" in weights.removeprefix("timm/"):
        locate(weights)  # there is no such file, and it says so
    found = find_published(weights).architecture
    name = TIMM.get(found, found)
    if name not in NETWORKS:
        raise RequestError(
            f"weights {weights!r} are of timm's {found}, which is none of tinynet networks: give weights of one that is"
        )
    return name


def _of_folder(folder: Path, request: TrainRequest) -> Subject:
    if (folder / CONFIG).is_file():
        subject = read_subject(folder, request.space)
        if subject.weights is None:
            raise RequestError(
                f"{str(folder)!r} has a {CONFIG} and no weights: give the folder of a finished trial, or a weights file"
            )
        job = job_around(folder, request.space)
        return replace(subject, name=job.network) if job else subject
    return checkpoint_subject(folder, request.space)


def _own_data(subject: Subject | None) -> Settings:
    """What the weights were trained on, if it is known where that lies."""
    settings = dict(subject.trained.data) if subject and subject.trained else {}
    settings.pop("cache", None)  # a folder to write to is no file's to name
    if not settings or (settings.get("name") != "petals" and "path" not in settings):
        raise RequestError(
            "nothing to evaluate on: give --data petals, or --data with a folder of images"
        )
    return settings


def _recipe(subject: Subject, config: Config) -> Recipe:
    from tinynet_search.export.images import evaluation_recipe

    return evaluation_recipe(subject, None) if subject.trained else config.resolve().recipe


def _names_one(request: TrainRequest) -> bool:
    """A folder says itself which network it holds; who names one too must mean the same."""
    return any(each is not None for each in (request.network, request.rdw, request.c))


def _load(module: "nn.Module", source: Source) -> None:
    try:
        load_weights(module, source)
    except RequestError as error:
        said, mark, _ = str(error).partition(
            ": ask for "
        )  # advice for whoever chooses the classes, which here the data does
        raise RequestError(f"{said}: give data of as many classes") if mark else error from None


def _other_classes(weights: str, theirs: int, ours: int) -> RequestError:
    return RequestError(
        f"weights {weights!r} are for {theirs} classes, and the data has {ours}: give data of as many classes"
    )
