"""Searches small enough to run in seconds."""

import json
from pathlib import Path
from typing import Any

from tinynet_search.config import Config, load_config

TINY = (
    "data.train=96",
    "data.val=48",
    "recipe.epochs=2",
    "recipe.batch=32",
    "recipe.micro_batch=16",
    "space.r=[0.35, 0.7]",
    "space.d=[0.35, 1.0]",
    "space.w=[0.35, 1.2]",
    "space.band=[0.08, 0.5]",
)


def tiny_config(
    storage: Path | str, *settings: str, trials: int = 6, at_once: int | None = 1
) -> Config:
    """The demo on a few images: networks of a few pixels, two epochs, no finals.

    Args:
        at_once: trials that run at the same time, each in a process that imports torch and Ray first.
            None leaves the number to the search.
    """
    base = ["search.finals=[]", f'storage.path="{storage}"', f"search.trials={trials}"]
    base += [f"run.concurrency={at_once}"] if at_once else []
    return load_config(preset="demo", settings=[*TINY, *base, *settings])


def tiny_arguments(storage: Path | str, *settings: str, trials: int = 6) -> list[str]:
    """The same as arguments of ``tinynet search``."""
    every = (*TINY, "search.finals=[]", *settings)
    return [
        "--preset",
        "demo",
        "--trials",
        str(trials),
        "--storage",
        str(storage),
        *[a for s in every for a in ("--set", s)],
    ]


def results(storage: Path, name: str = "demo") -> dict[str, dict[str, Any]]:
    """Result files of a search by name."""
    return {
        p.stem: json.loads(p.read_text())
        for p in sorted((storage / name / "results").glob("*.json"))
    }
