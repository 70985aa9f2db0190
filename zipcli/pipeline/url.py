"""URLs of folders that are not on this machine, such as s3://bucket/photos; nothing connects here."""

import re
from dataclasses import dataclass
from pathlib import Path

from zipcli.errors import ConfigError, shown

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(://|::)")
_HOST = re.compile(r"[^/@:]+(:\d+)?/")


@dataclass(frozen=True)
class Url:
    """A remote folder, as fsspec names it; it holds no secret, so it may be shown and recorded.

    Attributes:
        text: The whole, without a slash at its end.
    """

    text: str

    @property
    def protocol(self) -> str:
        """What stands before ://, in small letters."""
        return self.text.partition("://")[0]

    def __str__(self) -> str:
        """As the user gave it."""
        return self.text


def location(text: str) -> Path | Url:
    """What a user names: a folder of this machine, also as file://, or a remote one.

    Raises:
        ConfigError: It is a URL that names no folder, or one with a password in it. The message does not
            repeat a password or a query.
    """
    if not _URL.match(text):
        return Path(text)
    protocol, _, rest = text.partition("://")
    protocol = protocol.lower()
    if "::" in protocol or not rest:
        raise ConfigError(f"{shown(protocol)}: give one protocol and a folder, such as s3://bucket/photos")
    if protocol in ("file", "local"):
        if not rest.startswith("/"):
            raise ConfigError(f"{protocol}://: give an absolute path, as in {protocol}:///home/me/photos")
        return Path(rest)
    user, at, host = rest.rpartition("@")
    has_port = protocol in ("http", "https") and _HOST.match(rest)
    is_web = protocol in ("http", "https")  # abfs has a container before its @
    if (
        at and (":" in user or (is_web and "/" not in user)) and not has_port
    ):  # a key may hold a slash: the host begins at the last @
        address = shown(f"{protocol}://...@{host.partition('?')[0]}")
        raise ConfigError(f"{address}: no passwords in a URL, please; use what {protocol} reads them from")
    folder, question, _ = rest.partition("?")
    name = shown(f"{protocol}://{folder}")
    if question:
        raise ConfigError(f"{name}?...: a URL with a query names no folder; leave the query out")
    host, *parts = folder.rstrip("/").split("/")
    if not host or not folder.isprintable() or {"", ".", ".."}.intersection(parts):
        raise ConfigError(f"{name}: not a folder; its parts must have names, such as s3://bucket/photos")
    return Url(f"{protocol}://{folder.rstrip('/')}")
