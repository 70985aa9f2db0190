"""A Hugging Face Hub on loopback, as obedient or as broken as a test wants it.

By hand, `python tests/hub_server.py FOLDER` serves the repositories FOLDER/owner/name/...
"""

import contextlib
import hashlib
import json
import mmap
import re
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any, Self
from urllib.parse import quote, unquote, urlsplit

LARGE = 4096
"""Text of this size is kept by git itself; anything larger, or binary, is a large file (LFS)."""

LOGIN_PAGE = b"<!DOCTYPE html>\n<html><title>Sign in to the guest network</title></html>\n"

REPO = r"(?P<repo>[^/]+/[^/]+)"
ROUTES = {
    "info": re.compile(rf"/api/models/{REPO}(/revision/(?P<revision>[^/]+))?"),
    "tree": re.compile(rf"/api/models/{REPO}/tree/(?P<revision>[^/]+)"),
    "resolve": re.compile(rf"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)"),
    "content": re.compile(rf"/(?:cdn|api/resolve-cache/models)/{REPO}/(?P<revision>[^/]+)/(?P<path>.+)"),
}


@dataclass(frozen=True)
class Request:
    """What a client asked for."""

    method: str
    path: str
    host: str
    range: str | None
    authorization: str | None
    user_agent: str


@dataclass
class Fault:
    """What is wrong with the paths that match a pattern; the defaults are right."""

    pattern: str
    methods: tuple[str, ...] = ("HEAD", "GET")
    times: int | None = None
    """Answers that are still to go wrong; None is all of them."""
    hang: bool = False
    """Never answer."""
    hang_up: bool = False
    """Close the connection instead of an answer."""
    status: int | None = None
    """Answer with this and no content."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Send these too; a name in `without` is left out."""
    without: tuple[str, ...] = ()
    page: bool = False
    """Answer 200 with a page to log in, as the proxy of a hotel does."""
    change: Callable[[bytes], bytes] | None = None
    """Send other content: of the same length, a part of it, or something else."""
    cut: int | None = None
    """Close the connection after this many bytes of content."""
    rate: int | None = None
    """Send this many bytes of content per second."""
    ignore_range: bool = False


@dataclass(frozen=True)
class File:
    """A file of a repository."""

    data: bytes | mmap.mmap
    oid: str
    sha256: str
    large: bool

    @property
    def etag(self) -> str:
        """How the Hub names these bytes."""
        return self.sha256 if self.large else self.oid


@dataclass
class Reply:
    """An answer."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | mmap.mmap = b""


class Refusal(Exception):  # noqa: N818  # an answer like any other
    """An answer of the Hub that carries no content."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.reply = Reply(status, {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {}))


def read_file(source: bytes | Path) -> File:
    """Take a file as the Hub would."""
    data: bytes | mmap.mmap
    if isinstance(source, bytes) or source.stat().st_size == 0:
        data = source if isinstance(source, bytes) else b""
    else:
        with source.open("rb") as f:
            data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
    oid = hashlib.sha1(f"blob {len(data)}\0".encode())
    oid.update(data)
    large = len(data) > LARGE or data.find(b"\0") >= 0
    return File(data, oid.hexdigest(), hashlib.sha256(data).hexdigest(), large)


class Hub:
    """The server; use it as a context manager.

    Args:
        repos: Files by path, by repository.
        cdn: The host that large files are redirected to. The Hub's own is 127.0.0.1, so `localhost` is
            another one; None serves every file without a redirect, as a simple mirror does.
        gated: The tokens that may read a repository; others are open.
        tokens: The tokens of all users; any other is refused everywhere.
        tls: A certificate and its key, to speak https.
        log: Where to write a line for each request.
    """

    def __init__(
        self,
        repos: Mapping[str, Mapping[str, bytes | Path]] = {},
        *,
        cdn: str | None = "localhost",
        gated: Mapping[str, set[str]] = {},
        tokens: set[str] = set(),  # noqa: B006  # never changed
        tls: Path | None = None,
        log: IO[str] | None = None,
    ) -> None:
        self.log = log
        self.cdn, self.gated, self.tokens = cdn, dict(gated), set(tokens).union(*gated.values())
        self.commits: dict[str, dict[str, dict[str, File]]] = {}
        self.branches: dict[str, dict[str, str]] = {}
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.closing = threading.Event()
        self._server = _Server(self)
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_port
        self.endpoint = f"http{'s' * (tls is not None)}://127.0.0.1:{self.port}"
        for repo, files in repos.items():
            self.push(repo, files)

    def push(
        self, repo: str, files: Mapping[str, bytes | Path], branch: str = "main", commit: str | None = None
    ) -> str:
        """Make a commit of exactly these files, move a branch there, and return its 40 hex digits."""
        taken = {path: read_file(source) for path, source in sorted(files.items())}
        listing = "".join(f"{path} {file.oid}\n" for path, file in taken.items())
        commit = commit or hashlib.sha1(f"{repo}\n{listing}".encode()).hexdigest()
        self.commits.setdefault(repo, {})[commit] = taken
        self.branches.setdefault(repo, {})[branch] = commit
        return commit

    def commit(self, repo: str, branch: str = "main") -> str:
        """Where a branch is."""
        return self.branches[repo][branch]

    def fail(self, pattern: str = "*", **fault: Any) -> None:
        """Let something go wrong from now on; a later fault is looked at first."""
        self.faults.insert(0, Fault(pattern, **fault))

    def heal(self) -> None:
        """Let nothing go wrong any more."""
        self.faults.clear()

    def asked(self, part: str = "", method: str = "") -> list[Request]:
        """The requests whose path contains `part`."""
        return [r for r in self.requests if part in r.path and method in ("", r.method)]

    def fault(self, method: str, path: str) -> Fault:
        """The fault that an answer has."""
        for fault in self.faults:
            if method in fault.methods and fault.times != 0 and fnmatchcase(path, fault.pattern):
                fault.times = None if fault.times is None else fault.times - 1
                return fault
        return Fault("")

    def route(self, path: str, authorization: str | None) -> Reply:
        """The answer to a path."""
        for name, pattern in ROUTES.items():
            if match := pattern.fullmatch(path):
                values = {key: unquote(value) for key, value in match.groupdict(default="main").items()}
                if not path.startswith("/cdn/"):  # its addresses are signed, and need no token
                    self._admit(values["repo"], authorization)
                reply: Reply = getattr(self, f"_{name}")(**values)
                return reply
        return Reply(404)

    def _admit(self, repo: str, authorization: str | None) -> None:
        token = authorization and authorization.removeprefix("Bearer ")
        if token and token not in self.tokens:
            raise Refusal(401, "", "Invalid credentials in Authorization header")
        if token not in self.gated.get(repo, {token}):
            raise Refusal(403 if token else 401, "GatedRepo", f"Access to model {repo} is restricted")

    def _files(self, repo: str, revision: str) -> tuple[str, dict[str, File]]:
        if repo not in self.commits:
            raise Refusal(404, "RepoNotFound", "Repository not found")
        commit = self.branches[repo].get(revision, revision)
        if commit not in self.commits[repo]:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit, self.commits[repo][commit]

    def _file(self, repo: str, revision: str, path: str) -> tuple[str, File]:
        commit, files = self._files(repo, revision)
        if path not in files:
            refusal = Refusal(404, "EntryNotFound", "Entry not found")
            refusal.reply.headers["X-Repo-Commit"] = commit
            raise refusal
        return commit, files[path]

    def _info(self, repo: str, revision: str) -> Reply:
        commit, files = self._files(repo, revision)
        info = {"id": repo, "modelId": repo, "sha": commit, "private": False, "tags": []}
        return _json({**info, "gated": repo in self.gated, "siblings": [{"rfilename": p} for p in files]})

    def _tree(self, repo: str, revision: str) -> Reply:
        def entry(path: str, file: File) -> dict[str, object]:
            row: dict[str, object] = {"type": "file", "path": path, "oid": file.oid, "size": len(file.data)}
            lfs = {"oid": file.sha256, "size": len(file.data), "pointerSize": 134}
            return row | ({"lfs": lfs} if file.large else {})

        return _json([entry(path, file) for path, file in self._files(repo, revision)[1].items()])

    def _resolve(self, repo: str, revision: str, path: str) -> Reply:
        commit, file = self._file(repo, revision, path)
        headers = {"X-Repo-Commit": commit, "X-Linked-Etag": f'"{file.etag}"'}
        headers["X-Linked-Size"] = str(len(file.data))
        if self.cdn is None:
            return Reply(200, headers | {"ETag": f'"{file.etag}"'}, file.data)
        where = f"{repo}/{commit}/{quote(path)}"
        if file.large:
            location = f"{self.endpoint.replace('127.0.0.1', self.cdn)}/cdn/{where}"
            return Reply(302, headers | {"ETag": '"of the redirect"', "Location": location})
        return Reply(307, headers | {"Location": f"/api/resolve-cache/models/{where}"})

    def _content(self, repo: str, revision: str, path: str) -> Reply:
        commit, file = self._file(repo, revision, path)
        if file.large and self.cdn != "127.0.0.1":  # another host has names of its own
            return Reply(200, {"ETag": f'"there it is {file.oid}"'}, file.data)
        return Reply(200, {"ETag": f'"{file.etag}"', "X-Repo-Commit": commit}, file.data)

    def __enter__(self) -> Self:
        """Serve from a thread."""
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Hang up on everybody."""
        self.closing.set()
        self._server.shutdown()
        for connection in list(self._server.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # so that server_close waits for them

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients may hang up; anything else is a mistake in here."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.connections.add(self.connection)

    def finish(self) -> None:
        self.server.connections.discard(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self) -> None:
        hub, path = self.server.hub, urlsplit(self.path).path  # whoever takes us for a proxy names a host
        values = (self.headers.get(name) for name in ("Host", "Range", "Authorization", "User-Agent"))
        host, range_, authorization, agent = values
        hub.requests.append(Request(self.command, path, host or "", range_, authorization, agent or ""))
        if hub.log is not None:
            hub.log.write(f"{self.command} {path} {range_ or ''}\n")
        fault = hub.fault(self.command, path)
        if fault.hang:
            hub.closing.wait()
        if fault.hang or fault.hang_up:
            self.close_connection = True
            return
        reply = self._reply(fault, path, authorization)
        if reply.status == 200 and fault.change is not None:
            reply.body = fault.change(reply.body[:])
        if reply.status == 200 and range_ is not None and not fault.ignore_range:
            _cut_out(reply, range_)
        reply.headers |= {"Content-Length": str(len(reply.body)), **fault.headers}
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            if name not in fault.without:
                self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self._send(reply.body, fault)

    do_HEAD = do_GET = do_POST = do_CONNECT = _answer  # noqa: N815  # the names http.server looks for

    def _reply(self, fault: Fault, path: str, authorization: str | None) -> Reply:
        if fault.page:
            return Reply(200, {"Content-Type": "text/html; charset=utf-8"}, LOGIN_PAGE)
        if fault.status is not None:
            return Reply(fault.status)
        try:
            return self.server.hub.route(path, authorization)
        except Refusal as refusal:
            return refusal.reply

    def _send(self, body: bytes | mmap.mmap, fault: Fault) -> None:
        end = len(body) if fault.cut is None else min(fault.cut, len(body))
        step = 1 << 20 if fault.rate is None else max(1, fault.rate // 10)
        for start in range(0, end, step):
            self.wfile.write(body[start : min(start + step, end)])
            if fault.rate is not None and self.server.hub.closing.wait(step / fault.rate):
                break
        if end < len(body) or self.server.hub.closing.is_set():
            self.close_connection = True


def _cut_out(reply: Reply, range_: str) -> None:
    """Turn an answer into a part of it."""
    size = len(reply.body)
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", range_)
    start = int(match[1]) if match else size
    if start >= size:
        reply.status, reply.body = 416, b""
        reply.headers["Content-Range"] = f"bytes */{size}"
        return
    end = min(int(match[2]), size - 1) if match and match[2] else size - 1
    reply.status, reply.body = 206, reply.body[start : end + 1]
    reply.headers["Content-Range"] = f"bytes {start}-{end}/{size}"


def _json(value: object) -> Reply:
    return Reply(200, {"Content-Type": "application/json"}, json.dumps(value).encode())


def read_folder(folder: Path) -> dict[str, dict[str, bytes | Path]]:
    """The repositories FOLDER/owner/name with their files."""
    repos: dict[str, dict[str, bytes | Path]] = {}
    for file in sorted(folder.glob("*/*/**/*")):
        if file.is_file():
            owner, name, *path = file.relative_to(folder).parts
            repos.setdefault(f"{owner}/{name}", {})["/".join(path)] = file
    return repos


def main(folder: str) -> None:
    """Serve a folder until Ctrl-C, saying who asks for what."""
    with Hub(read_folder(Path(folder)), log=sys.stderr) as hub, contextlib.suppress(KeyboardInterrupt):
        for repo in hub.commits:
            sys.stdout.write(f"# {repo} @ {hub.commit(repo)}\n")
        sys.stdout.write(f"export HF_ENDPOINT={hub.endpoint}\n")
        sys.stdout.flush()
        hub.closing.wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
