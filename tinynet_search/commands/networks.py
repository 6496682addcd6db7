"""Named networks beside the paper's figures."""

import json
from typing import Annotated, Any

import typer

from tinynet_search.commands.app import AsJson, app, millions


@app.command()
def networks(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME...]", help="Names; all of them where none is given.")] = None,
    as_json: AsJson = False,
) -> None:
    """Every named network: (r, d, w), pixels, params, FLOPs, beside the paper's figures."""
    from search_spaces.networks import NETWORKS, get_named
    from tinynet_search.tables import table

    rows = [(row, row.network()) for row in map(get_named, names or NETWORKS)]
    if as_json:
        print(json.dumps([_network_row(row, network) for row, network in rows], indent=1))
        return
    head = ("network", "r", "d", "w", "pixels", "params", "paper", "FLOPs", "paper", "off", "source")
    print(table(head, [_network_cells(row, network) for row, network in rows]))


def _network_cells(row: Any, network: Any) -> tuple[str, ...]:
    r, d, w = network.rdw
    figures = (f"{r:.3f}", f"{d:g}", f"{w:g}", str(network.resolution), millions(network.params, 2))
    params = "" if row.paper_params is None else f"{row.paper_params:g}M"
    off = 100 * (network.macs / 1e6 / row.paper_flops - 1)
    return (row.name, *figures, params, millions(network.macs), f"{row.paper_flops:g}M", f"{off:+.1f} %", row.source)


def _network_row(row: Any, network: Any) -> dict[str, Any]:
    figures = {"space": row.space, "r": network.rdw.r, "d": network.rdw.d, "w": network.rdw.w, "resolution": network.resolution}
    ours = {"macs": network.macs, "params": network.params, "c": network.c, "source": row.source}
    return {"name": row.name, **figures, **ours, "paper_macs": row.paper_flops * 1e6, "paper_params": (row.paper_params or 0) * 1e6 or None}
