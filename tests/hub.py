"""A small Hub on this machine: the few answers that huggingface_hub needs, and the ways in which a
real one fails."""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

COMMIT = "c" * 40
LARGE = (".safetensors", ".bin")  # kept in LFS: served from another address, named by their SHA-256


def digest(data: bytes, large: bool) -> str:
    return (
        hashlib.sha256(data).hexdigest()
        if large
        else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    )


class Hub(BaseHTTPRequestHandler):
    """Every revision of a repository is the folder `repos` has for it."""

    repos: dict[str, Path]
    """{owner/name: folder}"""
    store: str
    """Address of the large files: another than the Hub's."""
    sent: list[str]
    """Files whose content was asked for, with "@N" where it was asked for from byte N on."""
    tokens: list[str | None]
    faults: dict[str, list[str]]
    """{file: what the next GETs of it do}: "503", "cut" (half of it, then nothing), "wrong" (other
    bytes), "slow" (half of it, and nothing more while the reader waits)."""
    refused: dict[str, tuple[int, str]]
    """{repository: (status, X-Error-Code)}"""

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        path = address.path.split("/")
        self.tokens.append(self.headers.get("Authorization"))
        if path[1] == "cdn":
            return self.content("/".join(path[2:4]), "/".join(path[4:]))
        api = path[1] == "api"
        repo = "/".join(path[3:5] if api else path[1:3])
        if repo in self.refused or repo not in self.repos:
            status, code = self.refused.get(repo, (404, "RepoNotFound"))
            return self.answer(b"", status, {"X-Error-Code": code} if code else {})
        folder, revision = self.repos[repo], path[6 if api else 4]
        if revision != "main" and len(revision) != 40:
            return self.answer(b"", 404, {"X-Error-Code": "RevisionNotFound"})
        commit = COMMIT if revision == "main" else revision
        if api:
            files = sorted(
                f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file()
            )
            whole = "blobs" in parse_qs(address.query)
            if path[5] == "revision":
                found = [self.facts(folder, f) if whole else {"rfilename": f} for f in files]
                return self.answer(
                    json.dumps({"id": repo, "sha": commit, "siblings": found}).encode()
                )
            tree = [
                {"type": "file", "path": f, "size": (folder / f).stat().st_size, "oid": "0" * 40}
                for f in files
            ]
            return self.answer(json.dumps(tree).encode())
        file = "/".join(path[5:])
        if not (folder / file).is_file():
            return self.answer(b"", 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        data, large = (folder / file).read_bytes(), file.endswith(LARGE)
        headers = {"ETag": f'"{digest(data, large)}"', "X-Repo-Commit": commit}
        if not large:
            return self.content(repo, file, headers)
        headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(data))}
        return self.answer(b"", 302, headers | {"Location": f"{self.store}/cdn/{repo}/{file}"})

    do_HEAD = do_GET

    def facts(self, folder: Path, file: str) -> dict[str, object]:
        data, large = (folder / file).read_bytes(), file.endswith(LARGE)
        facts = {"rfilename": file, "size": len(data), "blobId": digest(data, False)}
        lfs = {"lfs": {"sha256": digest(data, True), "size": len(data), "pointerSize": 130}}
        return facts | (lfs if large else {})

    def content(self, repo: str, file: str, headers: dict[str, str] | None = None) -> None:
        data, headers = (self.repos[repo] / file).read_bytes(), headers or {}
        if self.command == "HEAD":
            return self.answer(data, 200, headers)
        fault = self.faults[file].pop(0) if self.faults.get(file) else ""
        if fault == "503":
            return self.answer(b"", 503)
        begin = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        self.sent.append(file + (f"@{begin}" if begin else ""))
        if fault == "wrong":
            data = bytes(255 - byte for byte in data)
        status = 206 if begin else 200
        if begin:
            headers = headers | {"Content-Range": f"bytes {begin}-{len(data) - 1}/{len(data)}"}
        cut = len(data[begin:]) // 2 if fault in ("cut", "slow") else None
        self.answer(data[begin:], status, headers, cut)
        if fault == "slow":
            self.wfile.flush()
            self.connection.recv(1)  # until the reader goes

    def answer(
        self,
        body: bytes,
        status: int = 200,
        headers: dict[str, str] | None = None,
        cut: int | None = None,
    ) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:cut])
        if cut is not None:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving():
    """(its address, its handler)"""
    empty = {"repos": {}, "sent": [], "tokens": [], "faults": {}, "refused": {}}
    handler = type("OneHub", (Hub,), empty)
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for _ in range(2)]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    url, handler.store = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    yield url, handler
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def hub():
    with serving() as both:
        yield both
