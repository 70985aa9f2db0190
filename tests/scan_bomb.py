"""A small file that takes for ever: a progressive JPEG that says one thing thousands of times."""

import io

from PIL import Image


def scan_bomb(side: int = 2000, scans: int = 20_000) -> bytes:
    """A grey JPEG of `side` pixels a side; each scan makes the decoder walk through all of its blocks."""
    buffer = io.BytesIO()
    Image.new("L", (side, side), 77).save(buffer, "JPEG", progressive=True)
    head, *parts, last = _scans(buffer.getvalue())
    return head + b"".join(parts) + last * scans + b"\xff\xd9"


def _scans(data: bytes) -> list[bytes]:
    """What comes before the first scan, and each scan with the tables before it."""
    pieces, start, position = [], 0, 2
    while data[position : position + 2] != b"\xff\xd9":
        is_scan = data[position + 1] == 0xDA
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if is_scan:
            while data[position] != 0xFF or data[position + 1] == 0:
                position += 1
            pieces.append(data[start:position])
            start = position
    first = pieces[0].index(b"\xff\xda")
    return [pieces[0][:first], pieces[0][first:], *pieces[1:]]
