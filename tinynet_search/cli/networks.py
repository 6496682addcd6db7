"""Named networks beside the paper's figures, one by one or as the paper's tables have them."""

import json
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, zip_longest
from typing import Annotated, NamedTuple

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


class NetworkRow(NamedTuple):
    """A named network as ``--json`` has it, with the paper's figures; None where the paper prints none."""

    name: str
    title: str
    space: str
    r: float
    d: float
    w: float
    resolution: int
    macs: int
    params: int
    activation_bytes: int
    c: float
    source: str
    paper_macs: float | None
    macs_off_percent: float | None
    paper_params: float | None
    params_off_percent: float | None


class PaperRow(NamedTuple):
    """A row of the paper's tables as ``--json`` has it; None where there is no network of ours, or the paper prints nothing."""

    model: str
    network: str | None
    source: str | None
    macs: int | None
    params: int | None
    paper_macs: float | None
    macs_off_percent: float | None
    paper_params: float | None
    params_off_percent: float | None
    paper_top1: float | None
    paper_top5: float | None


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
    if paper is None:
        rows = [(row, row.network()) for row in map(get_named, names or NETWORKS)]
        document = [_network_row(*pair)._asdict() for pair in rows]
        print(json.dumps(document, indent=1) if as_json else _networks_text(rows))
        return
    check_table(paper)
    if paper in TABLES:
        _print_table(paper, as_json=as_json)
    else:
        _print_architecture(paper, as_json=as_json)


def _networks_text(rows: Iterable[tuple[Named, Network]]) -> str:
    """Named networks, with a line between two families."""
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
    return table(head, apart(families))


def _network_cells(row: Named, network: Network) -> tuple[str, ...]:
    beside = (
        *_beside(row.paper_params, network.params, 2),
        *_beside(row.paper_flops, network.macs, 1),
    )
    return (row.name, *map(_short, spelled(network)), str(network.resolution), *beside, row.source)


def _short(text: str) -> str:
    return f"{float(text):g}"


def _network_row(row: Named, network: Network) -> NetworkRow:
    return NetworkRow(
        name=row.name,
        title=row.title,
        space=row.space,
        r=network.rdw.r,
        d=network.rdw.d,
        w=network.rdw.w,
        resolution=network.resolution,
        macs=network.macs,
        params=network.params,
        activation_bytes=network.activation_bytes,
        c=network.c,
        source=row.source,
        paper_macs=_printed(row.paper_flops),
        macs_off_percent=_off_percent(row.paper_flops, network.macs),
        paper_params=_printed(row.paper_params),
        params_off_percent=_off_percent(row.paper_params, network.params),
    )


def _printed(printed: str | None) -> float | None:
    """The paper's figure as a number."""
    return None if printed is None else value(printed)


def _off_percent(printed: str | None, exact: int | None) -> float | None:
    """How far ours is from the paper's figure; None where either is missing."""
    return None if printed is None or exact is None else off(printed, exact)


def _beside(printed: str | None, exact: int, digits: int) -> tuple[str, str, str]:
    """Ours, the paper's and the difference."""
    if printed is None:
        return millions(exact, digits), NONE, NONE
    return millions(exact, digits), printed, f"{off(printed, exact):+.1f} %"


def _print_table(name: str, *, as_json: bool) -> None:
    found = TABLES[name]
    notes = list(_notes(found))
    document = {
        "table": name,
        "title": found.title,
        "images": found.images,
        "groups": [[_paper_row(row)._asdict() for row in group] for group in found.groups],
        "footnote": found.footnote and _paper_row(found.footnote)._asdict(),
        "notes": notes,
    }
    print(json.dumps(document, indent=1) if as_json else _paper_text(name, found, notes))


def _print_architecture(name: str, *, as_json: bool) -> None:
    layers = architecture()
    rows = [layer._asdict() for layer in layers]
    document = {"table": name, "title": ARCHITECTURE, "rows": rows, **_totals()}
    print(json.dumps(document, indent=1) if as_json else _layers_text(name, layers))


def _ours(row: Row) -> Network | None:
    return None if row.network is None else NETWORKS[row.network].network()


def _paper_row(row: Row) -> PaperRow:
    ours = _ours(row)
    macs = None if ours is None else ours.macs
    params = None if ours is None else ours.params
    return PaperRow(
        model=row.model,
        network=row.network,
        source=None if row.network is None else NETWORKS[row.network].source,
        macs=macs,
        params=params,
        paper_macs=_printed(row.flops),
        macs_off_percent=_off_percent(row.flops, macs),
        paper_params=_printed(row.params),
        params_off_percent=_off_percent(row.params, params),
        paper_top1=row.top1,
        paper_top5=row.top5,
    )


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
