"""A classification program that misbehaves as its first argument asks.

It tells the colour of an image: 0 red, 1 green, 2 blue. Without PIL it starts in a moment: it reads
the small PNG files of zipcli itself.
"""

import json
import os
import struct
import sys
import zlib
from collections.abc import Callable, Iterator


def colour(path: str) -> list[float]:
    """Share of each channel in the first pixel, which no PNG filter changes."""
    with open(path, "rb") as f:  # noqa: PTH123
        data = f.read()
    assert data.startswith(b"\x89PNG")
    body, at = b"", 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        if data[at + 4 : at + 8] == b"IDAT":
            body += data[at + 8 : at + 8 + length]
        at += 12 + length
    red, green, blue = zlib.decompress(body)[1:4]
    return [red / (total := red + green + blue), green / total, blue / total]


def label(path: str) -> int:
    table = colour(path)
    return table.index(max(table))


def asked() -> Iterator[dict]:
    for line in sys.stdin:
        question = json.loads(line)
        yield {"id": question["id"], "label": label(question["path"]), "path": question["path"]}


def say(*values: object) -> None:
    for value in values:
        print(json.dumps(value), flush=True)  # noqa: T201


def answers(change: Callable[[dict], list]) -> None:
    for answer in asked():
        say(*change(answer))


def in_threes_backwards(answer: dict, held: list = []) -> list:  # noqa: B006  # kept on purpose
    held.append(answer)
    if len(held) < 3:
        return []
    backwards, held[:] = held[::-1], []
    return backwards


def crash(answer: dict) -> list:
    if answer["id"] == 2:
        sys.stderr.write("no \x1b[31mmemory\nleft\n")
        sys.exit(7)
    return [answer]


def kill(answer: dict) -> list:
    os.kill(os.getpid(), 9)
    return []


NAMES = ("red", "green", "blue")
TALKS: dict[str, Callable[[dict], list]] = {
    "plain": lambda a: [a],
    "backwards": in_threes_backwards,
    "names": lambda a: [{**a, "label": NAMES[a["label"]]}],
    "sure": lambda a: [{**a, "probabilities": colour(a["path"])}],
    "partly-sure": lambda a: [{**a, "probabilities": colour(a["path"]) if a["id"] else None}],
    "crash": crash,
    "kill": kill,
    "silent": lambda a: [],
    "twice": lambda a: [a, a],
    "stranger": lambda a: [{**a, "id": a["id"] + 1000}],
    "text-id": lambda a: [{**a, "id": "0"}],
    "no-label": lambda a: [{"id": a["id"]}],
    "number": lambda a: [3],
    "deep": lambda a: print("[" * 100_000, flush=True) or [],  # noqa: T201
    "noise": lambda a: print("loading \x1b[31m model", flush=True) or [],  # noqa: T201
    "unknown": lambda a: [{**a, "label": "violet\n"}],
    "negative": lambda a: [{**a, "label": -1}],
    "true": lambda a: [{**a, "label": True}],
    "endless": lambda a: print("x" * 17_000_000, flush=True) or [],  # noqa: T201
}


def main(mode: str, *paths: str) -> None:
    if mode in TALKS:
        answers(TALKS[mode])
    elif mode == "early":
        say({"id": 0, "label": 0})
    elif mode == "few":
        say(*map(label, paths[:-1]))
    elif mode == "many":
        say(*map(label, paths), 0)
    elif mode == "fail":
        say(*map(label, paths))
        sys.exit("out of \x1b[31mluck")
    elif mode == "blank":
        say(*map(label, paths[:-1]))
        print()  # noqa: T201
    elif mode == "bytes":
        sys.stdout.buffer.write(b"\xff\xfe\n" * len(paths))
    elif mode == "words":
        sys.stdout.write("\n".join(NAMES[label(path)] for path in paths))  # no line end after the last
    elif mode == "braces":
        assert paths[-1] == "after", paths
        say(*map(label, paths[:-1]))
    else:
        say(*map(label, (mode, *paths)))


if __name__ == "__main__":
    main(*sys.argv[1:])
