"""``tinynet networks``: prints the named networks, or a table of the paper, with exact figures.

Registered with the application by ``main``.
"""

import json
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, zip_longest
from typing import Annotated, NamedTuple

import typer

from search_spaces import Network, RequestError, get_space
from search_spaces.networks import NETWORKS, NamedNetwork, get_named
from search_spaces.paper_tables import (
    TABLES,
    Layer,
    PaperTable,
    Row,
    architecture,
    check_table,
    parse_figure,
    percent_off,
)
from tinynet_search.cli.app import AsJson, app, example
from tinynet_search.cli.completion import complete_from, complete_network
from tinynet_search.formula.digits import format_rdw
from tinynet_search.text import millions, number, table, with_blank_rows

MISSING = "-"
ARCHITECTURE = "layers of GhostNet-A, from the stage list that is counted and built"
FIGURES_NOTE = "Accuracies are the paper's; none was measured here. FLOPs are multiply-adds."
# The note below a table for each source of a network.
SOURCE_NOTES = {
    "inferred": "(r, d, w) never published, inferred from the paper's figures: {}.",
    "ours": (
        "(r, d, w) never published, fitted here to the FLOPs only, "
        "so the paper's accuracies are of other networks: {}."
    ),
}


class NetworkRow(NamedTuple):
    """A named network as ``--json`` prints it, with the paper's figures, None if unpublished."""

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
    """A row of the paper's tables as ``--json`` prints it.

    The exact figures are None without a named network, the paper's figures where it prints none.
    """

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


@app.command(epilog=example("networks tinynet_a resnet50"))
def networks(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME",
            help="Names of networks; without any, all of them.",
            autocompletion=complete_network,
        ),
    ] = None,
    paper: Annotated[
        str | None,
        typer.Option(
            metavar="TABLE",
            help="Print this table of the paper (table1, table2, table3, table6 or table7).",
            autocompletion=complete_from("table1", "table2", "table3", "table6", "table7"),
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List networks, or a table of the paper, with exact figures."""
    if paper is not None and names:
        raise RequestError("pass names or --paper, not both: a table defines its own networks")
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


def _networks_text(rows: Iterable[tuple[NamedNetwork, Network]]) -> str:
    """The table of named networks, with a blank row between families."""
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
    return table(head, with_blank_rows(families))


def _network_cells(row: NamedNetwork, network: Network) -> tuple[str, ...]:
    figures = (
        *_compared(row.paper_params, network.params, 2),
        *_compared(row.paper_flops, network.macs, 1),
    )
    return (
        row.name,
        *map(_short, format_rdw(network)),
        str(network.resolution),
        *figures,
        row.source,
    )


def _short(text: str) -> str:
    return f"{float(text):g}"


def _network_row(row: NamedNetwork, network: Network) -> NetworkRow:
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
    return None if printed is None else parse_figure(printed)


def _off_percent(printed: str | None, exact: int | None) -> float | None:
    """The difference of the exact figure from the paper's; None if either is missing."""
    return None if printed is None or exact is None else percent_off(printed, exact)


def _compared(printed: str | None, exact: int, digits: int) -> tuple[str, str, str]:
    """The exact figure, the paper's figure and the difference."""
    if printed is None:
        return millions(exact, digits), MISSING, MISSING
    return millions(exact, digits), printed, f"{percent_off(printed, exact):+.1f} %"


def _print_table(name: str, *, as_json: bool) -> None:
    paper_table = TABLES[name]
    notes = list(_notes(paper_table))
    document = {
        "table": name,
        "title": paper_table.title,
        "images": paper_table.images,
        "groups": [[_paper_row(row)._asdict() for row in group] for group in paper_table.groups],
        "footnote": paper_table.footnote and _paper_row(paper_table.footnote)._asdict(),
        "notes": notes,
    }
    print(json.dumps(document, indent=1) if as_json else _paper_text(name, paper_table, notes))


def _print_architecture(name: str, *, as_json: bool) -> None:
    layers = architecture()
    rows = [layer._asdict() for layer in layers]
    document = {"table": name, "title": ARCHITECTURE, "rows": rows, **_totals()}
    print(json.dumps(document, indent=1) if as_json else _layers_text(name, layers))


def _network_of(row: Row) -> Network | None:
    """The named network of a row of the paper; None if there is none."""
    return None if row.network is None else NETWORKS[row.network].network()


def _paper_row(row: Row) -> PaperRow:
    network = _network_of(row)
    macs = None if network is None else network.macs
    params = None if network is None else network.params
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


def _notes(paper_table: PaperTable) -> Iterator[str]:
    """The notes below a table, one line each."""
    marked = paper_table.footnote
    network = _network_of(marked) if marked else None
    if marked and network:
        exact, printed, difference = _compared(marked.flops, network.macs, 1)
        yield f"† {marked.model}: {printed} FLOPs, exact {exact} ({difference})."
    yield FIGURES_NOTE
    for source, note in SOURCE_NOTES.items():
        names = [
            row.network
            for row in paper_table.rows
            if row.network and NETWORKS[row.network].source == source
        ]
        if names:
            yield note.format(", ".join(dict.fromkeys(names)))


def _paper_text(name: str, paper_table: PaperTable, notes: Sequence[str]) -> str:
    weights = any(row.params for row in paper_table.rows)
    top5 = any(row.top5 for row in paper_table.rows)
    head = [
        "model",
        *["weights", "exact", "off"] * weights,
        "FLOPs",
        "exact",
        "off",
        "paper's top-1 %",
        *["paper's top-5 %"] * top5,
    ]
    groups = [
        [_paper_cells(row, weights=weights, top5=top5) for row in group]
        for group in paper_table.groups
    ]
    body = (
        _side_by_side([table(head, group) for group in groups])
        if paper_table.side_by_side
        else table(head, with_blank_rows(groups))
    )
    wrapped = [textwrap.fill(note, 120, break_on_hyphens=False) for note in notes]
    title = f"{name}: {paper_table.title}; accuracies on {paper_table.images}"
    return "\n".join((title, "", body, "", *wrapped))


def _paper_cells(row: Row, *, weights: bool, top5: bool) -> list[str]:
    """The paper's params and FLOPs, each with the exact figure and the difference; accuracies."""
    network, cells = _network_of(row), [row.model]
    for printed, key, digits in [(row.params, "params", 2)] * weights + [(row.flops, "macs", 1)]:
        exact = difference = MISSING
        if network is not None:
            exact, _, difference = _compared(printed, getattr(network, key), digits)
        cells += [printed or MISSING, exact, difference]
    return cells + [number(top, 1, missing=MISSING) for top in (row.top1, row.top5)[: 1 + top5]]


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
    figures = (
        MISSING if figure is None else f"{figure:g}" for figure in (layer.expansion, layer.out)
    )
    stride = MISSING if layer.stride is None else str(layer.stride)
    return (
        f"{layer.size}² × {layer.channels}",
        layer.operator,
        *figures,
        "1" if layer.squeeze else MISSING,
        stride,
        str(layer.repeats),
    )
