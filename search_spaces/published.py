"""Finds and downloads timm's published weights and checks that they belong to a network.

``search_spaces.weights`` and ``tinynet train --eval-only`` use it.
"""

import copy
import difflib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_spaces.errors import RequestError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

HUB_FILES = ("model.safetensors", "pytorch_model.bin")
# Tolerance, relative to the spread of the outputs. A different padding, pooling or epsilon exceeds
# it; a different order of summation stays far below it.
OUTPUT_TOLERANCE = 1e-4


def find_published(name: str) -> Any:
    """Return timm's configuration of the weights ``architecture.tag``.

    Without a tag, timm chooses one. The configuration has ``architecture``, ``tag``, ``hf_hub_id``,
    ``mean`` and more.

    Raises:
        RequestError: timm publishes no such weights on the hub; the message suggests the closest
            name.
    """
    import timm
    from timm.models import get_pretrained_cfg

    plain = name.removeprefix("timm/")
    tagged = timm.list_pretrained()
    known = {*tagged, *(each.partition(".")[0] for each in tagged)}
    published = get_pretrained_cfg(plain) if plain in known else None
    if published is None or not published.has_weights:
        near = difflib.get_close_matches(plain, sorted(known), n=1, cutoff=0.5)
        hint = (
            f"did you mean {near[0]!r}?"
            if near
            else "pass a file, or a name from timm.list_pretrained()"
        )
        raise RequestError(
            f"unknown weights {name!r}: not a file and not published by timm: {hint}"
        )
    if not published.hf_hub_id:
        raise RequestError(
            f"timm publishes {name!r} outside the hub: download {published.url} and pass the file"
        )
    return published


def download(published: Any, label: str) -> Path:
    """Return the weights' file in the hub's cache, and download it first if it is not cached.

    HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE apply.

    Raises:
        RequestError: the hub does not respond, or does not have the weights.
    """
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    repo = published.hf_hub_id
    cached = [
        path for file in HUB_FILES if isinstance(path := try_to_load_from_cache(repo, file), str)
    ]
    if cached:
        return Path(cached[0])
    if constants.HF_HUB_OFFLINE:
        raise RequestError(
            f"weights {label!r} are not in the hub's cache, and HF_HUB_OFFLINE is set: "
            "pass a file, or run once online"
        )
    try:
        return Path(hf_hub_download(repo, _first_available(repo)))
    # The client raises its own errors, those of its HTTP library and those of the system.
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise RequestError(
            f"weights {label!r} are not in the hub's cache and cannot be downloaded from "
            f"{constants.ENDPOINT} ({reason}): connect to the network, set HF_ENDPOINT, "
            "or pass a file"
        ) from error


def _first_available(repo: str) -> str:
    """Return the first of the files that the hub has.

    The check runs before the download, which retries for half a minute if the hub does not respond.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError

    first, second = HUB_FILES
    try:
        get_hf_file_metadata(hf_hub_url(repo, first))
    except EntryNotFoundError:
        get_hf_file_metadata(hf_hub_url(repo, second))
        return second
    return first


def published_classes(published: Any) -> list[str] | None:
    """Return the class of each output of published weights, or None if it is unknown.

    A configuration beside a file may state names. Otherwise the number of classes decides: those of
    ImageNet and its supersets are WordNet ids (``n01440764``), in timm's order.
    """
    from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

    stated = published.label_names
    if isinstance(stated, list | tuple) and len(stated) == published.num_classes:
        return [str(name) for name in stated]
    values = {"num_classes": published.num_classes, "label_names": published.label_names}
    subset = infer_imagenet_subset(values)
    return list(ImageNetInfo(subset).label_names()) if subset else None


def imagenet_classes() -> list[str]:
    """Return the 1000 WordNet ids of ImageNet-1k, in the order of its published weights."""
    from timm.data.imagenet_info import ImageNetInfo

    return list(ImageNetInfo("imagenet-1k").label_names())


def check_function(
    module: "torch.nn.Module",
    state: Mapping[str, "Tensor"],
    architecture: str,
    label: str,
    stated_by: str | None = None,
) -> None:
    """Check that the module computes the same function with the weights as timm's network does.

    Names and shapes do not determine padding, pooling or epsilon: the weights of tf_efficientnet_b0
    fit B0, and those of resnetaa50 fit ResNet-50, but belong to a different function.

    Args:
        module: the network.
        state: the weights; they match the network by name and shape.
        architecture: timm's architecture of the weights.
        label: the name of the weights in messages.
        stated_by: where the architecture is stated, None for weights from the hub.

    Raises:
        RequestError: the weights do not fit timm's architecture, or the outputs differ.
    """
    import torch

    origin = f"timm's {architecture}" + (f" ({stated_by})" if stated_by else "")
    linear = [part for part in module.modules() if isinstance(part, torch.nn.Linear)]
    classes = linear[-1].out_features if linear else None
    with torch.device("meta"):  # a name from a file may be that of a network of any size
        shapes = _shapes(_timm_network(architecture, classes).state_dict())
    if shapes != _shapes(state):
        raise RequestError(
            f"weights {label!r} belong to a different network: expected those of {origin}"
        )
    reference = _timm_network(architecture, classes)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).double()
    exact = {name: tensor.double() for name, tensor in state.items() if tensor.is_floating_point()}
    with torch.no_grad():
        actual, expected = (
            torch.func.functional_call(each.double().eval(), exact, images)
            for each in (copy.deepcopy(module), reference)
        )
    spread = (expected - expected.mean()).abs().max()
    # A NaN fails the comparison.
    if not (actual - expected).abs().max() <= OUTPUT_TOLERANCE * spread:
        raise RequestError(
            f"weights {label!r} match by name and shape, but are for a different function: "
            f"{origin}; pass weights that were trained as this network"
        )


def _timm_network(architecture: str, classes: int | None) -> "torch.nn.Module":
    """Return timm's network with random weights, without warnings about renamed architectures."""
    import timm

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return timm.create_model(architecture, num_classes=classes)


def _shapes(state: Mapping[str, "Tensor"]) -> dict[str, tuple[int, ...]]:
    """Return the shapes by name, without the counters of batch norm."""
    return {
        name: tuple(tensor.shape)
        for name, tensor in state.items()
        if not name.endswith("num_batches_tracked")
    }
