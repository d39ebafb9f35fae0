"""A place to work in, a web server on this machine, and encoders without models."""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cammsr.raw.source import Work


@dataclass
class Site:
    """What a web server on this machine answers: path -> (status, body, headers, seconds)."""

    url: str = ""
    pages: dict[str, tuple[int, bytes, dict[str, str], float]] = field(default_factory=dict)
    asked: list[tuple[str, str | None]] = field(default_factory=list)  # path, Range
    break_after: int | None = None  # bytes of a body after which the connection closes

    def add(self, path: str, body: bytes, status: int = 200, seconds: float = 0.0) -> str:
        self.pages[path] = status, body, {"ETag": f'"{hash(body)}"'}, seconds
        return self.url + path


@pytest.fixture
def site() -> Iterator[Site]:
    served = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            served.asked.append((self.path, asked))
            status, body, headers, seconds = served.pages.get(self.path, (404, b"", {}, 0.0))
            time.sleep(seconds)
            if asked and self.headers.get("If-Range") == headers.get("ETag"):
                body = body[int(asked.removeprefix("bytes=").rstrip("-")) :]
                status = 206 if body else 416
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: served.break_after])

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True  # a slow answer is not waited for

        def handle_error(self, *_: object) -> None:
            pass  # somebody did not wait for the answer

    server = Server(("127.0.0.1", 0), Handler)
    served.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield served
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def said() -> list[str]:
    """The lines that were said."""
    return []


@pytest.fixture
def work(tmp_path: Path, said: list[str]) -> Work:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    return Work(scratch, tmp_path / "cache", False, 0.5, said.append)


@dataclass
class CountingEncoder:
    """The length of an input and its first letter's number; remembers what it was asked."""

    name: str = "counting"
    revision: str = "1"
    how: str = "by hand"
    width: int = 2
    batches: list[list[str]] = field(default_factory=list)

    def __call__(self, batch: Sequence[str]) -> np.ndarray[Any, Any]:
        self.batches.append(list(batch))
        return np.array([[len(text), ord(text[0])] for text in batch], dtype=np.float32)


@pytest.fixture
def counting() -> type[CountingEncoder]:
    return CountingEncoder


@pytest.fixture
def png() -> Callable[[str], bytes]:
    def make(color: str) -> bytes:
        out = BytesIO()
        Image.new("RGB", (5, 4), color).save(out, "PNG")
        return out.getvalue()

    return make


@pytest.fixture
def write_lines(tmp_path: Path) -> Callable[..., Path]:
    """Write objects (or raw bytes) as lines, gzipped if the name says so."""

    def write(name: str, *lines: Any, literal: bool = False) -> Path:
        dump = repr if literal else json.dumps
        body = b"".join(
            (one if isinstance(one, bytes) else dump(one).encode()) + b"\n" for one in lines
        )
        path = tmp_path / name
        path.write_bytes(gzip.compress(body) if name.endswith(".gz") else body)
        return path

    return write
