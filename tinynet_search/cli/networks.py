"""Named networks beside the paper's figures, one by one or as the paper's tables have them."""

import json
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, zip_longest
from typing import Annotated, Any

import typer

from search_spaces import Network, RequestError, get_space
from search_spaces.networks import NETWORKS, Named, get_named
from search_spaces.paper_tables import (
    TABLES,
    Layer,
    PaperTable,
    Row,
    architecture,
    check_table,
    off,
    value,
)
from tinynet_search.cli.app import AsJson, app
from tinynet_search.formula.digits import spelled
from tinynet_search.text import apart, millions, number, table

NONE = "-"
ARCHITECTURE = "the layers of GhostNet-A, from the stage list that is counted and built here"
THEIRS = "Accuracies are the paper's own: none of them was measured here. FLOPs are multiply-adds."
# What a network's source means to the reader of a table.
SOURCES = {
    "inferred": "(r, d, w) never published, inferred from the paper's figures: {}.",
    "ours": "(r, d, w) never published, fitted here to the FLOPs alone, so the paper's accuracies are of other networks: {}.",
}


@app.command()
def networks(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME...]", help="Names; all of them where none is given."),
    ] = None,
    paper: Annotated[
        str | None,
        typer.Option(
            metavar="TABLE",
            help="A table of the paper beside ours: table1, table2, table3, table6 or table7.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """The paper's networks and tables, beside our exact figures."""
    if paper is not None and names:
        raise RequestError(
            "give names or --paper, not both: a table of the paper has its own networks"
        )
    document, text = _all(names or NETWORKS) if paper is None else _paper(paper)
    print(json.dumps(document, indent=1) if as_json else text)


def _all(names: Iterable[str]) -> tuple[list[dict[str, Any]], str]:
    """Named networks as JSON data and as text, with a line between two families."""
    rows = [(row, row.network()) for row in map(get_named, names)]
    head = (
        "network",
        "r",
        "d",
        "w",
        "pixels",
        "params",
        "paper",
        "off",
        "FLOPs",
        "paper",
        "off",
        "source",
    )
    families = [
        [_network_cells(*pair) for pair in family]
        for _, family in groupby(rows, lambda pair: type(pair[1].space))
    ]
    return [_network_row(*pair) for pair in rows], table(head, apart(families))


def _network_cells(row: Named, network: Network) -> tuple[str, ...]:
    beside = (
        *_beside(row.paper_params, network.params, 2),
        *_beside(row.paper_flops, network.macs, 1),
    )
    return (row.name, *map(_short, spelled(network)), str(network.resolution), *beside, row.source)


def _short(text: str) -> str:
    return f"{float(text):g}"


def _network_row(row: Named, network: Network) -> dict[str, Any]:
    figures = {
        "space": row.space,
        "r": network.rdw.r,
        "d": network.rdw.d,
        "w": network.rdw.w,
        "resolution": network.resolution,
    }
    ours = {
        "macs": network.macs,
        "params": network.params,
        "activation_bytes": network.activation_bytes,
        "c": network.c,
    }
    paper = _paper_figures(row.paper_flops, row.paper_params, network)
    return {"name": row.name, "title": row.title, **figures, **ours, "source": row.source, **paper}


def _paper_figures(
    flops: str | None, params: str | None, network: Network | None
) -> dict[str, float | None]:
    """The paper's figures as numbers, and how far ours lie from them; None where either is missing."""
    figures: dict[str, float | None] = {}
    for key, printed in (("macs", flops), ("params", params)):
        figures[f"paper_{key}"] = None if printed is None else value(printed)
        figures[f"{key}_off_percent"] = (
            None if printed is None or network is None else off(printed, getattr(network, key))
        )
    return figures


def _beside(printed: str | None, exact: int, digits: int) -> tuple[str, str, str]:
    """Ours, the paper's and the difference."""
    if printed is None:
        return millions(exact, digits), NONE, NONE
    return millions(exact, digits), printed, f"{off(printed, exact):+.1f} %"


def _paper(name: str) -> tuple[dict[str, Any], str]:
    """A table of the paper as JSON data and as text."""
    check_table(name)
    if name not in TABLES:
        layers = architecture()
        return {
            "table": name,
            "title": ARCHITECTURE,
            "rows": [layer._asdict() for layer in layers],
            **_totals(),
        }, _layers_text(name, layers)
    found = TABLES[name]
    notes = list(_notes(found))
    rows = {
        "groups": [[_paper_row(row) for row in group] for group in found.groups],
        "footnote": found.footnote and _paper_row(found.footnote),
    }
    return {
        "table": name,
        "title": found.title,
        "images": found.images,
        **rows,
        "notes": notes,
    }, _paper_text(name, found, notes)


def _ours(row: Row) -> Network | None:
    return None if row.network is None else NETWORKS[row.network].network()


def _paper_row(row: Row) -> dict[str, Any]:
    ours = _ours(row)
    names = {
        "model": row.model,
        "network": row.network,
        "source": None if row.network is None else NETWORKS[row.network].source,
    }
    exact = {"macs": ours and ours.macs, "params": ours and ours.params}
    return {
        **names,
        **exact,
        **_paper_figures(row.flops, row.params, ours),
        "paper_top1": row.top1,
        "paper_top5": row.top5,
    }


def _notes(found: PaperTable) -> Iterator[str]:
    """What a reader has to know of a table's figures, a line each."""
    if (marked := found.footnote) and (network := _ours(marked)):
        exact, printed, away = _beside(marked.flops, network.macs, 1)
        yield f"† {marked.model}: {printed} FLOPs, ours {exact} ({away})."
    yield THEIRS
    for source, note in SOURCES.items():
        names = [
            row.network
            for row in found.rows
            if row.network and NETWORKS[row.network].source == source
        ]
        if names:
            yield note.format(", ".join(dict.fromkeys(names)))


def _paper_text(name: str, found: PaperTable, notes: Sequence[str]) -> str:
    weights, top5 = any(row.params for row in found.rows), any(row.top5 for row in found.rows)
    head = [
        "model",
        *["weights", "ours", "off"] * weights,
        "FLOPs",
        "ours",
        "off",
        "paper's top-1 %",
        *["paper's top-5 %"] * top5,
    ]
    groups = [
        [_paper_cells(row, weights=weights, top5=top5) for row in group] for group in found.groups
    ]
    body = (
        _side_by_side([table(head, group) for group in groups])
        if found.side_by_side
        else table(head, apart(groups))
    )
    wrapped = [textwrap.fill(note, 120, break_on_hyphens=False) for note in notes]
    return "\n".join(
        (f"{name}: {found.title}; accuracies on {found.images}", "", body, "", *wrapped)
    )


def _paper_cells(row: Row, *, weights: bool, top5: bool) -> list[str]:
    """The paper's figures, params and FLOPs each with ours and the difference after it."""
    ours, cells = _ours(row), [row.model]
    for printed, key, digits in [(row.params, "params", 2)] * weights + [(row.flops, "macs", 1)]:
        exact, _, away = (
            (NONE, NONE, NONE) if ours is None else _beside(printed, getattr(ours, key), digits)
        )
        cells += [printed or NONE, exact, away]
    return cells + [number(top, 1, missing=NONE) for top in (row.top1, row.top5)[: 1 + top5]]


def _side_by_side(tables: Sequence[str]) -> str:
    columns = [text.split("\n") for text in tables]
    widths = [max(map(len, lines)) for lines in columns]
    rows = zip_longest(*columns, fillvalue="")
    return "\n".join(
        "    ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _layers_text(name: str, layers: Sequence[Layer]) -> str:
    head = ("input size", "operator", "#exp", "#out", "SE", "stride", "#repeat")
    total = "These layers have {params:,} params and {macs:,} multiply-adds.".format(**_totals())
    return "\n".join(
        (f"{name}: {ARCHITECTURE}", "", table(head, list(map(_layer_cells, layers))), "", total)
    )


def _totals() -> dict[str, int]:
    network = get_space("ghostnet_a").baseline()
    return {"params": network.params, "macs": network.macs}


def _layer_cells(layer: Layer) -> tuple[str, ...]:
    figures = (NONE if figure is None else f"{figure:g}" for figure in (layer.expansion, layer.out))
    stride = NONE if layer.stride is None else str(layer.stride)
    return (
        f"{layer.size}² × {layer.channels}",
        layer.operator,
        *figures,
        "1" if layer.squeeze else NONE,
        stride,
        str(layer.repeats),
    )
