"""Tar shards, as WebDataset has them: `zipcli purify shards clean --tar-shards`."""

import gzip
import hashlib
import io
import itertools
import json
import os
import resource
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli.shell import (
    BLUR,
    ENVIRONMENT,
    PATIENCE,
    PRIOR,
    everything,
    images,
    invoke,
    json_lines,
    noise,
    originals,
    picture,
    pixels,
    run,
    start,
    tree,
)
from faults.schema import check_line

from zipcli.config import Shard
from zipcli.pipeline import tar_shards
from zipcli.pipeline.tar_shards import sample_of

SHARDS = ("--tar-shards", *BLUR)
Member = tuple[str | tarfile.TarInfo, bytes]


def png(seed: int = 0, size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = io.BytesIO()
    noise(size, seed=seed).save(buffer, "PNG")
    return buffer.getvalue()


def jpg(seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    noise((16, 16), seed=seed).save(buffer, "JPEG")
    return buffer.getvalue()


def tar(path: Path, *members: Member, format: int = tarfile.GNU_FORMAT) -> Path:
    """Write a tar file with these members, whatever their names; by gzip where the name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mode: Any = "w" if path.suffix == ".tar" else "w:gz"
    with tarfile.open(path, mode, format=format, encoding="utf-8", errors="surrogateescape") as file:
        for name, data in members:
            member = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            if member.isreg():
                member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    return path


def samples(count: int, first: int = 0) -> list[Member]:
    """Members of samples: a picture, its class, and what somebody says of it."""
    found: list[Member] = []
    for n in range(first, first + count):
        found += [(f"{n:04}.png", png(n)), (f"{n:04}.cls", str(n % 10).encode()), (f"{n:04}.json", b"{}")]
    return found


def members(path: Path) -> dict[str, bytes]:
    """The files of a tar, in their order."""
    with tarfile.open(path, encoding="utf-8", errors="surrogateescape") as file:
        found = {}
        for member in file:
            content = file.extractfile(member)
            if content is not None:
                found[member.name] = content.read()
        return found


def tars(stdout: str | bytes) -> dict[str, dict[str, Any]]:
    """The lines about tars, by path; every line must be as the schema says, and the counts add up."""
    lines = json_lines(stdout)
    for line in lines:
        check_line(line)
    end, found = lines[-1], images(stdout)
    states = [line["state"] for line in found.values()]
    assert end["found"] == len(found) == end["done"] + end["passed"] + end["skipped"] + end["failed"]
    assert all(end[state] == states.count(state) for state in ("done", "passed", "skipped", "failed"))
    return {line["path"]: line for line in lines if line["type"] == "tar"}


def purify(*words: str, code: int = 0) -> str:
    """Purify `in` into `out` in this process; returns standard output."""
    result = invoke("purify", "in", "out", "--json", *SHARDS, *words)
    assert result.exit_code == code, result.stderr
    return result.stdout


def test_images_are_those_of_a_folder_run_and_everything_else_is_copied(here: Path) -> None:
    written = [*samples(5), ("0009.jpg", jpg()), ("0009.cls", b"3"), ("notes", b"BM and P6"), ("e.txt", b"")]
    tar(here / "in" / "a" / "train-0000.tar", *written)
    for name, data in written:
        assert isinstance(name, str)
        (here / "folder").mkdir(exist_ok=True)
        (here / "folder" / name).write_bytes(data)
    before = originals(here / "in")
    lines = tars(purify())
    assert invoke("purify", "folder", "expected", *BLUR).exit_code == 0
    assert list(tree(here / "out")) == ["a/train-0000.tar"]
    clean, expected = members(here / "out" / "a" / "train-0000.tar"), tree(here / "expected")
    assert list(clean) == [str(name).replace(".jpg", ".png") for name, _ in written]
    unchanged = {str(name): data for name, data in written if not str(name).endswith((".png", ".jpg"))}
    assert clean == {**unchanged, **expected}
    assert lines["a/train-0000.tar"]["images"] == 6
    assert originals(here / "in") == before


def test_the_prior_gives_the_bytes_of_a_folder_run(uninterrupted: Path, here: Path) -> None:
    inputs = list(tree(uninterrupted / "in").items())
    tar(here / "in" / "a.tar", *inputs[:4])
    tar(here / "in" / "b.tar", *inputs[4:])
    assert invoke("purify", "in", "out", "--tar-shards", *PRIOR).exit_code == 0
    found = members(here / "out" / "a.tar") | members(here / "out" / "b.tar")
    assert found == tree(uninterrupted / "out")


READER = """
import hashlib, json, sys, webdataset
for sample in webdataset.WebDataset(sys.argv[1], shardshuffle=False).decode("rgb8"):
    digests = {n: hashlib.sha256(v.tobytes()).hexdigest() for n, v in sample.items() if n[-3:] == "png"}
    print(json.dumps({"key": sample["__key__"], "label": sample.get("cls"), "pixels": digests}))
"""
"""A process of its own, since webdataset leaves its files open."""


def test_webdataset_reads_the_same_keys_and_labels_with_purified_images(here: Path) -> None:
    def read(pattern: str) -> list[dict[str, Any]]:
        words = [sys.executable, "-c", READER, pattern]
        done = subprocess.run(words, env={**ENVIRONMENT, "WDS_SECURE": "1"}, capture_output=True, check=True)
        return json_lines(done.stdout)

    two = [("v.1.left.png", png(1)), ("v.1.right.png", png(2))]
    bad = [("a/0100.png", b"text"), ("a/0100.cls", b"7")]
    for folder, more in (("in", bad), ("good", [])):
        tar(here / folder / "s-00.tar", *samples(6), *more, *two)
        tar(here / folder / "s-01.tar", *samples(6, 6), ("last.jpg", jpg()), ("last.cls", b"4"))
    purify(code=3)
    given, clean = read("good/s-{00..01}.tar"), read("out/s-{00..01}.tar")
    assert len(clean) == 14
    assert [(s["key"], s["label"]) for s in clean] == [(s["key"], s["label"]) for s in given]
    for n in range(12):
        picture(here / "folder" / f"{n:04}.png", seed=n)
    for n, name in ((1, "v.1.left.png"), (2, "v.1.right.png")):
        picture(here / "folder" / name, seed=n)
    (here / "folder" / "last.jpg").write_bytes(jpg())
    assert invoke("purify", "folder", "expected", *BLUR).exit_code == 0
    found = {f"{s['key']}.{name}": digest for s in clean for name, digest in s["pixels"].items()}
    expected = {
        path.name: hashlib.sha256(pixels(path).astype(np.uint8).tobytes()).hexdigest()
        for path in (here / "expected").glob("*.png")
    }
    assert found == expected


def test_the_same_input_gives_the_same_bytes_whatever_the_run(here: Path) -> None:
    for n in range(3):
        tar(here / "in" / f"{n}.tar", *samples(7, 10 * n))
    tar(here / "in" / "z.tgz", *samples(7, 90))
    purify()
    first = tree(here / "out")
    (here / "out").rename(here / "before")
    time.sleep(1.1)  # gzip and tar know seconds
    purify("--batch-size", "1", "--jobs", "1")
    assert tree(here / "out") == first
    assert first["z.tgz"][:2] == b"\x1f\x8b"


def test_owners_go_and_times_stay(here: Path) -> None:
    member, label = tarfile.TarInfo("a.png"), tarfile.TarInfo("a.cls")
    member.mtime, member.uid, member.uname = 1_000_000_000, 1234, "somebody"
    label.mtime, label.mode, label.pax_headers = 1e300, 0o777, {"SCHILY.xattr.user.x": "y"}
    folder = tarfile.TarInfo("folder")
    folder.type = tarfile.DIRTYPE
    tar(here / "in" / "a.tar", (member, png()), (label, b"1"), (folder, b""), format=tarfile.PAX_FORMAT)
    purify()
    with tarfile.open(here / "out" / "a.tar") as file:
        written = [(m.name, m.mtime, m.uid, m.uname, m.mode, m.pax_headers) for m in file]
    assert written == [
        ("a.png", 1_000_000_000, 0, "", 0o644, {}),
        ("a.cls", 0, 0, "", 0o644, {}),
        ("folder", 0, 0, "", 0o755, {}),
    ]


def test_a_bad_image_takes_its_sample_along_and_nothing_else(here: Path) -> None:
    bad = [("x.left.png", png(1)), ("x.json", b"{}"), ("x.right.png", b"text"), ("x.cls", b"1")]
    tar(here / "in" / "a.tar", *samples(1), *bad, *samples(2, 5))
    out = purify(code=3)
    lines, clean = images(out), members(here / "out" / "a.tar")
    assert list(clean) == [name for name, _ in (*samples(1), *samples(2, 5))]
    assert lines["a.tar/x.right.png"]["reason"] == "unidentified"
    assert lines["a.tar/x.left.png"]["reason"] == "sample_incomplete"
    assert lines["a.tar/0000.png"] | {"tar": "a.tar", "out_path": "a.tar/0000.png"} == lines["a.tar/0000.png"]
    assert tars(out)["a.tar"] | {"state": "done", "images": 3, "left_out": 1} == tars(out)["a.tar"]
    assert invoke("purify", "in", "tolerant", *SHARDS, "--fail-on", "50%").exit_code == 0


def test_a_tar_with_failures_is_done_and_retry_failed_takes_it_again(here: Path) -> None:
    tar(here / "in" / "a.tar", *samples(3), ("x.png", b"text"))
    tar(here / "in" / "b.tar", *samples(2))
    purify(code=3)
    again = purify(code=3)  # not every image is done
    states = {path: line["state"] for path, line in tars(again).items()}
    assert states == {"a.tar": "skipped", "b.tar": "skipped"}
    assert images(again)["a.tar/x.png"]["state"] == "failed"
    before = tree(here / "out")
    assert list(tars(purify("--retry-failed", code=3))) == ["a.tar"]
    assert tree(here / "out") == before
    tar(here / "in" / "a.tar", *samples(3), ("x.png", png(9)))
    assert list(tars(purify("--retry-failed"))) == ["a.tar"]
    assert list(members(here / "out" / "a.tar"))[-1] == "x.png"
    assert "nothing has failed" in invoke("purify", "in", "out", *SHARDS, "--retry-failed").stderr
    assert set(tars(purify())) == {"a.tar", "b.tar"}


def test_a_tar_that_changed_is_made_anew_and_its_old_images_are_forgotten(here: Path) -> None:
    tar(here / "in" / "a.tar", *samples(3))
    tar(here / "in" / "b.tar", *samples(2))
    purify()
    os.utime(here / "in" / "b.tar", (0, 0))
    tar(here / "in" / "a.tar", *samples(1), *samples(1, 7))
    lines = tars(purify())
    assert {path: line["state"] for path, line in lines.items()} == {"a.tar": "done", "b.tar": "skipped"}
    facts = json.loads(invoke("status", "out", "--json").stdout)
    assert (facts["counts"]["done"], facts["tars"]["done"]) == (4, 2)
    assert facts["reasons"] == {"vanished": 2}
    assert invoke("verify", "out").exit_code == 0


CUTS: dict[str, Callable[[bytes], bytes]] = {
    "in a header": lambda data: data[:700],
    "in an image": lambda data: data[: 512 * 5 + 10],
    "between two members": lambda data: data[: 512 * 4],
    "before the mark of the end": lambda data: data.rstrip(b"\0") + bytes(-len(data.rstrip(b"\0")) % 512),
    "a damaged header": lambda data: data[:1024] + b"\xff" * 512 + data[1536:],
    "a second tar behind the end": lambda data: data + data,
    "text": lambda data: b"no tar at all\n" * 100,
    "nothing": lambda data: b"",
}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_of_a_tar_that_is_not_whole_there_is_no_output(here: Path, cut: str, name: str) -> None:
    whole = tar(here / "whole.tar", *samples(3)).read_bytes()
    assert len(png()) <= 512 < 700  # so each member takes two blocks
    (here / "in").mkdir()
    data = CUTS[cut](whole)
    (here / "in" / name).write_bytes(gzip.compress(data) if name.endswith("gz") and data else data)
    tar(here / "in" / "z.tar", *samples(2))
    out = purify(code=3)
    assert list(tree(here / "out")) == ["z.tar"]
    lines = tars(out)
    assert lines[name]["state"] == "failed"
    assert lines[name]["reason"] in ("truncated", "corrupt", "empty")
    found = [line for path, line in images(out).items() if path.startswith(name)]
    assert {line["state"] for line in found} <= {"failed"}
    verified = invoke("verify", "out")
    assert verified.exit_code == 0, verified.output
    (here / "in" / name).write_bytes(gzip.compress(whole) if name.endswith("gz") else whole)
    assert tars(purify())[name]["state"] == "done"


@pytest.mark.parametrize("where", [-6, 40])
def test_gzip_that_does_not_fit_its_sum_is_refused(here: Path, where: int) -> None:
    data = bytearray(tar(here / "in" / "a.tgz", *samples(3)).read_bytes())
    data[where] ^= 1
    (here / "in" / "a.tgz").write_bytes(data)
    assert tars(purify(code=3))["a.tgz"]["state"] == "failed"
    assert tree(here / "out") == {}


def test_a_tar_that_is_broken_now_takes_its_old_output_along(here: Path) -> None:
    file = tar(here / "in" / "a.tar", *samples(3))
    purify()
    file.write_bytes(file.read_bytes()[:2000])
    out = purify(code=3)
    assert tree(here / "out") == {}
    assert {line["state"] for line in images(out).values()} == {"failed"}
    facts = json.loads(invoke("status", "out", "--json").stdout)
    assert facts["counts"]["done"] == 0


def special(name: str, kind: bytes, target: str = "") -> Member:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member, b""


@pytest.mark.fault("F44", "F52")
def test_links_devices_and_names_that_lead_away_are_never_written(here: Path) -> None:
    tar(
        here / "in" / "a.tar",
        *samples(1),
        special("link.png", tarfile.SYMTYPE, "/etc/passwd"),
        ("link.cls", b"1"),
        special("hard.png", tarfile.LNKTYPE, "0000.png"),
        special("fifo.txt", tarfile.FIFOTYPE),
        ("/abs.png", png(1)),
        ("../up.png", png(2)),
        ("a/../../up.txt", b"x"),
        (".hidden.png", png(3)),
        special("../folder", tarfile.DIRTYPE),
        special(".", tarfile.DIRTYPE),
    )
    out = purify(code=3)
    assert list(members(here / "out" / "a.tar")) == ["0000.png", "0000.cls", "0000.json"]
    lines = images(out)
    assert {path for path, line in lines.items() if line["state"] == "done"} == {"a.tar/0000.png"}
    assert tars(out)["a.tar"]["left_out"] == 7
    assert set(everything(here)) == {"in/a.tar", *(f"out/{path}" for path in everything(here / "out"))}


@pytest.mark.parametrize(
    "name", [b"caf\xe9.png", b"a\nb.png", b"-x.png", b"x" * 251 + b".png", b"s/" * 60 + b"y.png"]
)
def test_names_keep_their_bytes(here: Path, name: bytes) -> None:
    tar(here / "in" / os.fsdecode(b"s\xff.tar"), (os.fsdecode(name), png()))
    lines = tars(purify())
    assert next(iter(lines.values()))["path_b64"]
    assert [os.fsencode(n) for n in members(here / "out" / os.fsdecode(b"s\xff.tar"))] == [name]
    assert invoke("verify", "out").exit_code == 0
    assert {line["state"] for line in tars(purify()).values()} == {"skipped"}


def test_a_picture_without_the_name_of_one_is_not_copied_through(here: Path) -> None:
    tar(
        here / "in" / "a.tar",
        *samples(1),
        ("x.bin", jpg()),
        ("x.cls", b"1"),
        ("y.heic", b"\0\0\0\x18ftypheic"),
    )
    lines = images(purify(code=3))
    assert list(members(here / "out" / "a.tar")) == ["0000.png", "0000.cls", "0000.json"]
    assert lines["a.tar/x.bin"]["reason"] == lines["a.tar/y.heic"]["reason"] == "extension_mismatch"


@pytest.mark.parametrize(
    "name", ["x.png.gz", "x.TGA", "x.ico", "x.pcx", "x.jpg.bz2", "x.mask.sgi", "x.dds", "x.eps"]
)
def test_what_readers_decode_by_its_name_is_not_copied_through(here: Path, name: str) -> None:
    """WebDataset unpacks .gz by itself and takes every format of Pillow for a picture."""
    tar(here / "in" / "a.tar", *samples(1), (name, gzip.compress(png(7))), ("x.cls", b"1"))
    lines = images(purify(code=3))
    assert list(members(here / "out" / "a.tar")) == ["0000.png", "0000.cls", "0000.json"]
    assert lines[f"a.tar/{name}"]["reason"] == "format_not_allowed"


def test_a_dry_run_of_a_retry_counts_the_tars_that_are_made_anew(here: Path) -> None:
    tar(here / "in" / "a.tar", *samples(1), ("x.png", b"text"))
    purify(code=3)
    assert json_lines(purify("--retry-failed", "--dry-run"))[-1]["purify"] == 1


@pytest.mark.parametrize(
    "pair", [("a.png", "a.jpg"), ("a.PNG", "a.png"), ("a.png", "./a.png"), ("a.cls", "a.cls")]
)
def test_two_members_that_webdataset_cannot_tell_apart_leave_their_sample_out(
    here: Path, pair: tuple[str, str]
) -> None:
    written: list[Member] = [
        (name, png(n) if name[-1].lower() == "g" else b"1") for n, name in enumerate(pair)
    ]
    tar(here / "in" / "a.tar", *samples(1), *written)
    out = purify(code=3)
    assert list(members(here / "out" / "a.tar")) == ["0000.png", "0000.cls", "0000.json"]
    assert "collision" in {line.get("reason") for line in images(out).values()}


def test_a_link_that_is_followed_by_a_file_of_its_name_is_still_a_failure(here: Path) -> None:
    tar(here / "in" / "a.tar", special("x.png", tarfile.SYMTYPE, "y"), ("x.png", png()), *samples(1))
    assert images(purify(code=3))["a.tar/x.png"]["reason"] == "symlink"
    assert list(members(here / "out" / "a.tar")) == ["0000.png", "0000.cls", "0000.json"]


def test_hidden_images_are_left_out_and_hidden_folders_are_not(here: Path) -> None:
    tar(
        here / "in" / "a.tar", ("._a.png", b"x"), ("b/.c.png", png()), (".d/1.png", png()), (".d/1.cls", b"1")
    )
    assert list(images(purify())) == ["a.tar/.d/1.png"]
    assert list(members(here / "out" / "a.tar")) == [".d/1.png", ".d/1.cls"]


def test_a_list_of_tars_is_taken_and_no_other(here: Path) -> None:
    for name in ("a", "b", "sub/c"):
        tar(here / "in" / f"{name}.tar", *samples(1))
    (here / "list").write_text("sub/c.tar\na.tar\n")
    words = ("--files-from", "list", "--base", "in", "out")
    assert invoke("purify", *words, *SHARDS).exit_code == 0
    assert sorted(tree(here / "out")) == ["a.tar", "sub/c.tar"]


def test_a_sample_in_pieces_is_left_out_as_a_whole_and_said_to_be_in_pieces(here: Path) -> None:
    pictures = [(f"{n}.png", png(n) if n != 1 else b"text") for n in range(3)]
    labels = [(f"{n}.cls", b"1") for n in range(3)]
    tar(here / "in" / "a.tar", *pictures, *labels)
    result = invoke("purify", "in", "out", *SHARDS)
    assert result.exit_code == 3
    assert list(members(here / "out" / "a.tar")) == ["0.png", "2.png", "0.cls", "2.cls"]
    assert "Note: a.tar: 2 samples are in pieces" in result.stderr


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (2 * 2**30, 2 * 2**30))


def bomb(kind: str) -> bytes:
    """A small tar that asks for much memory or disk."""
    member, zeros = tarfile.TarInfo("a.bin"), bytes(10240)
    if kind == "a name without end":
        member.type, member.size = tarfile.GNUTYPE_LONGNAME, 2**31
    elif kind == "sparse":
        member.type = tarfile.GNUTYPE_SPARSE
    elif kind == "sparse in pax":
        keys = {"major": "1", "minor": "0", "realsize": str(2**40)}
        member.pax_headers = {f"GNU.sparse.{key}": value for key, value in keys.items()}
        member.size = 512
        return member.tobuf(tarfile.PAX_FORMAT) + b"9" * 512 * 64 + zeros
    else:
        member.size = 2**27
        return gzip.compress(member.tobuf(tarfile.GNU_FORMAT) + bytes(member.size) + zeros, compresslevel=1)
    return member.tobuf(tarfile.GNU_FORMAT) + zeros


def test_a_bomb_costs_one_tar(here: Path) -> None:
    kinds = ["a name without end", "sparse", "sparse in pax", "zeros"]
    (here / "in").mkdir()
    for kind in kinds:
        (here / "in" / f"{kind}.tar").write_bytes(bomb(kind))
    tar(here / "in" / "z.tar", *samples(2))

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (2 * 2**30, 2 * 2**30))

    done = run("purify", "in", "out", "--json", *SHARDS, cwd=here, preexec_fn=limited)
    assert done.returncode == 3, done.stderr
    lines = tars(done.stdout)
    assert {path for path, line in lines.items() if line["state"] == "failed"} == {f"{k}.tar" for k in kinds}
    assert (lines["zeros.tar"]["reason"], lines["z.tar"]["state"]) == ("bomb_bytes", "done")
    assert list(tree(here / "out")) == ["z.tar"]


def test_a_member_that_is_too_large_takes_its_sample_along(here: Path) -> None:
    tar(here / "in" / "a.tar", *samples(2), ("0000.bin", bytes(501)))
    assert images(purify("--max-bytes", "500", code=3))["a.tar/0000.bin"]["reason"] == "bomb_bytes"
    assert list(members(here / "out" / "a.tar")) == ["0001.png", "0001.cls", "0001.json"]


def test_a_detector_lets_images_pass_and_their_samples_stay_whole(here: Path) -> None:
    tar(here / "in" / "a.tar", *samples(4))
    words = ("--detector", "frequency", "--threshold", "1000")
    lines = images(purify(*words))
    assert {line["state"] for line in lines.values()} == {"passed"}
    assert list(members(here / "out" / "a.tar")) == [name for name, _ in samples(4)]


def test_shards_of_tars_make_the_tree_of_one_run_and_merge(here: Path) -> None:
    for n in range(8):
        tar(here / "in" / f"{n}.tar", *samples(3, 5 * n))
    assert invoke("purify", "in", "whole", *SHARDS).exit_code == 0
    taken = [set(tars(purify("--shard", f"{index}/2"))) for index in (2, 1)]
    assert taken[0] | taken[1] == {f"{n}.tar" for n in range(8)}
    assert taken[0] == {f"{n}.tar" for n in range(8) if Shard(index=2, count=2).takes(f"{n}.tar")}
    assert tree(here / "out") == tree(here / "whole")
    assert invoke("merge", "out").exit_code == 0
    assert {line["state"] for line in tars(purify()).values()} == {"skipped"}
    facts = json.loads(invoke("status", "out", "--json").stdout)
    assert (facts["counts"]["done"], facts["tars"]["done"]) == (24, 8)


def test_a_dry_run_says_which_tars_and_writes_nothing(here: Path) -> None:
    tar(here / "in" / "a.tar", *samples(2))
    (here / "in" / "notes.txt").write_text("x")
    result = invoke("purify", "in", "out", *SHARDS, "--dry-run")
    assert result.exit_code == 0
    assert "would purify 1 of 1 tars" in result.stderr
    assert not (here / "out").exists()
    lines = json_lines(purify("--dry-run"))
    assert [line["type"] for line in lines] == ["plan", "plan_end"]
    assert lines[0]["out_path"] == "a.tar"


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("in", "out", "--watch"), "--watch"),
        (("in", "out", "--on-collision", "append"), "--on-collision"),
        (("in", "out", "--portable-names"), "--portable-names"),
        (("-", "-"), "--tar-shards"),
        (("-", "-", "--tar"), "--tar-shards"),
        (("pictures", "out"), "no tar shards found"),
        (("in", "folder_run"), "tar_shards"),
    ],
)
def test_what_tar_shards_cannot_do_exits_2(here: Path, words: tuple[str, ...], hint: str) -> None:
    picture(here / "pictures" / "a.png")
    tar(here / "in" / "a.tar", *samples(1))
    assert invoke("purify", "pictures", "folder_run", *BLUR).exit_code == 0
    result = invoke("purify", *words, *SHARDS)
    assert result.exit_code == 2
    assert hint in result.stderr


def test_a_page_of_tar_shards_is_refused(here: Path) -> None:
    tar(here / "in" / "a.tar", *samples(1))
    purify()
    result = invoke("report", "out", "-o", "page.html")
    assert result.exit_code == 2
    assert "tar shards" in result.stderr


def test_a_tar_that_is_not_ours_is_never_replaced(here: Path) -> None:
    tar(here / "in" / "a.tar", *samples(1))
    tar(here / "out" / "a.tar", ("mine.txt", b"x"))
    before = tree(here / "out")
    assert invoke("purify", "in", "out", *SHARDS).exit_code == 2
    assert tree(here / "out") == before
    purify("--overwrite")
    assert list(members(here / "out" / "a.tar")) == ["0000.png", "0000.cls", "0000.json"]


def test_verify_finds_a_tar_that_was_changed_and_paranoid_makes_it_anew(here: Path) -> None:
    tar(here / "in" / "a.tar", *samples(2))
    purify()
    file, data = here / "out" / "a.tar", (here / "out" / "a.tar").read_bytes()
    file.write_bytes(data[:600] + bytes([data[600] ^ 1]) + data[601:])
    tar(here / "out" / "foreign.tar", *samples(1))
    result = invoke("verify", "out")
    assert result.exit_code == 3
    assert "changed: a.tar" in result.stdout
    assert "foreign: foreign.tar" in result.stdout
    assert tars(purify("--paranoid"))["a.tar"]["state"] == "done"
    assert file.read_bytes() == data


def test_tars_of_one_image_and_tars_of_many_sizes_do_not_run_out_of_files(here: Path) -> None:
    """Each size waits for a batch of its own, and each tar that waits has a file open."""
    for n in range(150):
        tar(here / "in" / f"{n:03}.tar", (f"{n}.png", png(n, (8 + n, 8))), (f"{n}.cls", b"1"))

    def few_files() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (160, 160))

    done = run("purify", "in", "out", "--json", *SHARDS, cwd=here, preexec_fn=few_files)
    assert done.returncode == 0, done.stderr
    assert len(tars(done.stdout)) == len(tree(here / "out")) == 150


def test_samples_of_several_tars_share_a_batch(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zipcli.pipeline.purifier import Purifier

    sizes: list[int] = []
    purify_pixels = Purifier.purify_pixels

    def counted(self: Purifier, pictures: Any) -> Any:
        sizes.append(len(pictures))
        return purify_pixels(self, pictures)

    monkeypatch.setattr(Purifier, "purify_pixels", counted)
    for n in range(4):
        tar(here / "in" / f"{n}.tar", *samples(10, 10 * n))
    purify("--batch-size", "8")
    assert sizes == [8] * 5
    monkeypatch.setattr(tar_shards, "GROUP_IMAGES", 10)
    purify("--batch-size", "8", "--overwrite", "--transform", "blur:4")
    assert sorted(sizes[5:]) == [2] * 4 + [8] * 4


@pytest.mark.fault("F01")
def test_a_kill_leaves_no_half_tar_and_the_same_command_goes_on(here: Path) -> None:
    for n in range(6):
        tar(here / "in" / f"{n}.tar", *samples(60, 100 * n))
    assert invoke("purify", "in", "whole", *SHARDS).exit_code == 0
    expected, before = tree(here / "whole"), originals(here / "in")
    words = ("purify", "in", "out", "--json", "--batch-size", "1", *SHARDS)
    kills = 0
    for moment in itertools.count(1):
        with start(*words, cwd=here) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if json.loads(line)["type"] == ("tar" if moment == 1 else "run_start"):
                    break
            time.sleep(0.1 * (moment - 1))
            process.kill()
            process.communicate(timeout=PATIENCE)
        kills += process.returncode == -9
        found = tree(here / "out")
        assert all(expected[path] == data for path, data in found.items())
        assert originals(here / "in") == before
        if process.returncode == 0 or kills == 3:
            break
        assert found  # a line says that a tar is there
    assert kills
    done = set(tree(here / "out"))
    states = {path: line["state"] for path, line in tars(run(*words, cwd=here).stdout).items()}
    redone = {path for path, state in states.items() if state == "done"}
    assert len(redone & done) <= 1 + 4  # one that was there and had no line yet, for each thread that writes
    assert tree(here / "out") == expected
    assert not list((here / "out").rglob("*.part"))
    assert invoke("verify", "out").exit_code == 0


def test_a_signal_stops_a_run_and_what_is_written_is_complete(here: Path) -> None:
    for n in range(3):
        tar(here / "in" / f"{n}.tar", *samples(30, 100 * n))
    words = ("purify", "in", "out", "--json", "--tar-shards", *PRIOR)
    with start(*words, cwd=here, loitering=True) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["type"] == "run_start"
        time.sleep(0.5)
        process.terminate()
        out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 143
    assert json_lines(out)[-1]["exit_code"] == 143
    assert invoke("verify", "out").exit_code == 0
    assert all(members(path) for path in (here / "out").glob("*.tar"))


@pytest.mark.fault("F26")
def test_a_full_disk_exits_5_and_the_same_command_goes_on(
    here: Path, small_disk: Callable[..., Path]
) -> None:
    tar(here / "in" / "a.tar", *samples(3))
    tar(here / "in" / "b.tar", *samples(3), ("large.bin", os.urandom(6 * 2**20)))
    out = small_disk("8m")
    result = invoke("purify", "in", out, *SHARDS)
    assert result.exit_code == 5, result.stderr
    assert list(tree(out)) == ["a.tar"]
    tar(here / "in" / "b.tar", *samples(3))
    assert invoke("purify", "in", out, *SHARDS).exit_code == 0
    assert sorted(tree(out)) == ["a.tar", "b.tar"]


@pytest.mark.parametrize(
    ("name", "sample"),
    [
        ("a.png", "a"),
        ("a.b.png", "a"),
        ("x.y/a.b.png", "x.y/a"),
        ("x/readme", "x/readme"),
        ("x/.a.png", "x/.a.png"),
    ],
)
def test_a_sample_is_a_name_up_to_its_first_dot(name: str, sample: str) -> None:
    assert sample_of(name) == sample
