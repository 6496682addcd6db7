"""timm's published weights: their names, their file from the hub, and whether they mean the network that asks for them."""

import copy
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_spaces.errors import RequestError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

HUB_FILES = ("model.safetensors", "pytorch_model.bin")
# Of the outputs' spread: another padding, pooling or epsilon differs by more, another order of summation by far less.
SAME = 1e-4


def find_published(name: str) -> Any:
    """timm's configuration (``architecture``, ``tag``, ``hf_hub_id``, ``mean``, ...) of ``architecture.tag``, or of timm's own
    choice of tag where none is given.

    Raises:
        RequestError: timm publishes no such weights on the hub; the nearest name is named.
    """
    import timm
    from timm.models import get_pretrained_cfg

    plain = name.removeprefix("timm/")
    tagged = timm.list_pretrained()
    known = {*tagged, *(each.partition(".")[0] for each in tagged)}
    found = get_pretrained_cfg(plain) if plain in known else None
    if found is None or not found.has_weights:
        near = difflib.get_close_matches(plain, sorted(known), n=1, cutoff=0.5)
        hint = (
            f"did you mean {near[0]!r}?"
            if near
            else "give a file, or a name of timm.list_pretrained()"
        )
        raise RequestError(
            f"no weights {name!r}, neither a file here nor published by timm: {hint}"
        )
    if not found.hf_hub_id:
        raise RequestError(
            f"timm publishes {name!r} outside the hub: download {found.url} and give the file"
        )
    return found


def download(published: Any, label: str) -> Path:
    """The weights' file in the hub's own cache, fetched where it is not there yet (HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE count).

    Raises:
        RequestError: the hub does not answer, or does not have the weights.
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
            f"weights {label!r} are not in the hub's cache, and HF_HUB_OFFLINE is set: give a file, or go online once"
        )
    try:
        return Path(hf_hub_download(repo, _first_there(repo)))
    except (
        Exception
    ) as error:  # the client raises its own errors, its HTTP library's and the system's
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        where = f"cannot be had from {constants.ENDPOINT} ({reason})"
        raise RequestError(
            f"weights {label!r} are not in the hub's cache and {where}: go online, set HF_ENDPOINT, or give a file"
        ) from error


def _first_there(repo: str) -> str:
    """The first of the files that the hub has; asked in advance, since a download tries a silent hub for half a minute."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError

    first, second = HUB_FILES
    try:
        get_hf_file_metadata(hf_hub_url(repo, first))
    except EntryNotFoundError:
        get_hf_file_metadata(hf_hub_url(repo, second))
        return second
    return first


def check_function(
    module: "torch.nn.Module", state: Mapping[str, "Tensor"], published: Any, label: str
) -> None:
    """Make sure that the module computes with the weights what timm's own network of that name does.

    Names and shapes do not tell padding, pooling or epsilon: tf_efficientnet_b0's weights fit B0 and mean another function.

    Raises:
        RequestError: it does not.
    """
    import timm
    import torch

    theirs = timm.create_model(published.architecture, num_classes=published.num_classes)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).double()
    exact = {name: tensor.double() for name, tensor in state.items() if tensor.is_floating_point()}
    with torch.no_grad():
        ours, wanted = (
            torch.func.functional_call(each.double().eval(), exact, images)
            for each in (copy.deepcopy(module), theirs)
        )
    if (ours - wanted).abs().max() > SAME * (wanted - wanted.mean()).abs().max():
        raise RequestError(
            f"weights {label!r} fit by name and shape, but mean another function: timm's {published.architecture}"
        )
