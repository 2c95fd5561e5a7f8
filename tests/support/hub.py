"""A stand-in of the Hub's HTTP API, and of the storage ("CDN") it redirects to, on two loopback ports.

    with StandInHub() as hub:
        commit = hub.commit("org/model", {"config.json": b"{}", "model.safetensors": weights})
        hub.fault(status(503), where=on("cdn"), occurrences={1})
        ... HubHttp(endpoint=hub.endpoint) ...
        assert hub.requests ...

What it does as the Hub does: a revision is a branch, tag or commit; the listing has pages, directories,
git blob ids, and sizes and SHA-256 of LFS files; `resolve` answers 302 to a signed URL for LFS files and
307 within the Hub for others, with X-Repo-Commit, X-Linked-Size and X-Linked-Etag; gated repositories are
403 or 401 with X-Error-Code, private ones do not exist. The CDN knows nothing of the Hub: other ETags,
signatures that expire (`expire_links`), ranges, If-Match.

Faults change answers before they are sent. Every request is logged when its head has been read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import json
import socket
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from types import TracebackType
from typing import Any, Literal, Self, cast
from urllib.parse import parse_qs, quote, unquote

Side = Literal["hub", "cdn"]

LFS_SUFFIXES = (".safetensors", ".bin")
WAIT = 30.0
"""Seconds after which a stalled answer ends by itself; a guard against hanging, no expectation."""


@dataclass(frozen=True)
class HubRequest:
    """A request as it came. Header names are in lower case; `bytes` is its range's end-exclusive pair."""

    side: Side
    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]

    @property
    def range(self) -> tuple[int, int] | None:
        text = self.headers.get("range")
        if text is None:
            return None
        first, _, last = text.removeprefix("bytes=").partition("-")
        return int(first), int(last) + 1


@dataclass(frozen=True)
class Answer:
    """What is sent: `cut` body bytes and then a closed connection, when given; `until` is awaited there.

    A header that is None is left out, also the body's length.
    """

    status: int
    headers: Mapping[str, str | None] = field(default_factory=dict)
    body: bytes = b""
    cut: int | None = None
    until: threading.Event | None = None


Change = Callable[[Answer], Answer]
Where = Callable[[HubRequest], bool]


def on(side: Side, text: str = "") -> Where:
    """Requests to one of the servers whose path holds `text`."""
    return lambda request: request.side == side and text in request.path


def status(code: int, **headers: str) -> Change:
    """Another status, without a body."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda answer: Answer(code, {**named})


def with_headers(**headers: str | None) -> Change:
    """Headers replaced, or removed by None."""

    def change(answer: Answer) -> Answer:
        named: dict[str, str | None] = {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        return dataclasses.replace(answer, headers={**answer.headers, **named})

    return change


def cut(after: int) -> Change:
    """The connection breaks in the middle of the body."""
    return lambda answer: dataclasses.replace(answer, cut=min(after, len(answer.body)))


def stalled(after: int, until: threading.Event) -> Change:
    """Nothing comes after some bytes of the body, until the event is set."""
    return lambda answer: dataclasses.replace(answer, cut=min(after, len(answer.body)), until=until)


def flipped(at: int) -> Change:
    """One bit of the body is another one."""

    def change(answer: Answer) -> Answer:
        body = bytearray(answer.body)
        body[at] ^= 1
        return dataclasses.replace(answer, body=bytes(body))

    return change


@dataclass
class _Blob:
    data: bytes
    is_lfs: bool

    @property
    def sha1(self) -> str:
        data = self.pointer if self.is_lfs else self.data
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def pointer(self) -> bytes:
        return (
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\n"
            f"size {len(self.data)}\n"
        ).encode()


@dataclass
class _Repository:
    commits: dict[str, dict[str, _Blob]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    private: bool = False


@dataclass
class _Fault:
    change: Change
    where: Where
    occurrences: Collection[int] | None
    seen: int = 0


class StandInHub:
    """See the module's docstring. `page_size` is the most entries of one page of a listing."""

    def __init__(self, *, token: str | None = None, page_size: int = 1000) -> None:
        self.token = token
        """What opens gated and private repositories; None: nothing does."""
        self.page_size = page_size
        self.requests: list[HubRequest] = []
        self._repositories: dict[str, _Repository] = {}
        self._moved: dict[str, str] = {}
        self._faults: list[_Fault] = []
        self._signature = 1
        self._lock = threading.Condition()
        self._servers = {side: _Server(self, side) for side in ("hub", "cdn")}

    # For tests

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._servers['hub'].server_port}"

    @property
    def cdn(self) -> str:
        """On another origin than the endpoint, as the CDN is."""
        return f"http://127.0.0.1:{self._servers['cdn'].server_port}"

    def commit(self, repo: str, files: Mapping[str, bytes], *, ref: str | None = "main") -> str:
        """Add a commit of exactly these files, move a branch to it, and return its name."""
        blobs = {name: _Blob(data, name.endswith(LFS_SUFFIXES)) for name, data in files.items()}
        listing = repr(sorted((name, blob.sha1) for name, blob in blobs.items()))
        name = hashlib.sha1(listing.encode("utf-8", "surrogatepass")).hexdigest()
        repository = self._repositories.setdefault(repo, _Repository())
        with self._lock:
            repository.commits[name] = blobs
            if ref is not None:
                repository.refs[ref] = name
        return name

    def restrict(self, repo: str, *, gated: bool = False, private: bool = False) -> None:
        """Close a repository to all who have not the token."""
        self._repositories[repo].gated = gated
        self._repositories[repo].private = private

    def move(self, old: str, new: str) -> None:
        """The repository has another name now."""
        self._repositories[new] = self._repositories.pop(old)
        self._moved[old] = new

    def expire_links(self) -> None:
        """All signed URLs so far are of no use any more."""
        with self._lock:
            self._signature += 1

    def fault(
        self,
        change: Change,
        *,
        where: Where = lambda request: True,
        occurrences: Collection[int] | None = None,
    ) -> None:
        """Change the answers to some requests, counted from 1 in order of arrival; all when None."""
        self._faults.append(_Fault(change, where, occurrences))

    def log(self, side: Side, text: str = "") -> list[HubRequest]:
        """The requests so far to one of the servers whose path holds `text`."""
        with self._lock:
            return list(filter(on(side, text), self.requests))

    def wait_for(self, condition: Callable[[], bool]) -> bool:
        """Wait until the log fulfils a condition; False after `WAIT` seconds."""
        with self._lock:
            return self._lock.wait_for(condition, WAIT)

    # Life

    def __enter__(self) -> Self:
        for server in self._servers.values():
            server.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for server in self._servers.values():
            server.stop()

    # Requests

    def answer(self, request: HubRequest) -> Answer:
        """Log a request and answer it, as the faults want it."""
        with self._lock:
            self.requests.append(request)
            changes = []
            for fault in self._faults:
                if fault.where(request):
                    fault.seen += 1
                    if fault.occurrences is None or fault.seen in fault.occurrences:
                        changes.append(fault.change)
            answer = self._hub(request) if request.side == "hub" else self._storage(request)
            self._lock.notify_all()
        for change in changes:
            answer = change(answer)
        return answer

    def _hub(self, request: HubRequest) -> Answer:
        api, path = request.path.startswith("/api/models/"), request.path.lstrip("/")
        cached = path.startswith("api/resolve-cache/models/")
        path = path.removeprefix("api/resolve-cache/models/" if cached else "api/models/")
        parts = path.split("/")
        repo, rest = "/".join(parts[:2]), parts[2:]
        if repo in self._moved:
            there = request.path.replace(repo, self._moved[repo], 1)
            return Answer(307, {"Location": there + _query_text(request)})
        repository = self._repositories.get(repo)
        authorized = (
            self.token is not None
            and request.headers.get("authorization") == f"Bearer {self.token}"
        )
        if repository is None or (repository.private and not authorized):
            known = "authorization" in request.headers
            return _error(404 if known else 401, "RepoNotFound", "Repository not found")
        if not api and repository.gated and not authorized:
            known = "authorization" in request.headers
            return _error(
                403 if known else 401, "GatedRepo", f"Access to model {repo} is restricted."
            )
        if not rest:
            rest = ["revision", "main"]
        elif cached:
            rest = ["resolve", *rest]
        revision = unquote(rest[1])
        commit = repository.refs.get(revision, revision)
        files = repository.commits.get(commit)
        if files is None:
            return _error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if rest[0] == "revision":
            return _json({"_id": "1", "id": repo, "sha": commit, "siblings": _siblings(files)})
        if rest[0] == "tree":
            return self._tree(request, files)
        name = unquote("/".join(rest[2:]))
        blob = files.get(name)
        if blob is None:
            return _error(404, "EntryNotFound", "Entry not found")
        headers = {"X-Repo-Commit": commit}
        if blob.is_lfs:
            return Answer(
                302,
                {
                    **headers,
                    "X-Linked-Size": str(len(blob.data)),
                    "X-Linked-Etag": f'"{blob.sha256}"',
                    "Location": f"{self.cdn}/repos/{blob.sha256}?Expires=1&Policy=p"
                    f"&X-Amz-Signature=secret-{self._signature}",
                },
            )
        headers["ETag"] = f'"{blob.sha1}"'
        if not cached:
            there = f"/api/resolve-cache/models/{repo}/{commit}/{quote(name, safe='')}"
            return Answer(307, {**headers, "Location": there})
        return _ranged(request, blob.data, headers)

    def _tree(self, request: HubRequest, files: Mapping[str, _Blob]) -> Answer:
        entries: list[dict[str, Any]] = []
        for name in files:
            parents = name.split("/")[:-1]
            for depth in range(len(parents)):
                directory = "/".join(parents[: depth + 1])
                entry = {"type": "directory", "oid": "0" * 40, "size": 0, "path": directory}
                if entry not in entries:
                    entries.append(entry)
        for name, blob in files.items():
            entry = {"type": "file", "oid": blob.sha1, "size": len(blob.data), "path": name}
            if blob.is_lfs:
                entry["lfs"] = {
                    "oid": blob.sha256,
                    "size": len(blob.data),
                    "pointerSize": len(blob.pointer),
                }
            entries.append(entry)
        start = int(request.query.get("cursor", ["0"])[0])
        page = entries[start : start + self.page_size]
        answer = _json(page)
        if start + self.page_size < len(entries):
            link = f"{self.endpoint}{request.path}?recursive=true&cursor={start + self.page_size}"
            answer = with_headers(Link=f'<{link}>; rel="next"')(answer)
        return answer

    def _storage(self, request: HubRequest) -> Answer:
        if request.query.get("X-Amz-Signature") != [f"secret-{self._signature}"]:
            return Answer(403, {}, b"<Error><Code>AccessDenied</Code></Error>")
        digest = request.path.rpartition("/")[2]
        for repository in self._repositories.values():
            for files in repository.commits.values():
                for blob in files.values():
                    if blob.is_lfs and blob.sha256 == digest:
                        return _ranged(request, blob.data, {"ETag": f'"cdn-{digest[:8]}"'})
        return Answer(404)


def _ranged(request: HubRequest, data: bytes, headers: Mapping[str, str]) -> Answer:
    if request.headers.get("if-match", headers["ETag"]) != headers["ETag"]:
        return Answer(412, headers)
    if request.range is None:
        return Answer(200, headers, data)
    start, end = request.range[0], min(request.range[1], len(data))
    if start >= len(data):
        return Answer(416, {**headers, "Content-Range": f"bytes */{len(data)}"})
    there = {**headers, "Content-Range": f"bytes {start}-{end - 1}/{len(data)}"}
    return Answer(206, there, data[start:end])


def _siblings(files: Mapping[str, _Blob]) -> list[dict[str, Any]]:
    return [{"rfilename": name, "size": len(blob.data)} for name, blob in files.items()]


def _json(document: object) -> Answer:
    return Answer(200, {"Content-Type": "application/json"}, json.dumps(document).encode())


def _error(code: int, cause: str, message: str) -> Answer:
    return Answer(code, {"X-Error-Code": cause, "X-Error-Message": message})


def _query_text(request: HubRequest) -> str:
    pairs = [f"{name}={quote(value)}" for name, values in request.query.items() for value in values]
    return f"?{'&'.join(pairs)}" if pairs else ""


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = False  # so that `server_close` waits for them

    def __init__(self, hub: StandInHub, side: Side) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub
        self.side = side
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.shutdown()
        self._thread.join()
        with self._lock:
            for connection in self._connections:
                connection.shutdown(socket.SHUT_RDWR)
        self.server_close()

    def opened(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections.add(connection)

    def closed(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections.discard(connection)

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients go away in the middle; what else goes wrong here shows in the test's own outcome."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def _server(self) -> _Server:
        return cast("_Server", self.server)

    def setup(self) -> None:
        super().setup()
        self._server.opened(self.connection)

    def finish(self) -> None:
        self._server.closed(self.connection)
        super().finish()

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = HubRequest(self._server.side, self.command, path, parse_qs(query), headers)
        answer = self._server.hub.answer(request)
        self.send_response_only(answer.status, HTTPStatus(answer.status).phrase)
        for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
            if value is not None:
                self.send_header(name, value)  # and closes after "Connection: close"
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(answer.body[: answer.cut])
        if answer.until is not None:
            answer.until.wait(WAIT)
        if answer.cut is not None:
            self.close_connection = True

    def log_message(self, *args: object) -> None:
        """Not on the terminal."""
