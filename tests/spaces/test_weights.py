"""Weights from files and from the hub: loading them, and the messages for invalid ones."""

import argparse
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from search_spaces import RequestError, get_space
from search_spaces.networks import get_named
from search_spaces.weights import load_weights

MINI = get_space("efficientnet_mini").network((0.4, 0.4, 0.5))
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    """Weights of MINI that differ from those of any other build."""
    torch.manual_seed(5)
    return MINI.build().state_dict()


def outputs(module: nn.Module, pixels: int) -> Tensor:
    with torch.inference_mode():
        return module.eval()(
            torch.randn(2, 3, pixels, pixels, generator=torch.Generator().manual_seed(1))
        )


@pytest.mark.parametrize("name", ["tinynet_a", "tinynet_b", "tinynet_c", "tinynet_d", "tinynet_e"])
def test_built_tinynets_match_timm(name: str) -> None:
    """timm's weights load strictly, and the outputs at the network's resolution are equal."""
    network, reference = get_named(name).network(), timm.create_model(name)
    module = network.build()
    module.load_state_dict(reference.state_dict(), strict=True)
    size = timm.models.get_pretrained_cfg(name).input_size  # pyright: ignore
    assert size == (3, network.resolution, network.resolution)
    torch.testing.assert_close(
        outputs(module, network.resolution), outputs(reference, network.resolution), rtol=0, atol=0
    )


WRITERS: dict[str, Callable[[State, Path], None]] = {
    "plain.pth": torch.save,
    "plain.pt": torch.save,
    "legacy.bin": lambda state, file: torch.save(state, file, _use_new_zipfile_serialization=False),
    "plain.safetensors": save_file,
    "no_counters.safetensors": lambda state, file: save_file(
        {k: v for k, v in state.items() if v.is_floating_point()}, file
    ),
    "wrapped.pth": lambda state, file: torch.save({"model": state, "epoch": 3}, file),
    "timm.pth.tar": lambda state, file: torch.save(
        {"arch": "x", "state_dict": state, "args": argparse.Namespace(lr=0.1)}, file
    ),
    "averaged.pth": lambda state, file: torch.save(
        {"state_dict": {"other": torch.ones(1)}, "state_dict_ema": state}, file
    ),
    "parallel.pth": lambda state, file: torch.save(
        {"state_dict": {f"module.{k}": v for k, v in state.items()}}, file
    ),
    "compiled.pth": lambda state, file: torch.save(
        {f"_orig_mod.module.{k}": v for k, v in state.items()}, file
    ),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_file_format(state: State, tmp_path: Path, name: str) -> None:
    WRITERS[name](state, tmp_path / name)
    loaded = MINI.build(pretrained=tmp_path / name).state_dict()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in state.items())


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_converted_to_the_modules(
    state: State, tmp_path: Path, kind: torch.dtype
) -> None:
    torch.save({key: tensor.to(kind) for key, tensor in state.items()}, tmp_path / "half.pth")
    module = MINI.build(pretrained=str(tmp_path / "half.pth"))
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert torch.equal(
        module.get_parameter("conv_stem.weight"), state["conv_stem.weight"].to(kind).float()
    )


def test_file_of_timms_tinynet_e(tmp_path: Path) -> None:
    reference = timm.create_model("tinynet_e")
    torch.save(reference.state_dict(), tmp_path / "tinynet_e.pth")
    module = get_named("tinynet_e").network().build(pretrained=tmp_path / "tinynet_e.pth")
    assert torch.equal(outputs(module, 106), outputs(reference, 106))


def save(content: Any, file: Path) -> None:
    torch.save(content, file)


def other_state(classes: int | None = None, w: float = 0.5) -> State:
    return MINI.space.network((0.4, 0.4, w), classes).build().state_dict()


INVALID_FILES: dict[str, tuple[Callable[[State, Path], object], str]] = {
    "text.pth": (lambda _, file: file.write_text("weights\n"), "are damaged or not a torch file"),
    "text.safetensors": (
        lambda _, file: file.write_text("weights\n"),
        "are damaged or not a safetensors file",
    ),
    "junk.pth": (lambda _, file: file.write_bytes(b"junk"), "are damaged or not a torch file"),
    "magic.pth": (
        lambda _, file: file.write_bytes(b"PK\x03\x04"),
        "are damaged or not a torch file",
    ),
    "long.pth": (
        lambda _, file: file.write_bytes(b"\x80\x02\x8e" + b"\x7f" * 8),
        "are damaged or not a torch file",
    ),
    "empty.pth": (lambda _, file: file.write_bytes(b""), "are damaged or not a torch file"),
    "pickled.pth": (lambda _, file: save(MINI.build(), file), "contain Python objects"),
    "numbers.pth": (lambda _, file: save({"epoch": 3}, file), "contain no state dict"),
    "tensor.pth": (lambda _, file: save(torch.zeros(2), file), "contain no state dict"),
    "sparse.pth": (
        lambda state, file: save({**state, "bn1.bias": torch.zeros(8).to_sparse()}, file),
        "contain no state dict",
    ),
    "hollow.pth": (
        lambda state, file: save({**state, "bn1.bias": torch.zeros(8, device="meta")}, file),
        "contain no state dict",
    ),
    "keys.pth": (
        lambda state, file: save({**state, 3: torch.zeros(1)}, file),
        "contain no state dict",
    ),
    "nothing.pth": (lambda _, file: save({}, file), "contain no state dict"),
    "folder.pth": (lambda _, file: file.mkdir(), "is a folder"),
    "missing.pth": (
        lambda state, file: save({k: v for k, v in state.items() if k != "bn1.weight"}, file),
        "they lack bn1.weight",
    ),
    "extra.pth": (
        lambda state, file: save({**state, "scale": torch.zeros(1)}, file),
        "they have scale, which the network lacks",
    ),
    "int8.pth": (
        lambda state, file: save({**state, "bn1.bias": torch.zeros(8, dtype=torch.int8)}, file),
        "expected bn1.bias of torch.float32, got torch.int8",
    ),
    "wide.pth": (
        lambda _, file: save(other_state(w=0.7), file),
        "expected blocks.3.0.conv_pwl.weight of shape (12, 32, 1, 1), got (16, 32, 1, 1)",
    ),
    "ten.pth": (
        lambda _, file: save(other_state(10), file),
        "are for 10 classes, and the network has 24: pass num_classes=10",
    ),
    "tinynet.pth": (
        lambda _, file: save(timm.create_model("tinynet_e").state_dict(), file),
        "expected conv_stem.weight of shape (8, 3, 3, 3)",
    ),
}


@pytest.mark.parametrize("name", INVALID_FILES)
def test_invalid_file_is_one_line_and_leaves_the_module_unchanged(
    state: State, tmp_path: Path, name: str
) -> None:
    write, message = INVALID_FILES[name]
    write(state, tmp_path / name)
    assert_rejected(tmp_path / name, message)


@pytest.mark.parametrize("name", ["cut.pth", "cut.safetensors", "cut.bin"])
def test_truncated_file(state: State, tmp_path: Path, name: str) -> None:
    WRITERS[name.replace("cut", "legacy" if name == "cut.bin" else "plain")](
        state, tmp_path / "complete"
    )
    data = (tmp_path / "complete").read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    assert_rejected(tmp_path / name, "are damaged")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.pth", "does not exist"),
        ("some/where", "does not exist"),
        (Path("nowhere"), "does not exist"),
        ("tinynet_f", "did you mean 'tinynet_e'"),
        ("timm/tinynet_e.in2k", "did you mean 'tinynet_e.in1k'"),
        ("", "pass a file, or a name from timm.list_pretrained()"),
        ("legacy_seresnet18.in1k", "outside the hub"),
    ],
)
def test_weights_that_do_not_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str | Path, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_rejected(source, message)


def assert_rejected(source: str | Path, message: str) -> None:
    module = MINI.build()
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    with pytest.raises(RequestError) as raised:
        load_weights(module, source)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert all(torch.equal(tensor, before[key]) for key, tensor in module.state_dict().items())


class Hub(http.server.BaseHTTPRequestHandler):
    """The part of the hub's API that a client needs to download one file."""

    files: dict[str, bytes]
    requests: list[str]

    def do_HEAD(self) -> None:
        self._respond(head=True)

    def do_GET(self) -> None:
        self._respond(head=False)

    def _respond(self, *, head: bool) -> None:
        self.requests.append(f"{self.command} {self.path}")
        data = self.files.get(self.path)
        self.send_response(404 if data is None else 200)
        self.send_header("X-Repo-Commit", "c" * 40)
        if data is None:
            self.send_header("X-Error-Code", "EntryNotFound")
        else:
            self.send_header("ETag", f'"{hash(self.path) % 10**9}-{len(data)}"')
        self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()
        if data is not None and not head:
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        return None


@pytest.fixture
def hub() -> Iterator[str]:
    Hub.files, Hub.requests = {}, []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


BUILD = """
import sys, time, timm
from search_spaces import RequestError
from search_spaces.networks import get_named
started = time.time()
for argument in sys.argv[1:]:
    network, _, source = argument.partition("=")
    try:
        module = get_named(network).network().build(pretrained=source)
        print(f"{module.get_parameter('classifier.bias').mean().item():.4f}")
    except RequestError as error:
        print(error)
print(time.time() - started)
"""


def build_in_process(
    tmp_path: Path, endpoint: str, *arguments: str, **environment: str
) -> list[str]:
    """Build each ``network=source`` in a new process with the hub at ``endpoint``.

    Returns the mean bias or the error of each, then the seconds.
    """
    inherited = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("HF_", "HUGGINGFACE_"))
    }
    env = {
        **inherited,
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(tmp_path / "hub"),
        **environment,
    }
    completed = subprocess.run(
        [sys.executable, "-W", "error", "-c", BUILD, *arguments],
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert completed.stderr == ""
    return completed.stdout.splitlines()


def test_published_weights_are_downloaded_once(tmp_path: Path, hub: str) -> None:
    for name, file in (
        ("tinynet_e.in1k", "model.safetensors"),
        ("tinynet_d.in1k", "pytorch_model.bin"),
        ("tf_efficientnet_b0.in1k", None),
    ):
        state = timm.create_model(name).state_dict()
        state["classifier.bias"].fill_(0.25)
        torch.save(state, tmp_path / "file") if file == "pytorch_model.bin" else save_file(
            state, tmp_path / "file"
        )
        Hub.files[f"/timm/{name}/resolve/main/{file or 'model.safetensors'}"] = (
            tmp_path / "file"
        ).read_bytes()
    names = [
        f"tinynet_e={source}" for source in ("tinynet_e.in1k", "timm/tinynet_e.in1k", "tinynet_e")
    ]
    lines = build_in_process(
        tmp_path,
        hub,
        *names,
        "tinynet_d=tinynet_d",
        "efficientnet_b0=tf_efficientnet_b0.in1k",
        "tinynet_a=tinynet_e.in1k",
    )
    assert lines[:4] == ["0.2500"] * 4
    assert "a different function: timm's tf_efficientnet_b0" in lines[4]
    assert "weights 'tinynet_e.in1k' belong to a different network" in lines[5]
    downloads = [line for line in Hub.requests if line.startswith("GET") and "tinynet_e" in line]
    assert downloads == ["GET /timm/tinynet_e.in1k/resolve/main/model.safetensors"]
    # Without a hub, the weights come from the cache.
    lines = build_in_process(
        tmp_path,
        "http://127.0.0.1:9",
        "tinynet_e=tinynet_e",
        "tinynet_c=tinynet_c",
        HF_HUB_OFFLINE="1",
    )
    assert lines[0] == "0.2500"
    assert "tinynet_c.in1k" in lines[1]
    assert "HF_HUB_OFFLINE is set" in lines[1]


def test_unreachable_hub_is_reported_in_one_line_at_once(tmp_path: Path) -> None:
    line, seconds = build_in_process(tmp_path, "http://127.0.0.1:9", "tinynet_e=tinynet_e.in1k")
    assert "cannot be downloaded from http://127.0.0.1:9" in line
    assert "set HF_ENDPOINT, or pass a file" in line
    assert float(seconds) < 10
