"""A server of Weights & Biases on this machine, for tests: as much of it as its client asks for."""

from __future__ import annotations

import gzip
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest


class Server(BaseHTTPRequestHandler):
    """Answers what a run begins with, until it is `gone` in one of these ways.

    `errors`: answers nothing but 500. `refused`: its port is closed. `silent`: it takes requests and never answers.
    `garbage`: answers 200 with what is no JSON. `noise`: answers with what is no HTTP.
    """

    protocol_version = "HTTP/1.1"
    gone: str | None = None
    listening: ThreadingHTTPServer
    finished: threading.Event
    ANSWERS: dict[str, Any] = {  # noqa: RUF012 (never changed)
        "Viewer": {"viewer": {"id": "v", "flags": "{}", "entity": "team", "username": "u", "teams": {"edges": []}}},
        "CreateRunFiles": {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": []}},
        "UpsertBucket": {
            "upsertBucket": {
                "bucket": {
                    "id": "r",
                    "name": "run",
                    "displayName": "run",
                    "config": "{}",
                    "project": {"id": "p", "name": "project", "entity": {"id": "e", "name": "team"}},
                    "historyLineCount": 0,
                },
                "inserted": True,
            }
        },
    }

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Content-Encoding"] == "gzip":
            body = gzip.decompress(body)
        answer: dict[str, Any] = {}
        if self.path == "/graphql":
            named = re.search(r"(?:query|mutation)\s+(\w+)", json.loads(body)["query"])
            answer = {"data": self.answer(named[1]) if named else {}}
        content = json.dumps(answer).encode()
        if self.gone == "silent":
            self.finished.wait()
        if self.gone in ("refused", "silent", "noise"):
            self.close_connection = True
            if self.gone == "noise":
                self.wfile.write(bytes(range(256)) * 4)
            return
        if self.gone == "garbage":
            content = b"<html>\xff{" * 40
        self.send_response(500 if self.gone == "errors" else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def answer(self, name: str) -> Any:
        """What a query or a mutation of this name gets."""
        return self.ANSWERS.get(name, {})

    @classmethod
    def go(cls, manner: str) -> None:
        """Be gone from now on."""
        cls.gone = manner
        if manner == "refused":
            cls.listening.shutdown()
            cls.listening.socket.close()

    def log_message(self, *arguments: Any) -> None:
        pass


@contextmanager
def serving(kind: type[Server], monkeypatch: pytest.MonkeyPatch, home: Path) -> Iterator[type[Server]]:
    """The server that clients find, with somebody logged in to it; they wait three seconds for it at the end."""
    import wandb

    class Own(kind):  # type: ignore[misc, valid-type]
        finished = threading.Event()

    with ThreadingHTTPServer(("127.0.0.1", 0), Own) as listening:
        listening.daemon_threads = True
        listening.block_on_close = False
        Own.listening = listening
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{listening.server_port}")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "3")
        monkeypatch.setenv("HOME", str(home))
        monkeypatch.delenv("WANDB_MODE", raising=False)
        wandb.teardown()
        yield Own
        Own.finished.set()
        wandb.teardown()
        listening.shutdown()
