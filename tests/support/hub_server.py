"""As much of the Hugging Face hub as huggingface_hub asks for when it downloads."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "some/model"


class Hub:
    """Serves a folder, one after the other, as the model `REPOSITORY`.

    Attributes:
        drops: for a file, after how many bytes of a body the next connections break off, once each.
        truncated: for a file, the sizes of its next bodies, whose headers tell no more than that.
        damaged: files of which the last byte arrives as another.
        fetched: the bodies that were asked for, in order.
        url: for HF_ENDPOINT.
    """

    def __init__(self, url: str) -> None:
        self.url = url

    def show(self, folder: Path) -> None:
        """Serve a folder from now on, as it is."""
        self.folder = folder
        self.drops: dict[str, list[int]] = {}
        self.truncated: dict[str, list[int]] = {}
        self.damaged: set[str] = set()
        self.fetched: list[str] = []

    def listing(self) -> bytes:
        siblings = []
        for path in sorted(self.folder.iterdir()):
            entry = {"rfilename": path.name, "size": path.stat().st_size}
            entry |= {"blobId": self.checksum(path, large=False)}
            if self.large(path):
                sha = self.checksum(path, large=True)
                entry["lfs"] = {"sha256": sha, "size": entry["size"], "pointerSize": 1}
            siblings.append(entry)
        info = {"id": REPOSITORY, "modelId": REPOSITORY, "sha": COMMIT, "siblings": siblings}
        return json.dumps(info).encode()

    def large(self, path: Path) -> bool:
        return not path.name.endswith(".json")

    def checksum(self, path: Path, large: bool) -> str:
        content = path.read_bytes()
        if large:
            return hashlib.sha256(content).hexdigest()
        return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub, as long as the block lasts."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            path = self.path.partition("?")[0]
            if path.startswith(f"/api/models/{REPOSITORY}"):
                self._send(200, hub.listing(), {"Content-Type": "application/json"}, body=body)
                return
            file = hub.folder / path.rpartition("/")[2]
            if not path.startswith(f"/{REPOSITORY}/resolve/") or not file.is_file():
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, body=body)
                return
            content = file.read_bytes()
            etag = hub.checksum(file, large=hub.large(file))
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
            wanted = self.headers.get("Range")
            begin = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0
            if begin:
                headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
            if body:
                hub.fetched.append(file.name)
            if body:
                if file.name in hub.damaged:
                    content = content[:-1] + bytes([content[-1] ^ 1])
                sizes = hub.truncated.get(file.name)
                content = content[: sizes.pop(0)] if sizes else content
            drops = hub.drops.get(file.name)
            cut = drops.pop(0) if body and drops else None
            self._send(206 if begin else 200, content[begin:], headers, body=body, cut=cut)

        def _send(
            self,
            status: int,
            content: bytes,
            headers: dict[str, str],
            *,
            body: bool,
            cut: int | None = None,
        ) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content[:cut])
            if cut is not None:
                self.close_connection = True

        def log_message(self, *_arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub = Hub(f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
