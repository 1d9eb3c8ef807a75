"""Publishing, up to the border: a real client talks HTTP to a server that stands in for the Hub."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub.constants
import pytest

from vil_tracker_core import weights
from vil_tracker_core.data.sequence import DataError
from vil_tracker_core.training import hub
from vil_tracker_core.training.config import HubConfig, TrainConfig
from vil_tracker_core.training.loop import train

MakeConfig = Callable[..., TrainConfig]
HUB = HubConfig(repo="me/tracker")


class Request(NamedTuple):
    path: str
    token: str | None
    body: str


class StandIn(ThreadingHTTPServer):
    """Answers as the Hub does; keeps what it was asked. ``status`` is that of every refusal."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[Request] = []
        self.refused: str | None = None
        self.status = 403

    def asked(self, part: str) -> list[Request]:
        return [request for request in self.requests if part in request.path]


class _Handler(BaseHTTPRequestHandler):
    server: StandIn

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0)).decode()
        self.server.requests.append(Request(self.path, self.headers["Authorization"], body))
        answer: dict[str, Any] = {"error": "not allowed"}
        status = 200
        here = f"http://{self.headers['Host']}/me/tracker"
        if self.server.refused and self.server.refused in self.path:
            status = self.server.status
        elif "/repos/create" in self.path:
            answer = {"url": here, "name": "me/tracker", "id": "me/tracker"}
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            answer = {
                "files": [
                    {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for f in files
                ]
            }
        elif "/commit/" in self.path:
            answer = {"success": True, "commitUrl": f"{here}/commit/1", "commitOid": "1"}
        self._answer(status, answer)

    def do_GET(self) -> None:
        self._answer(404, {"error": "not found"})

    def _answer(self, status: int, answer: dict[str, Any]) -> None:
        text = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Nothing on stderr."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    with StandIn() as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{made.server_address[1]}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        monkeypatch.setenv("HF_TOKEN", "hf_of_the_test")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield made
        made.shutdown()


def committed(server: StandIn) -> dict[str, bytes]:
    """Path -> content of the one commit."""
    (request,) = server.asked("/commit/main")
    lines = [json.loads(line) for line in request.body.splitlines()]
    files = [line["value"] for line in lines if line["key"] == "file"]
    return {file["path"]: base64.b64decode(file["content"]) for file in files}


def test_finished_run_is_published(
    make_config: MakeConfig, tmp_path: Path, server: StandIn
) -> None:
    path = train(make_config(steps=2, hub=HUB.model_dump()), tmp_path / "run")
    (created,) = server.asked("/api/repos/create")
    assert created.token == "Bearer hf_of_the_test"
    asked = json.loads(created.body)
    # how it is said differs between the library's versions
    assert asked.get("private") is True or asked.get("visibility") == "private", asked
    assert (asked["organization"], asked["name"]) == ("me", "tracker")

    files = committed(server)
    assert set(files) == {"weights.safetensors", "run.json", "README.md"}
    assert files["weights.safetensors"] == path.read_bytes()
    assert json.loads(files["run.json"])["step"] == 2
    assert b"# tracker" in files["README.md"]
    assert b"vil_tiny" in files["README.md"]
    (tmp_path / "again.safetensors").write_bytes(files["weights.safetensors"])
    assert weights.load(tmp_path / "again.safetensors").config.name == "vil_tiny"


def test_run_without_a_hub_asks_nothing(
    make_config: MakeConfig, tmp_path: Path, server: StandIn
) -> None:
    train(make_config(steps=1), tmp_path / "run")
    assert server.requests == []


def test_refusal_is_known_before_the_training(
    make_config: MakeConfig, tmp_path: Path, server: StandIn
) -> None:
    server.refused = "/repos/create"
    with pytest.raises(DataError, match=r"hub: me/tracker cannot be written to: .*403") as error:
        train(make_config(steps=1, hub=HUB.model_dump()), tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run" / "weights.safetensors").exists()


def test_failure_to_publish_leaves_the_weights(
    make_config: MakeConfig, tmp_path: Path, server: StandIn
) -> None:
    server.refused = "/commit/"
    with pytest.raises(DataError, match=r"not published to me/tracker.*403"):
        train(make_config(steps=1, hub=HUB.model_dump()), tmp_path / "run")
    assert weights.load(tmp_path / "run" / "weights.safetensors").provenance["step"] == 1
    server.refused = None
    server.requests.clear()
    hub.push(HUB, tmp_path / "run")
    assert "weights.safetensors" in committed(server)
