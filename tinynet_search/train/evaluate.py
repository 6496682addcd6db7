"""Evaluates weights on the validation images of a data set, without training or writing files.

Called by ``tinynet train --eval-only``.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from search_spaces import RequestError
from search_spaces.networks import NETWORKS
from search_spaces.weights import SUFFIXES, Source, load_weights, locate, output_count
from tinynet_search.config import Config
from tinynet_search.errors import require
from tinynet_search.export.subject import (
    CONFIG,
    Subject,
    file_digest,
    matched_classes,
    read_subject,
)
from tinynet_search.store.directory import JOB
from tinynet_search.store.schema import Settings
from tinynet_search.store.train_job import job_of_trial
from tinynet_search.tracking.evaluations import EvaluationReport
from tinynet_search.train.checkpoints import (
    checkpoint_of,
    checkpoint_subject,
    job_trial_folder,
    plain_weights,
)
from tinynet_search.train.local import configure_process
from tinynet_search.train.request import (
    RequestedNetwork,
    TrainRequest,
    complete_config,
    read_request,
)
from tinynet_search.train.run import pixels_warning
from trainables.classes import ClassMatch
from trainables.data import ImageData, Reading, open_data
from trainables.recipe import Recipe

# Names of networks by their name in timm, where the two differ.
TIMM_NAMES = {"ghostnet_050": "ghostnet_0.5x", "ghostnet_100": "ghostnet_1.0x"}
# Labels of the two weight sets of a checkpoint.
WEIGHT_SETS: Mapping[Literal["ema", "raw"], Literal["EMA", "raw"]] = {"ema": "EMA", "raw": "raw"}


def evaluate_weights(
    request: TrainRequest, weights: str, log: Callable[[str], None]
) -> EvaluationReport:
    """Compute top-1, top-5 and loss of weights on the validation images.

    Args:
        weights: A file, the timm name of published weights, or the folder of a job, a trial, an
            export or a checkpoint.
        log: Called with one line per message.

    Raises:
        RequestError: The weights, the data and the network are incompatible, or one of them does
            not exist.
    """
    require("torch", "timm", "safetensors")
    if not weights.strip():
        raise RequestError(f"--weights {weights!r} is empty: pass a file, a timm name or a folder")
    folder = Path(weights).expanduser()
    if (folder / JOB).is_file():
        folder = job_trial_folder(folder, request.space)
        weights = str(folder)
    subject = _read_folder(folder, request) if folder.is_dir() else None
    if subject is None and not _has_network(request):
        request = replace(request, network=_network_of(weights))
    requested = RequestedNetwork(request) if subject is None or _has_network(request) else None
    values = read_request(request)
    if not values.get("data"):
        values["data"] = _training_data(subject)
    space = ""
    if requested:
        space = requested.space
    elif subject:
        space = subject.space
    config = complete_config(values, space, request)
    data = open_data(config.data_settings())
    if subject is None:
        assert requested is not None
        source = locate(weights)
        subject = _requested_subject(requested, source, len(data.class_names))
    else:
        assert subject.weights is not None
        source = Source(subject.weights, weights)
        chosen = requested.network(subject.network.num_classes) if requested else None
        if chosen is not None and chosen.network != subject.network:
            raise RequestError(
                f"weights {weights!r} belong to {subject.name}, not to {chosen.label}: "
                "omit the network"
            )
    classes = matched_classes(subject, source, data.class_names)
    return _evaluate(subject, source, classes, config, data, log)


def _requested_subject(requested: RequestedNetwork, source: Source, classes: int) -> Subject:
    """The requested network with as many outputs as the weights have classes."""
    chosen = requested.network(classes)
    if source.published is not None:
        outputs = source.published.num_classes
    else:
        outputs = output_count(chosen.network.build(), source)
    if outputs is not None and outputs != classes:
        chosen = requested.network(outputs)
    return Subject(chosen.label, chosen.space, chosen.network)


def _evaluate(
    subject: Subject,
    source: Source,
    classes: ClassMatch,
    config: Config,
    data: ImageData,
    log: Callable[[str], None],
) -> EvaluationReport:
    import torch

    from tinynet_search.export.images import preprocessing_of, validation_batches
    from trainables.evaluation import evaluate
    from trainables.execution import Execution
    from trainables.modules import SelectedOutputs, pick_device
    from trainables.trainer import evaluation_batch_size

    recipe = _recipe(subject, config)
    preprocessing = preprocessing_of(subject, source, recipe, config.data_settings())
    batch_size = evaluation_batch_size(recipe)
    loaders = configure_process(config.scaling, subject.network.macs * batch_size)
    device = pick_device()
    execution = Execution(**config.execution.model_dump()).resolve(device)
    module = subject.network.build().eval()
    with plain_weights(source, recipe.ranks) as plain:
        digest = file_digest(plain.path)
        load_weights(module, plain)
    if classes.columns is not None:
        module = SelectedOutputs(module, classes.columns)
    if source.published is None and subject.weights is None:
        log(
            f"weights {source.label!r} do not record their preprocessing: "
            f"using that of recipe {recipe.name}"
        )
    if classes.note:
        log(classes.note)
    warning = pixels_warning(data, subject.network)
    if warning:
        log(f"warning: {warning}")
    checkpoint = checkpoint_of(source)
    module = module.to(device, memory_format=execution.layout)  # type: ignore[call-overload]
    reading = Reading(loaders, execution.pinned)
    indices = np.arange(data.val_size)
    started = time.perf_counter()
    with torch.inference_mode():
        batches = validation_batches(
            data,
            indices,
            subject.network,
            recipe,
            preprocessing,
            device,
            reading=reading,
            batch_size=batch_size,
        )
        (scores,) = evaluate(module, batches, device, bf16=execution.bf16)
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
        classes=classes,
        preprocessing=preprocessing,
        top1=scores.top1,
        top5=scores.top5,
        loss=scores.loss,
        images=scores.images,
        seconds=round(seconds, 3),
        images_per_s=round(scores.images / seconds, 1),
        device=device.type,
        precision="bf16" if execution.bf16 else "float32",
        warning=warning,
    )


def _network_of(weights: str) -> str:
    """The name of the network of published weights.

    Raises:
        RequestError: The weights are a file that does not state its network, or their network is
            not a named one.
    """
    from search_spaces.published import find_published

    path = Path(weights).expanduser()
    if path.is_file() or path.suffix in SUFFIXES or "/" in weights.removeprefix("timm/"):
        architecture = locate(weights).architecture
    else:
        architecture = find_published(weights).architecture
    if architecture is None:
        raise RequestError(
            f"the network of {weights!r} is unknown: pass its name, --rdw or --c with --weights"
        )
    name = TIMM_NAMES.get(architecture, architecture)
    if name not in NETWORKS:
        raise RequestError(
            f"weights {weights!r} belong to timm's {architecture}, which tinynet networks does not "
            "list: pass weights of a listed network"
        )
    return name


def _read_folder(folder: Path, request: TrainRequest) -> Subject:
    if (folder / CONFIG).is_file():
        subject = read_subject(folder, request.space)
        if subject.weights is None:
            raise RequestError(
                f"{str(folder)!r} contains {CONFIG} but no weights: "
                "pass the folder of a finished trial, or a weights file"
            )
        job = job_of_trial(folder, request.space)
        return replace(subject, name=job.network) if job else subject
    return checkpoint_subject(folder, request.space)


def _training_data(subject: Subject | None) -> Settings:
    """The data that the weights were trained on, if its location is known."""
    settings = dict(subject.trained.data) if subject and subject.trained else {}
    settings.pop("cache", None)  # a file must not choose a folder to write to
    if not settings or (settings.get("name") != "petals" and "path" not in settings):
        raise RequestError(
            "no data to evaluate on: pass --data petals, or --data with a folder of images"
        )
    return settings


def _recipe(subject: Subject, config: Config) -> Recipe:
    from tinynet_search.export.images import evaluation_recipe

    return evaluation_recipe(subject, None) if subject.trained else config.resolve().recipe


def _has_network(request: TrainRequest) -> bool:
    """Whether the request names a network.

    A folder identifies its own network; a network in the request must match it.
    """
    return any(each is not None for each in (request.network, request.rdw, request.c))
