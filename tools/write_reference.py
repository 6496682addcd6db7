"""Writes the reference pages of the documentation from the code.

Run by ``make docs`` and ``tests/test_docs.py``: ``python tools/write_reference.py FOLDER`` writes
``cli.md``, ``configuration.md`` and ``api.md`` into FOLDER, ``docs/reference`` by default.
"""

import importlib
import inspect
import re
import subprocess
import sys
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tinynet_search import config
from trainables.data import DATA_SETS
from trainables.recipe import RECIPES, Recipe

ROOT = Path(__file__).resolve().parents[1]
NOTICE = "<!-- Written by tools/write_reference.py. Changes here are lost. -->"
# Packages and subpackages whose ``__all__`` is the public API.
PUBLIC = (
    "tinynet_search",
    "tinynet_search.jobs",
    "tinynet_search.export",
    "search_spaces",
    "trainables",
)
# Attributes that are not objects with a docstring.
PLAIN_VALUES = ("__version__",)
# Descriptions of the keys of ``[recipe]`` and ``[data]``, which are not pydantic fields. The other
# sections are described in ``tinynet_search/config/sections.py``.
DESCRIPTIONS = {
    "recipe.epochs": "Passes over the training set.",
    "recipe.batch": "Images of one optimizer step.",
    "recipe.micro_batch": "Images that batch norm normalises together.",
    "recipe.optimizer": "Optimizer.",
    "recipe.lr": "Peak learning rate at `lr_batch` images; it scales linearly with the batch.",
    "recipe.lr_batch": "Batch that `lr` is for; without it `lr` is used for every batch.",
    "recipe.schedule": "`step`: lr * decay^floor(epoch / decay_epochs); `cosine`: to zero.",
    "recipe.warmup_epochs": "Epochs of linear warm-up.",
    "recipe.warmup_lr": "Learning rate at the start of the warm-up.",
    "recipe.weight_decay": "Weight decay, on parameters with two or more dimensions.",
    "recipe.decay": "Factor of the `step` schedule.",
    "recipe.decay_epochs": "Epochs between two factors of the `step` schedule.",
    "recipe.bn_momentum": "In torch's convention; torch's .1 if it is not set.",
    "recipe.ema_decay": "Decay of the average of weights and batch-norm statistics.",
    "recipe.ema_warmup": "Use min(ema_decay, (1 + t) / (10 + t)) at step t.",
    "recipe.ranks": "Weights whose last top-1 ranks trials: averaged (`ema`) or `raw`.",
    "recipe.dropout": "Dropout rate before the classifier.",
    "recipe.drop_path": "Rate of stochastic depth.",
    "recipe.label_smoothing": "Label smoothing.",
    "recipe.augment": "`paper`: random-resized crop, flip, jitter. `shift`: shift and jitter.",
    "recipe.hflip": "Probability of a horizontal flip.",
    "recipe.jitter": "Strength of the colour jitter, in [0, 1].",
    "recipe.shift": "Largest shift of `shift`, as a fraction of the side.",
    "recipe.randaugment": "timm's RandAugment policy, such as `rand-m9-mstd0.5`, or empty.",
    "recipe.eval_ratio": "Evaluation resizes to pixels / eval_ratio, then crops the centre.",
    "recipe.sync_bn": "Batch norm over the micro-batches of all workers; GPUs only.",
    "data.petals.seed": "Seed of the images.",
    "data.petals.train": "Number of training images.",
    "data.petals.val": "Number of validation images.",
    "data.petals.cache": "Folder in which the drawn images are cached.",
    "data.imagefolder.path": "Folder that contains the two splits.",
    "data.imagefolder.train": "Folder of the training images, one subfolder per class.",
    "data.imagefolder.val": "Folder of the validation images, with the same classes.",
    "data.imagenet.path": "Folder of ImageNet's tar files, or of Kaggle's layout.",
    "data.parquet.path": "Folder of the shards, or of their `data/`.",
    "data.parquet.train": "First part of the names of the training shards.",
    "data.parquet.val": "First part of the names of the validation shards.",
    "data.parquet.image": "Column of the images.",
    "data.parquet.label": "Column of the labels.",
    "data.packed.path": "Folder that `tinynet data pack` wrote.",
}


def main(arguments: list[str]) -> int:
    folder = Path(arguments[0]) if arguments else ROOT / "docs" / "reference"
    folder.mkdir(parents=True, exist_ok=True)
    pages = {
        "cli.md": cli_page(),
        "configuration.md": configuration_page(),
        "api.md": api_page(),
    }
    for name, text in pages.items():
        (folder / name).write_text(text, encoding="utf-8")
    return 0


def cli_page() -> str:
    """Return the help of every command, as Typer writes it."""
    command = [sys.executable, "-m", "typer", "tinynet_search.cli.main", "utils", "docs"]
    written = subprocess.run(
        [*command, "--name", "tinynet", "--title", "Command line"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    examples = re.sub(r"^Example: (.*)$", r"**Example**: `\1`", written, flags=re.MULTILINE)
    return f"{NOTICE}\n{_with_command_links(examples)}"


def _with_command_links(text: str) -> str:
    """Replace lists of commands by links: Typer truncates their descriptions at 45 characters."""
    lines: list[str] = []
    heading, in_commands = "tinynet", False
    for line in text.splitlines():
        if match := re.match(r"#+ `(.*)`$", line):
            heading = match.group(1)
        if line.startswith("**"):
            in_commands = line == "**Commands**:"
        if in_commands and (match := re.match(r"\* `([\w-]+)`", line)):
            name = f"{heading} {match.group(1)}"
            line = f"* [`{name}`](#{name.replace(' ', '-')})"
        lines.append(line)
    return "\n".join(lines) + "\n"


def configuration_page() -> str:
    """Return a page with every section, key, type, default and meaning of a configuration."""
    parts = [
        f"{NOTICE}\n# Configuration",
        "The keys of a search's TOML file, from `tinynet_search/config/`. `tinynet search` takes "
        "`--set section.key=value` for each of them. [Searching](../guides/searching.md) explains "
        "how they are used.",
    ]
    for name, field in config.Config.model_fields.items():
        section = field.annotation
        assert isinstance(section, type) and issubclass(section, BaseModel)
        parts.append(f"## `[{name}]`")
        if name == "recipe":
            parts += _recipe_parts(field)
        elif name == "data":
            parts += _data_parts(field)
        else:
            parts += _section_parts(name, section)
    return "\n\n".join(parts) + "\n"


def _section_parts(name: str, section: type[BaseModel]) -> list[str]:
    rows = [
        (
            f"`{key}`",
            f"{_type(field.annotation)}{_limits(field)}",
            _toml(field.default),
            _require_description(f"{name}.{key}", field.description),
        )
        for key, field in section.model_fields.items()
    ]
    return [_table(("key", "type", "default", "meaning"), rows)]


def _require_description(key: str, description: str | None) -> str:
    if not description:
        raise ValueError(f"{key} has no description: add Field(description=...)")
    return description


def _recipe_parts(section: FieldInfo) -> list[str]:
    rows = [
        (
            f"`{field.name}`",
            _type(field.type),
            "the recipe's" if field.default is MISSING else _toml(field.default),
            DESCRIPTIONS[f"recipe.{field.name}"],
        )
        for field in fields(Recipe)
        if field.name != "name"
    ]
    names = ", ".join(f"`{name}`" for name in RECIPES)
    return [
        f"`name` is one of {names}; the default is `{section.default.name}`. Every other key "
        "replaces one of the recipe's settings. A default below is used by each recipe that does "
        "not set the key; [recipes](../guides/training.md#recipes) compares the recipes.",
        _table(("key", "type", "default", "meaning"), rows),
    ]


def _data_parts(section: FieldInfo) -> list[str]:
    rows: list[tuple[str, ...]] = []
    for name, (module, maker) in DATA_SETS.items():
        make = getattr(importlib.import_module(f"trainables.data.{module}"), maker)
        for key, parameter in inspect.signature(make).parameters.items():
            required = parameter.default is parameter.empty
            default = "required" if required else _toml(parameter.default)
            meaning = DESCRIPTIONS[f"data.{name}.{key}"]
            rows.append((f"`{name}`", f"`{key}`", _type(parameter.annotation), default, meaning))
    return [
        f"`name` is the data set; the default is `{section.default.name}`. The other keys "
        "depend on it. [Data](../guides/training.md#data) describes the data sets.",
        _table(("data set", "key", "type", "default", "meaning"), rows),
    ]


def _limits(field: FieldInfo) -> str:
    """Format the bounds that pydantic checks, as ``, >= 1``."""
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    bounds = [
        f"{sign} {getattr(limit, name):.10g}"
        for limit in field.metadata
        for name, sign in signs.items()
        if hasattr(limit, name)
    ]
    return f", {', '.join(bounds)}" if bounds else ""


def _type(annotation: Any) -> str:
    """Format a type as Markdown: the values of a Literal, other types without None."""
    if get_origin(annotation) is Literal:
        return " or ".join(f'`"{value}"`' for value in get_args(annotation))
    return f"`{inspect.formatannotation(annotation).removesuffix(' | None')}`"


def _toml(value: Any) -> str:
    """Format a default as Markdown, in TOML."""
    return "not set" if value is None else f"`{_value(value)}`"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(_value, value))}]"
    return f'"{value}"' if isinstance(value, str) else f"{value}"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("-",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def api_page() -> str:
    """Return a page with a mkdocstrings directive for each public name.

    A name that two packages export is shown once.
    """
    parts = [
        f"{NOTICE}\n# Python API",
        "The public names of the packages. Other modules are internal, and their names may change.",
    ]
    documented: set[int] = set()
    for name in PUBLIC:
        package = importlib.import_module(name)
        public = [n for n in getattr(package, "__all__", ()) if n not in PLAIN_VALUES]
        shown = [n for n in public if id(getattr(package, n)) not in documented]
        if not shown:
            continue
        documented |= {id(getattr(package, n)) for n in shown}
        parts.append(f"## `{name}`\n\n{inspect.getdoc(package) or ''}")
        parts += [f"::: {name}.{n}" for n in shown]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
