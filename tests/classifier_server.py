"""A classification service that misbehaves as the path of a request asks.

    python tests/classifier_server.py LOG

prints its port, and writes a line of JSON for each request into LOG. It tells the colour of an image: 0
red, 1 green, 2 blue.
"""

import base64
import io
import json
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from PIL import Image, ImageStat

SEEN: Counter[str] = Counter()
LOCK = threading.Lock()


def colour(data: bytes) -> list[float]:
    """Share of each channel."""
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "PNG"
        means = ImageStat.Stat(image.convert("RGB")).mean
    return [mean / sum(means) for mean in means]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        parts = urlsplit(self.path)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with LOCK, Path(sys.argv[1]).open("a") as log:
            SEEN[parts.path] += 1
            log.write(
                json.dumps({"path": self.path, "headers": dict(self.headers), "bytes": len(body)}) + "\n"
            )
        self.tables = [colour(base64.b64decode(image)) for image in json.loads(body)["images"]]
        self.labels: list[Any] = [table.index(max(table)) for table in self.tables]
        options = {key: values[0] for key, values in parse_qs(parts.query).items()}
        getattr(self, parts.path.strip("/"))(**options)

    def reply(self, content: Any, status: int = 200, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def ok(self, **_: str) -> None:
        self.reply({"labels": self.labels})

    def sure(self) -> None:
        self.reply({"labels": self.labels, "probabilities": self.tables})

    def names(self) -> None:
        self.reply({"labels": [("red", "green", "blue")[label] for label in self.labels]})

    def flaky(self, status: str = "500", fails: str = "2", **headers: str) -> None:
        if SEEN[urlsplit(self.path).path] <= int(fails):
            self.reply(b"come\x1b[31m back\nlater", int(status), **headers)
        else:
            self.ok()

    def hangup(self) -> None:
        if SEEN["/hangup"] == 1:
            self.close_connection = True
        else:
            self.ok()

    def cut(self) -> None:
        if SEEN["/cut"] == 1:
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"labels": ')
            self.close_connection = True
        else:
            self.ok()

    def hang(self) -> None:
        time.sleep(30)

    def drip(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        for _ in range(300):
            self.wfile.write(b" ")
            self.wfile.flush()
            time.sleep(0.1)

    def forget(self) -> None:
        SEEN.clear()
        self.ok()

    def refuse(self, status: str) -> None:
        self.reply(b"no", int(status))

    def redirect(self, to: str, status: str) -> None:
        self.reply(b"", int(status), Location=to)

    def flood(self) -> None:
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        for _ in range(80):
            self.wfile.write(b" " * 2**20)
        self.close_connection = True

    def say(self, text: str) -> None:
        self.reply(text.encode())


def main() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda request, client_address: None  # clients hang up, as they should
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()
