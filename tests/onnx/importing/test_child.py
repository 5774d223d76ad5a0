"""The import as the command line runs it: a child process, one JSON object a line."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from headgate_engine.hub import resolve
from headgate_plugin_api import ImportJob, LoadFailed, Manifest, read_manifest

from tests.onnx import tiny
from tests.onnx.conftest import embed, import_in_child, load

COMMIT = "c0ffee" + "0" * 34


def job(source: str, out: Path, **facts: Any) -> ImportJob:
    return ImportJob(**({"source": source, "id": "m", "task": None, "backend": "onnx", "out": str(out)} | facts))


def test_progress_rises_and_the_last_line_is_the_manifest(tmp_path: Path) -> None:
    file = tmp_path / "noisy.py"
    file.write_text(
        "import os\nimport numpy as np\nfrom sklearn.linear_model import LinearRegression\n"
        "def model():\n    print('noise')\n    os.write(1, b'native noise')\n"
        "    rows = np.eye(3, dtype=np.float32)\n    return LinearRegression().fit(rows, [1, 2, 3]), rows\n"
    )
    code, lines = import_in_child(job(f"py:{file}:model", tmp_path / "m"), tmp_path)
    assert code == 0
    fractions = [line["fraction"] for line in lines[:-1]]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert msgspec.convert(lines[-1]["manifest"], Manifest) == read_manifest(tmp_path / "m")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("model.keras", "not supported yet; export it from Keras 3"),
        ("model.skops", "not supported yet"),
        ("model.pt2", "not supported yet"),
        ("model.pt", "not supported yet; a pickle may run code"),
        ("nowhere", "nowhere does not exist"),
        ("hf://one-part", "expected hf://org/name"),
    ],
)
def test_errors_are_one_line(tmp_path: Path, source: str, message: str) -> None:
    code, lines = import_in_child(job(source, tmp_path / "m"), tmp_path)
    assert code == 1
    assert message in lines[-1]["error"]


def test_an_unknown_backend_is_named(tmp_path: Path) -> None:
    code, lines = import_in_child(job("x.onnx", tmp_path / "m", backend="onyx"), tmp_path)
    assert code == 1
    assert "no backend 'onyx' is installed" in lines[-1]["error"]


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of a hub as a snapshot needs: one repository in `folder`."""

    folder: Path
    asked: list[str]

    def do_HEAD(self) -> None:
        self.respond(body=False)

    def do_GET(self) -> None:
        self.respond(body=True)

    def respond(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        self.asked.append(path)
        if path.startswith("/api/models/canal/tiny/") or path == "/api/models/canal/tiny":
            content = json.dumps(self.index(path)).encode()
        elif path.startswith("/canal/tiny/resolve/") and (self.folder / path.split("/")[-1]).is_file():
            content = (self.folder / path.split("/")[-1]).read_bytes()
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{path.split("/")[-1]}"')
        self.end_headers()
        if body:
            self.wfile.write(content)

    def index(self, path: str) -> Any:
        files = sorted(file.name for file in self.folder.iterdir())
        if "/tree/" in path:
            return [
                {"type": "file", "path": name, "size": (self.folder / name).stat().st_size, "oid": name}
                for name in files
            ]
        return {"id": "canal/tiny", "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    folder = tiny.distilled(tmp_path / "hub")
    (folder / "pytorch_model.bin").write_bytes(b"a pickle that nobody should fetch")
    handler = type("OneHub", (Hub,), {"folder": folder, "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield handler
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_hub_source_is_fetched_without_pickles_and_imported(hub: type[Hub], tmp_path: Path) -> None:
    code, lines = import_in_child(job("hf://canal/tiny", tmp_path / "m"), tmp_path)
    assert code == 0, lines
    assert lines[0]["what"] == "fetching canal/tiny"
    manifest = read_manifest(tmp_path / "m")
    assert (manifest.task, manifest.source) == ("embed", "hf://canal/tiny")
    assert any(path.endswith("/model.safetensors") for path in hub.asked)
    assert not any(path.endswith(".bin") for path in hub.asked)

    # An architecture without token types, in a folder without modules.json: mean-pooled, not normalised.
    assert [value.name for value in manifest.inputs] == ["input_ids", "attention_mask"]
    assert (manifest.pooling, manifest.fused_nodes["MultiHeadAttention"]) == ("mean", 2)
    texts = ("water gate", "a", "the gate of the canal")
    vectors, _ = embed(load(tmp_path / "m", "embed"), texts)
    assert np.allclose(vectors, [tiny.hidden(hub.folder, text).mean(axis=0) for text in texts], atol=1e-4)


def test_a_repository_that_is_not_there_is_named(hub: type[Hub], tmp_path: Path) -> None:
    code, lines = import_in_child(job("hf://canal/dry", tmp_path / "m"), tmp_path)
    assert code == 1
    assert lines[-1]["error"].startswith("hf://canal/dry cannot be fetched")


def test_a_source_must_be_whole() -> None:
    with pytest.raises(LoadFailed, match="expected hf://org/name"):
        resolve("hf://../../etc", lambda _: None)
