"""A model hub on this machine: folders served by the few paths of the hub's API that its libraries ask for.

>>> with stand_in_hub({"models/me/tiny": folder}) as endpoint:  # children take it from HF_ENDPOINT
...     snapshot_download("me/tiny", endpoint=endpoint)
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_API = re.compile(r"/api/(?P<repo>(models|datasets)/[^/]+/[^/]+)(/(?P<what>revision|tree|paths-info)/(?P<rest>.*))?$")
_FILE = re.compile(r"/(?P<kind>datasets/)?(?P<name>[^/]+/[^/]+)/resolve/[^/]+/(?P<path>.+)$")


@contextmanager
def stand_in_hub(repositories: dict[str, Path]) -> Iterator[str]:
    """Serve folders as `models/OWNER/NAME` and `datasets/OWNER/NAME`, at one commit; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def do_POST(self) -> None:
            asked = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
            self.answer(body=True, asked=asked)

        def answer(self, body: bool, asked: str = "") -> None:
            path = unquote(urlsplit(self.path).path)
            if found := _FILE.match(path):
                file = (
                    repositories.get(f"{found['kind'] or 'models/'}{found['name']}", Path("/nowhere")) / found["path"]
                )
                if file.is_file():
                    return self.send(file.read_bytes(), body, {"ETag": f'"{_etag(file)}"', "X-Repo-Commit": COMMIT})
                return self.send(b"", body, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, 404)
            found = _API.match(path)
            folder = repositories.get(found["repo"]) if found else None
            if found is None or folder is None:
                return self.send(b"{}", body, {"X-Error-Code": "RepoNotFound"}, 404)
            if found["what"] in ("tree", "paths-info"):
                return self.send_json(_listed(folder, found, asked), body)
            siblings = [{"rfilename": name} for name in _files(folder)]
            name = found["repo"].partition("/")[2]
            return self.send_json({"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings}, body)

        def send_json(self, content: Any, body: bool) -> None:
            self.send(json.dumps(content).encode(), body, {"Content-Type": "application/json"})

        def send(self, content: bytes, body: bool, headers: dict[str, str], status: int = 200) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _files(folder: Path) -> dict[str, Path]:
    return {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}


def _listed(folder: Path, found: re.Match[str], asked: str) -> list[dict[str, Any]]:
    """Every file of the repository, or those asked for by name."""
    below = found["rest"].partition("/")[2]
    files = {name: path for name, path in _files(folder).items() if name.startswith(below)}
    if found["what"] == "paths-info":
        files = {name: path for name, path in files.items() if name in asked.replace("%2F", "/")}
    return [
        {"type": "file", "path": name, "size": path.stat().st_size, "oid": _etag(path)} for name, path in files.items()
    ]


def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()
