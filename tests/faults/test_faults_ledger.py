"""Damage to the ledger and to run.json: no command crashes, and nothing passes for done that is not."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cli.shell import BLUR, originals, picture, pictures, tree
from faults.forked import Forks
from faults.promises import unfinished_files, wrong_report

WORDS = ("purify", "in", "out", *BLUR, "--batch-size", "1", "--json")

Mutation = Callable[[random.Random, bytes], bytes]


def cut(chance: random.Random, data: bytes) -> bytes:
    return data[: chance.randrange(len(data))]


def lose_the_start(chance: random.Random, data: bytes) -> bytes:
    return data[chance.randrange(len(data)) :]


def flip(chance: random.Random, data: bytes) -> bytes:
    damaged = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 8))):
        damaged[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(damaged)


def zeros(chance: random.Random, data: bytes) -> bytes:
    at = chance.randrange(len(data))
    length = chance.randrange(1, 600)
    return data[:at] + bytes(len(data[at : at + length])) + data[at + length :]


def lines_of(data: bytes) -> list[bytes]:
    return data.splitlines(keepends=True)


def repeat_a_line(chance: random.Random, data: bytes) -> bytes:
    lines = lines_of(data)
    lines.insert(chance.randrange(len(lines) + 1), chance.choice(lines))
    return b"".join(lines)


def swap_lines(chance: random.Random, data: bytes) -> bytes:
    lines = lines_of(data)
    a, b = chance.randrange(len(lines)), chance.randrange(len(lines))
    lines[a], lines[b] = lines[b], lines[a]
    return b"".join(lines)


def lose_a_line(chance: random.Random, data: bytes) -> bytes:
    lines = lines_of(data)
    del lines[chance.randrange(len(lines))]
    return b"".join(lines)


def shuffle_lines(chance: random.Random, data: bytes) -> bytes:
    lines = lines_of(data)
    chance.shuffle(lines)
    return b"".join(lines)


GARBAGE = (
    b"garbage",
    b"",
    b"\xff\xfe\x00\xd8",
    b"\0" * 4096,
    b"null",
    b"[]",
    b"{}",
    b"3",
    b"NaN",
    b'"text"',
    b'{"path": 3, "state": "done"}',
    b'{"path": "00.png", "state": "done"}',
    b'{"path": "00.png", "state": 7, "fingerprint": []}',
    b'{"path": "00.png", "state": ["done"], "fingerprint": "x", "out_path": "00.png"}',
    b'{"path": null, "state": null, "fingerprint": null}',
    b'{"path": "00.png", "state": "done", "fingerprint": "x", "out_path": "../in/00.png", "out_bytes": 1}',
    b'{"path": "00.png", "state": "done", "fingerprint": "x", "out_path": "/", "out_bytes": "many"}',
    b'{"path": "\\u0000.png", "state": "done", "fingerprint": "x", "out_path": "\\u0000.png"}',
    b'{"path": "\\ud800.png", "state": "done", "fingerprint": "x", "out_path": "\\ud800.png"}',
    b'{"path_b64": "!", "path": "00.png", "state": "done", "fingerprint": "x"}',
    b'{"path_b64": 3, "path": "00.png", "state": "done", "fingerprint": "x"}',
    b'{"path": "00.png", "state": "failed", "fingerprint": "x", "reason": {"a": 1}, "time": 5}',
    b'{"path": "00.png", "state": "done", "fingerprint": "x", "out_path": "00.png", "out_bytes": -1}',
    b'{"path": "00.png", "state": "done", "fingerprint": "x", "out_path": "00.png", "out_bytes": {}}',
    b'{"path": "' + b"x" * 5000 + b'.png", "state": "started", "fingerprint": "x", "out_path": "y.png"}',
    b'{"path": "' + b"x" * 3_000_000 + b'"}',
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b"9" * 10_000,
    b'{"path": "00.png", "state": "done", "fingerprint": "x", "out_bytes": ' + b"9" * 5000 + b"}",
)
"""Lines that no run would write."""


def insert_garbage(chance: random.Random, data: bytes) -> bytes:
    lines = lines_of(data)
    lines.insert(chance.randrange(len(lines) + 1), chance.choice(GARBAGE) + b"\n")
    return b"".join(lines)


def end_in_garbage(chance: random.Random, data: bytes) -> bytes:
    return data + chance.choice(GARBAGE)


def windows_ends(chance: random.Random, data: bytes) -> bytes:
    return data.replace(b"\n", b"\r\n")


def marked(chance: random.Random, data: bytes) -> bytes:
    return b"\xef\xbb\xbf" + data


def change_a_value(chance: random.Random, data: bytes) -> bytes:
    """Give one field of one line another value, or take it away."""
    lines = lines_of(data)
    at = chance.randrange(len(lines))
    try:
        line = json.loads(lines[at])
    except ValueError:  # a torn line
        return lose_a_line(chance, data)
    name = chance.choice(sorted(line))
    other = json.loads(chance.choice(lines))
    value = chance.choice((None, "", 0, -1, [], {}, True, 1e308, "../x", other.get(name)))
    changed = {**line, name: value} if chance.random() < 0.8 else _without(line, name)
    lines[at] = json.dumps(changed).encode() + b"\n"
    return b"".join(lines)


def _without(values: dict[str, object], name: str) -> dict[str, object]:
    return {key: value for key, value in values.items() if key != name}


OF_THE_LEDGER: tuple[Mutation, ...] = (
    cut,
    lose_the_start,
    flip,
    flip,
    zeros,
    repeat_a_line,
    swap_lines,
    lose_a_line,
    shuffle_lines,
    insert_garbage,
    insert_garbage,
    end_in_garbage,
    windows_ends,
    marked,
    change_a_value,
    change_a_value,
)


def change_the_run(chance: random.Random, data: bytes) -> bytes:
    """Give one field of run.json, or one setting, another value, or take it away."""
    run = json.loads(data)
    inner = run["settings"] if chance.random() < 0.4 else run
    name = chance.choice(sorted(inner))
    values = (None, "", 0, -1, 99, 10**400, [], {}, "x" * 100_000, [1, 2], True, {"a": {}})
    inner[name] = chance.choice(values)
    if chance.random() < 0.2:
        del inner[name]
    return json.dumps(run).encode()


def replace_all(chance: random.Random, data: bytes) -> bytes:
    return chance.choice((b"", *GARBAGE))


def newer(chance: random.Random, data: bytes) -> bytes:
    return json.dumps({**json.loads(data), "format": chance.choice((2, 99, 2**70))}).encode()


OF_THE_RUN: tuple[Mutation, ...] = (
    *(cut, flip, zeros, marked),
    *(change_the_run, change_the_run, replace_all, newer),
)


@pytest.fixture
def histories(tmp_path: Path, forks: Forks) -> tuple[Path, ...]:
    """Folders with `in`, `out` as runs have left it, and `expected`.

    One that was finished; one that was killed half-way; and one in which an input was changed and
    purified twice, one fails, and one output is lost.
    """
    finished, killed, lively = (tmp_path / name for name in ("finished", "killed", "lively"))
    for folder in (finished, killed, lively):
        pictures(folder / "in", 5)
    assert forks.run(*WORDS, cwd=finished).returncode == 0
    seconds = forks.run("purify", "in", "expected", *WORDS[3:], cwd=killed).seconds
    while not 0 < len(tree(killed / "out")) < 5:
        shutil.rmtree(killed / "out", ignore_errors=True)
        forks.run(*WORDS, cwd=killed, kill_after=seconds * 0.8)
        seconds *= 0.99 if len(tree(killed / "out")) == 5 else 1.01
    assert forks.run(*WORDS, cwd=lively).returncode == 0
    picture(lively / "in" / "00.png", seed=50)
    (lively / "in" / "02.png").write_bytes(b"text")
    assert forks.run(*WORDS, cwd=lively).returncode == 3
    picture(lively / "in" / "02.png", seed=2)
    picture(lively / "in" / "00.png", seed=51)
    (lively / "out" / "04.png").unlink()
    for folder in (finished, killed, lively):
        shutil.rmtree(folder / "expected", ignore_errors=True)
        assert forks.run("purify", "in", "expected", *WORDS[3:], cwd=folder).returncode == 0
        (folder / "out").rename(folder / "before")
    return finished, killed, lively


def look(forks: Forks, folder: Path) -> list[str]:
    """What is wrong with the commands that only look."""
    wrong = []
    for command in ("status", "verify"):
        done = forks.run(command, "out", cwd=folder)
        if done.returncode not in (0, 2, 3) or b"Traceback" in done.err:
            wrong.append(f"{command} exits {done.returncode}: {done.err.decode()[-300:]}")
    return wrong


def survive(forks: Forks, folder: Path) -> tuple[list[str], int]:
    """Run every command that reads the ledger; what is wrong, and how `purify` ended."""
    out, at_start = folder / "out", tree(folder / "out")
    wrong = look(forks, folder)
    done = forks.run(*WORDS, cwd=folder)
    wrong += [f"purify: {what} {done.err.decode()[-300:]}" for what in wrong_report(done, out, 5)]
    if done.returncode == 0:
        wrong += wrong_success(forks, folder)
    expected, now = tree(folder / "expected"), tree(out)
    gone = [path for path, data in at_start.items() if now.get(path) not in (data, expected.get(path))]
    return wrong + [f"{path} was there, and is gone" for path in gone], done.returncode


def wrong_success(forks: Forks, folder: Path) -> list[str]:
    """What is not as it must be after exit code 0."""
    out, expected = folder / "out", tree(folder / "expected")
    wrong = [f"{path} is not done" for path, data in expected.items() if tree(out).get(path) != data]
    wrong += [f"{path} was left" for path in unfinished_files(out)]
    verified = forks.run("verify", "out", cwd=folder)
    if verified.returncode not in (0, 3):  # 3: a digest was damaged, which only `verify` looks at
        wrong.append(f"verify then exits {verified.returncode}: {verified.err.decode()[-300:]}")
    return [f"purify exits 0, and {what}" for what in wrong]


def damage(folder: Path, name: str, mutation: Mutation, chance: random.Random) -> None:
    shutil.rmtree(folder / "out", ignore_errors=True)
    shutil.copytree(folder / "before", folder / "out")
    (file,) = (folder / "out" / ".zipcli").glob(name)
    file.write_bytes(mutation(chance, file.read_bytes()))


@pytest.mark.slow
@pytest.mark.fault("F40")
def test_whatever_happens_to_the_ledger_nothing_crashes_and_nothing_passes_for_done(
    histories: tuple[Path, ...], forks: Forks, full: bool, scoreboard: Callable[..., None]
) -> None:
    wrong: list[str] = []
    ends: dict[int, int] = {}
    count, bad = 600 if full else 40, 0
    before = [originals(folder / "in") for folder in histories]
    for n in range(count):
        chance = random.Random(n)
        folder = histories[n % len(histories)]
        name = "run.json" if n % 4 == 3 else "ledger-*.jsonl"
        mutation = chance.choice(OF_THE_RUN if name == "run.json" else OF_THE_LEDGER)
        damage(folder, name, mutation, chance)
        found, code = survive(forks, folder)
        bad += bool(found)
        ends[code] = ends.get(code, 0) + 1
        wrong += [f"mutation {n}, {mutation.__name__} of {name}, {folder.name}: {what}" for what in found]
    wrong += ["an original was changed"] * ([originals(folder / "in") for folder in histories] != before)
    exits = {f"exit_{code}": ends[code] for code in sorted(ends)}
    scoreboard("ledger", wrong, mutations=count, bad=bad, **exits)


@pytest.mark.fault("F40")
def test_a_ledger_that_is_one_of_several_is_refused_or_read_never_believed_to_be_all(
    histories: tuple[Path, ...], forks: Forks
) -> None:
    for folder in histories:
        shutil.copytree(folder / "before", folder / "out")
        state = folder / "out" / ".zipcli"
        (state / "ledger-00001-of-00001.jsonl").rename(state / "ledger-00001-of-00003.jsonl")
        wrong, _ = survive(forks, folder)
        assert not wrong, "\n".join(wrong)
