"""Tests ``tinynet networks``: the named networks, and the paper's tables with exact figures."""

import json
import re
from typing import Any

import pytest

from search_spaces.networks import NETWORKS
from search_spaces.paper_tables import TABLES
from tinynet_search.cli.main import run

KEYS = {
    *(
        "name",
        "title",
        "space",
        "r",
        "d",
        "w",
        "resolution",
        "macs",
        "params",
        "activation_bytes",
        "c",
        "source",
    ),
    *("paper_macs", "macs_off_percent", "paper_params", "params_off_percent"),
}
ORDER = [
    "efficientnet_b0",
    "efficientnet_b-4",
    "b0_r0.70",
    "tinynet_a",
    "resnet50",
    "resnet50_giant_a",
    "resnet50_a",
    "resnet18",
]
ORDER += [
    "ghostnet_a",
    "ghostnet_a_hswish",
    "ghostnet_1.5x",
    "ghostnet_b",
    "ghostnet_1.0x",
    "ghostnet_c",
    "ghostnet_0.5x",
    "ghostnet_d",
]


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    code = run(["networks", *arguments])
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    return out


def document(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    return json.loads(printed(capsys, *arguments, "--json"))


def test_networks_are_grouped_by_family_in_the_order_of_the_paper(
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, _, *lines = printed(capsys).splitlines()
    names = [line.partition(" ")[0] for line in lines]
    assert [name for name in names if name] == list(NETWORKS)
    assert [name for name in names if name in ORDER] == ORDER
    assert [names[i + 1] for i, name in enumerate(names) if not name] == ["resnet50", "ghostnet_a"]


def test_table_shows_exact_and_published_figures(capsys: pytest.CaptureFixture[str]) -> None:
    lines = {
        line.partition(" ")[0]: " ".join(line.split()) for line in printed(capsys).splitlines()
    }
    assert (
        lines["tinynet_c"]
        == "tinynet_c 0.825 0.85 0.54 184 2.46M 2.5M -1.7 % 99.5M 100M -0.5 % published"
    )
    assert lines["resnet50"] == "resnet50 1 1 1 224 25.56M - - 4089.2M 4.1B -0.3 % published"
    assert (
        lines["ghostnet_c_hswish"]
        == "ghostnet_c_hswish 0.821 0.84 0.58 197 5.16M 5.0M +3.2 % 141.0M 141M +0.0 % ours"
    )


def test_order_of_names_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    rows = document(capsys, "tinynet_c", "resnet50", "tinynet_a")
    assert [row["name"] for row in rows] == ["tinynet_c", "resnet50", "tinynet_a"]


def test_json_has_exact_figures_and_differences(capsys: pytest.CaptureFixture[str]) -> None:
    rows = document(capsys)
    assert [row["name"] for row in rows] == list(NETWORKS)
    assert all(set(row) == KEYS for row in rows)
    tiny = next(row for row in rows if row["name"] == "tinynet_e")
    assert (tiny["macs"], tiny["params"], tiny["paper_macs"], tiny["paper_params"]) == (
        24356848,
        2042972,
        24e6,
        2e6,
    )
    assert tiny["macs_off_percent"] == pytest.approx(100 * (24356848 / 24e6 - 1))
    assert tiny["activation_bytes"] == NETWORKS["tinynet_e"].network().activation_bytes
    resnet = next(row for row in rows if row["name"] == "resnet34")
    assert (resnet["paper_params"], resnet["params_off_percent"]) == (None, None)


@pytest.mark.parametrize("name", TABLES)
def test_paper_tables_contain_every_row(capsys: pytest.CaptureFixture[str], name: str) -> None:
    out = printed(capsys, "--paper", name)
    table = TABLES[name]
    assert out.startswith(f"{name}: {table.title}; accuracies on {table.images}\n")
    assert all(row.model in out for row in table.rows)
    assert "paper's top-1 %" in out
    assert "none was measured here" in out
    assert all(len(line) <= 140 and line == line.rstrip() for line in out.splitlines())


def test_table1_is_printed_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        re.split(r"\s{2,}", line) for line in printed(capsys, "--paper", "table1").splitlines()
    ]
    left, right = (
        ["B0 shrunk by d = 0.45", "196M", "196.4M", "+0.2 %", "76.5"],
        ["depth underflow†", "-", "-", "-", "-"],
    )
    assert [*left, *right] in lines
    assert [
        "† B0 at its minimum depth, still above 100M: 173M FLOPs, exact 173.2M (+0.1 %)."
    ] in lines


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("table1", "TinyNet-B 201M 200.7M -0.1 % 77.6 TinyNet-C 97M 99.5M +2.6 % 74.1"),
        ("table2", "ResNet-50-A 3.6B 3591.9M -0.2 % 79.3"),
        ("table3", "TinyNet-C 2.5M 2.46M -1.7 % 100M 99.5M -0.5 % 71.2 89.7"),
        ("table3", "MobileNetV1 0.5× (r=0.86) 1.3M - - 110M - - 61.7 83.6"),
        ("table6", "GhostNet-A + HSwish + RA 11.9M 11.94M +0.3 % 591M 587.5M -0.6 % 79.4 94.5"),
        ("table6", "EfficientNet-B1 7.8M - - 700M - - 78.7 -"),
        ("table7", "15² × 140 G-bneck 2.5 140 1 1 3"),
        ("table7", "8² × 1680 Pooling - - - - 1"),
        ("table7", "These layers have 11,939,796 params and 587,458,634 multiply-adds."),
    ],
)
def test_paper_rows(capsys: pytest.CaptureFixture[str], name: str, line: str) -> None:
    assert line in [
        " ".join(each.split()) for each in printed(capsys, "--paper", name).splitlines()
    ]


@pytest.mark.parametrize("name", TABLES)
def test_notes_list_unpublished_networks(capsys: pytest.CaptureFixture[str], name: str) -> None:
    table = document(capsys, "--paper", name)
    unpublished = {
        row["network"]
        for group in table["groups"]
        for row in group
        if row["source"] in ("inferred", "ours")
    }
    (note,) = (note for note in table["notes"] if "never published" in note)
    assert set(note.removesuffix(".").rpartition(": ")[2].split(", ")) == unpublished


def test_paper_tables_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    table = document(capsys, "--paper", "table3")
    assert (table["table"], table["images"], [len(group) for group in table["groups"]]) == (
        "table3",
        "ImageNet-1000",
        [4, 2, 6, 5, 6, 6],
    )
    other, tiny = table["groups"][0][0], table["groups"][-1][-1]
    assert (other["network"], other["macs"], other["paper_macs"], other["paper_top1"]) == (
        None,
        None,
        356e6,
        76.6,
    )
    assert (tiny["network"], tiny["macs"], tiny["paper_params"], tiny["paper_top5"]) == (
        "tinynet_e",
        24356848,
        2e6,
        81.8,
    )
    assert document(capsys, "--paper", "table1")["footnote"]["paper_macs"] == 173e6
    assert [row["repeats"] for row in document(capsys, "--paper", "table7")["rows"]] == [
        1,
        1,
        1,
        1,
        1,
        2,
        1,
        3,
        3,
        1,
        5,
        1,
        1,
        1,
        1,
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--paper", "table8"], "pass table1, table2, table3, table6 or table7"),
        (["--paper", "table4"], "table4 needs the paper's phone and table5 a trained detector"),
        (["--paper", "Table 1"], "unknown table 'Table 1'"),
        (["--paper", ""], "unknown table ''"),
        (["tinynet_a", "--paper", "table1"], "pass names or --paper, not both"),
        (["ghostnet_hswish"], "did you mean 'ghostnet_"),
        (["resnet_50"], "did you mean 'resnet50'"),
    ],
)
def test_invalid_request_prints_one_line_and_exits_with_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    code = run(["networks", *arguments])
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
