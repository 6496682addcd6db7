"""Write the measured tables of the documentation from ``benchmarks/results``.

The scripts that measure call ``write`` after they have written their results; ``python -m
benchmarks.docs_tables`` does the same without a measurement. A table is between the comments
``<!-- begin generated: NAME -->`` and ``<!-- end generated: NAME -->`` of its page.
"""

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tinynet_search.text import duration

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
Record = Mapping[str, Any]


def write(root: Path = ROOT) -> list[Path]:
    """Replace every generated block; returns the pages that changed.

    Raises:
        ValueError: a page does not have exactly one pair of comments for its block.
    """
    changed = []
    for name, (page, render) in BLOCKS.items():
        path = root / page
        text = path.read_text(encoding="utf-8")
        replaced = with_block(text, name, render(root / "benchmarks" / "results"))
        if replaced != text:
            path.write_text(replaced, encoding="utf-8")
            changed.append(path)
    return changed


def with_block(text: str, name: str, content: str) -> str:
    """Return the page with the content of a block replaced.

    Raises:
        ValueError: the page does not have exactly one pair of comments for the block.
    """
    begin, end = f"<!-- begin generated: {name} -->", f"<!-- end generated: {name} -->"
    pattern = re.compile(re.escape(begin) + r"\n.*?" + re.escape(end), re.DOTALL)
    count = len(pattern.findall(text))
    if count != 1:
        raise ValueError(f"expected one block {name!r} between its comments, found {count}")
    return pattern.sub(lambda _: f"{begin}\n\n{content}\n\n{end}", text)


def _read(results: Path, name: str) -> Record:
    return json.loads((results / f"{name}.json").read_text(encoding="utf-8"))


def _measured(record: Record, command: str) -> str:
    """Return the sentence below a table: when, where and by which command it was measured."""
    machine = record["hardware"]
    return (
        f"Measured by `{command}` in {duration(record['seconds'])} on {record['date'][:10]},\n"
        f"commit `{record['commit']}`, {machine['cores']} cores of an {machine['cpu']}, "
        f"{machine['memory_gb']:g} GB."
    )


def _markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(line) + " |" for line in (heads, *rows)]
    return "\n".join([lines[0], "|-" * len(heads) + "|", *lines[1:]])


KILL_HEADERS = (
    "killed process",
    "moment",
    "kills",
    "runs of the command",
    "equal results",
    "epochs in MLflow",
    "epochs repeated",
    "seconds lost",
)


def kill_table(results: Path) -> str:
    """Return the kill table as Markdown."""
    record = _read(results, "chaos")
    rows = kill_rows(record["scenarios"])
    return f"{_markdown(KILL_HEADERS, rows)}\n\n{_measured(record, 'make test-chaos')}"


def kill_rows(scenarios: Sequence[Record]) -> list[tuple[str, ...]]:
    """Return one row per process and choice of moment, summed over scenarios, and the total."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for scenario in scenarios:
        groups.setdefault(_kill_group(scenario), []).append(scenario)
    rows = [(*group, *_kill_sums(members)) for group, members in groups.items()]
    return [*rows, ("all", "", *_kill_sums(scenarios))]


def _kill_group(scenario: Record) -> tuple[str, str]:
    """Return the process and the choice of moment.

    Kills are named ``<process>, <point>`` or ``<process>, at 0.30 of the search``.
    """
    victims, points = zip(*(kill.split(", ", 1) for kill in scenario["kills"]), strict=True)
    processes = " and ".join(dict.fromkeys(victims))
    moment = "random" if points[0].startswith("at ") else "named point"
    return f"{processes} ({scenario['executor']})", moment


def _kill_sums(scenarios: Sequence[Record]) -> tuple[str, ...]:
    def total(key: str) -> float:
        return sum(scenario[key] for scenario in scenarios)

    return (
        str(sum(len(scenario["kills"]) for scenario in scenarios)),
        *(str(total(key)) for key in ("launches", "results", "epochs_in_mlflow")),
        f"{total('epochs_redone'):.1f}",
        f"{total('seconds_lost'):.0f}",
    )


def training_speed(results: Path) -> str:
    """Return the images per second on preloaded images and with reading, compared with timm's."""
    speed, data = _read(results, "train_speed"), _read(results, "train_data")
    ready = _values(speed)
    networks = [key.removesuffix(": ours") for key in ready if key.endswith(": ours")]
    rows = []
    for name in networks:
        rate, timm = ready[f"{name}: ours"], ready[f"{name}: timm's"]
        limit = ready[f"{name}: ours, of the floor's speed"]
        ratio = ready[f"{name}: ours / timm's"]
        rows.append((name, f"{rate:,.4g}", f"{timm:,.4g}", f"{ratio:.2f}", f"{limit:.0f} %"))
    heads = ("ready images", "ours, images/s", "timm's parts", "ratio", "of the floor's speed")
    parts = [_markdown(heads, rows), _measured(speed, "make bench-train")]

    read = _values(data)
    rows = []
    for key, value in read.items():
        what, _, unit = key.rpartition(": ")
        if unit in ("ours from the packed store", "packed, a core"):
            trained = unit.startswith("ours")
            timm = read[f"{what}: timm's from JPEGs{'' if trained else ', a core'}"]
            quotient = "ours / timm's" if trained else "packed / JPEGs"
            ratio = read[f"{what}: {quotient}"]
            rows.append((what, f"{value:,.0f}", f"{timm:,.0f}", f"{ratio:.2f}"))
    heads = ("with data, one core", "packed, images/s", "timm's from JPEG files", "ratio")
    parts += [_markdown(heads, rows), _measured(data, "make bench-train")]
    return "\n\n".join(parts)


def _values(record: Record) -> dict[str, float]:
    return {figure["name"]: figure["value"] for figure in record["figures"]}


def demo(results: Path) -> str:
    """Return the output of the demo."""
    record = _read(results, "demo_output")
    lines = "\n".join(record["output"]).strip("\n")
    return f"```\n{lines}\n```\n\n{_measured(record, 'python -m benchmarks.demo_output')}"


BLOCKS: Mapping[str, tuple[str, Callable[[Path], str]]] = {
    "kill-table": ("docs/design/kill-table.md", kill_table),
    "training-speed": ("docs/guides/training.md", training_speed),
    "demo": ("docs/quick-start.md", demo),
}


def main() -> int:
    """Write the blocks and print which pages changed."""
    for path in write():
        print(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
