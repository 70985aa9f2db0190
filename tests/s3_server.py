"""An S3 on loopback: moto in a process of its own, and a proxy before it that goes wrong as a test wants."""

import http.client
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote

import s3fs
from cli.shell import BLUR, invoke
from click.testing import Result

from zipcli.pipeline.remote import Store
from zipcli.pipeline.url import Url

STATE = "out/.zipcli"
"""Where the state folder of `purify` lies in a bucket."""

HOP = {"connection", "transfer-encoding", "content-length", "keep-alive", "date", "server"}


@dataclass
class Fault:
    """What goes wrong with the requests that match; `path` is searched for in path and query, unquoted."""

    method: str
    path: str
    times: int | None = 1
    """How often still; None for ever."""
    status: int | None = None
    """Answer with this, and do nothing."""
    hang_up: bool = False
    """Close the connection, and do nothing."""
    lose_answer: bool = False
    """Do it, and close the connection instead of an answer."""
    belied: int | None = None
    """Do it, and answer with this."""
    last: Callable[[], object] | None = None
    """Do this between the request and its answer."""
    cut: int | None = None
    """Close the connection after so many bytes of content."""
    first: Callable[[], object] | None = None
    """Do this before the request goes on."""
    pause: float = 0.0
    """Seconds to wait before the request goes on."""


@dataclass
class S3:
    """The server; use it as a context manager. `pages` is the size of listing pages, if not 1,000."""

    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    pages: int | None = None

    def __enter__(self) -> Self:
        """Start moto, and the proxy."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        self._moto = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while True:
            assert self._moto.poll() is None, "moto has ended; is moto[server] installed?"
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                break
            time.sleep(0.05)
        self._proxy = _Proxy(self)
        threading.Thread(target=self._proxy.serve_forever, args=(0.02,), daemon=True).start()
        return self

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs to come here."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._proxy.server_address[1]}",
            "AWS_ACCESS_KEY_ID": "a-key",
            "AWS_SECRET_ACCESS_KEY": "a-secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def __exit__(self, *_: object) -> None:
        """End both."""
        self._proxy.shutdown()
        self._proxy.server_close()
        self._moto.send_signal(signal.SIGTERM)
        self._moto.wait(30)

    def asked(self, method: str, path: str) -> int:
        """How often something was asked for."""
        return sum(m == method and re.search(path, p) is not None for m, p in self.requests)

    def fault(self, method: str, path: str) -> Fault:
        """What shall go wrong with a request."""
        for fault in self.faults:
            if fault.method == method and fault.times != 0 and re.search(fault.path, path):
                if fault.times is not None:
                    fault.times -= 1
                return fault
        return Fault(method, path)


class _Proxy(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, s3: S3) -> None:
        self.s3 = s3
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients may hang up; anything else is a mistake in here."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Proxy

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self) -> None:
        s3, path = self.server.s3, unquote(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        s3.requests.append((self.command, path))
        fault = s3.fault(self.command, path)
        time.sleep(fault.pause)
        if fault.first:
            fault.first()
        if fault.hang_up:
            self.close_connection = True
            return
        if fault.status is not None:
            self._send(fault.status, {}, b"", None)
            return
        status, headers, data = self._forward(body)
        if fault.last:
            fault.last()
        if fault.lose_answer:
            self.close_connection = True
            return
        if fault.belied is not None:
            status, headers, data = fault.belied, {}, b""
        self._send(status, headers, data, fault.cut)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _answer  # noqa: N815  # the names http.server looks for

    def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.s3.port, timeout=30)
        path = self.path
        if self.server.s3.pages and "list-type=2" in path:
            path += f"&max-keys={self.server.s3.pages}"
        try:
            connection.request(self.command, path, body, dict(self.headers.items()))
            response = connection.getresponse()
            headers = {k: v for k, v in response.getheaders() if k.lower() not in HOP}
            if self.command == "HEAD":
                headers["Content-Length"] = response.getheader("Content-Length", "0")
            return response.status, headers, response.read()
        finally:
            connection.close()

    def _send(self, status: int, headers: dict[str, str], data: bytes, cut: int | None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[:cut])
        if cut is not None and cut < len(data):
            self.close_connection = True


class Bucket:
    """A bucket, by the paths of its objects."""

    def __init__(self, name: str) -> None:
        self.name, self.fs = name, s3fs.S3FileSystem(use_listings_cache=False)
        self.fs.mkdir(name)
        self.store = Store(Url(f"s3://{name}"))

    def url(self, folder: str) -> str:
        return f"s3://{self.name}/{folder}"

    def fill(self, folder: Path, prefix: str = "in") -> None:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self[f"{prefix}/{path.relative_to(folder).as_posix()}"] = path.read_bytes()

    def __setitem__(self, path: str, data: bytes) -> None:
        self.store.put(path, data)

    def __getitem__(self, path: str) -> bytes:
        return self.store.read(path)

    def under(self, prefix: str) -> dict[str, bytes]:
        """Everything below a prefix, by what follows it."""
        paths = [path.removeprefix(f"{self.name}/") for path in self.fs.find(f"{self.name}/{prefix}")]
        return {path.removeprefix(f"{prefix}/"): self[path] for path in paths}

    def listing(self, prefix: str) -> dict[str, tuple[str, Any]]:
        """What a listing tells of everything below a prefix: ETag and time of the last write."""
        found = self.fs.find(f"{self.name}/{prefix}", detail=True)
        return {
            path.removeprefix(f"{self.name}/{prefix}/"): (info["ETag"].strip('"'), info["LastModified"])
            for path, info in found.items()
        }

    def etags(self, prefix: str) -> dict[str, str]:
        """The ETags of everything below a prefix but the state folder."""
        listed = self.listing(prefix).items()
        return {path: etag for path, (etag, _) in listed if not path.startswith(".zipcli/")}

    def tree(self, prefix: str = "out") -> dict[str, bytes]:
        """The same without the state folder."""
        return {path: data for path, data in self.under(prefix).items() if not path.startswith(".zipcli/")}


def purify(bucket: Bucket, *words: str) -> Result:
    """Purify `in` of a bucket into `out`, inside this process."""
    return invoke("purify", bucket.url("in"), bucket.url("out"), "--json", *BLUR, *words)
