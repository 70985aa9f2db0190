"""A tar stream in, a tar stream out: `tar c in | zipcli purify --tar - - | tar x`."""

import gzip
import io
import os
import resource
import shlex
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cli.shell import (
    BLUR,
    COMMAND,
    ENVIRONMENT,
    PATIENCE,
    PRIOR,
    invoke,
    noise,
    picture,
    pictures,
    run,
    start,
    tree,
)

FILTER = shlex.join((*COMMAND, "purify", "--tar", "-", "-", *BLUR))


def shell(line: str, cwd: Path) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"],
        cwd=cwd,
        env=ENVIRONMENT,
        capture_output=True,
        timeout=PATIENCE,
    )


def png(seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    noise(seed=seed).save(buffer, "PNG")
    return buffer.getvalue()


def tar_of(*members: tuple[str | tarfile.TarInfo, bytes], format: int = tarfile.GNU_FORMAT) -> bytes:
    """A tar file with these members, whatever their names."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format, errors="surrogateescape") as tar:
        for name, data in members:
            member = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            if member.isreg():
                member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def special(name: str, kind: bytes, target: str = "") -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member, b""


def members(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data), errors="surrogateescape") as tar:
        found = {}
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None
            found[member.name] = file.read()
        return found


@pytest.mark.parametrize("words", ["c", "cz", "cj", "cJ"])
def test_a_stream_becomes_the_tree_of_a_folder_run(here: Path, words: str) -> None:
    pictures(here / "in", 6)
    (here / "in" / "notes.txt").write_text("no image")
    (here / "clean").mkdir()
    done = shell(f"tar {words} in | {FILTER} | tar x -C clean", here)
    assert done.returncode == 0, done.stderr
    assert invoke("purify", "in", "out", *BLUR).exit_code == 0
    assert tree(here / "clean" / "in") == tree(here / "out")


def test_the_prior_gives_the_bytes_of_a_folder_run(uninterrupted: Path, here: Path) -> None:
    line = shlex.join((*COMMAND, "purify", "--tar", "-", "-", *PRIOR))
    done = shell(f"tar c -C {shlex.quote(str(uninterrupted))} in | {line} | tar x", here)
    assert done.returncode == 0, done.stderr
    assert tree(here / "in") == tree(uninterrupted / "out")


@pytest.mark.fault("F44", "F45", "F46")
def test_names_keep_their_bytes(here: Path) -> None:
    names = [
        b"caf\xe9.png",
        "\u00e9\u65e5.png".encode(),
        b"a\nb.png",
        b"-x.png",
        b"x" * 251 + b".png",
        b"sub/" * 40 + b"y.png",
    ]
    data = tar_of(*((os.fsdecode(name), png(n)) for n, name in enumerate(names)))
    done = run("purify", "--tar", "-", "-", *BLUR, input=data)
    assert done.returncode == 0, done.stderr
    assert {os.fsencode(name) for name in members(done.stdout)} == set(names)
    extracted = here / "x"
    extracted.mkdir()
    subprocess.run(["tar", "x", "-C", str(extracted)], input=done.stdout, check=True)
    assert (extracted / os.fsdecode(b"caf\xe9.png")).exists()


@pytest.mark.parametrize("name", ["/abs.png", "../up.png", "a/../../up.png", "a/.."])
def test_a_name_that_leads_out_of_the_folder_is_not_in_the_output(name: str) -> None:
    done = run(
        "purify", "--tar", "-", "-", *BLUR, "--include", "*", input=tar_of(("ok.png", png()), (name, png(1)))
    )
    assert done.returncode == 3
    assert list(members(done.stdout)) == ["ok.png"]
    assert b"name_unsupported" in done.stderr


def test_links_and_devices_are_never_written(here: Path) -> None:
    data = tar_of(
        ("ok.png", png()),
        special("link.png", tarfile.SYMTYPE, "/etc/passwd"),
        special("device.png", tarfile.CHRTYPE),
        special("fifo.png", tarfile.FIFOTYPE),
    )
    done = run("purify", "--tar", "-", "-", *BLUR, "-v", input=data)
    assert done.returncode == 0
    assert list(members(done.stdout)) == ["ok.png"]
    assert done.stderr.count(b"skipped (") == 3
    done = run(
        "purify",
        "--tar",
        "-",
        "-",
        *BLUR,
        input=data + b"" if False else tar_of(special("hard.png", tarfile.LNKTYPE, "ok.png")),
    )
    assert done.returncode == 3  # an image that somebody expects
    assert b"--hard-dereference" in done.stderr


def test_two_members_that_share_an_output_are_not_both_written() -> None:
    data = tar_of(("a.png", png()), ("a.jpg", png(1)), ("a.png", png(2)), ("./a.png", png(3)))
    done = run("purify", "--tar", "-", "-", *BLUR, input=data)
    assert done.returncode == 3
    assert done.stderr.count(b"failed (collision)") == 3
    alone = run("purify", "--tar", "-", "-", *BLUR, input=tar_of(("a.png", png())))
    assert members(done.stdout) == members(alone.stdout)


def test_a_bad_image_is_missing_and_its_neighbours_are_there() -> None:
    data = tar_of(("a.png", png()), ("bad.png", b"text"), ("empty.png", b""), ("b.png", png(1)))
    done = run("purify", "--tar", "-", "-", *BLUR, input=data)
    assert done.returncode == 3
    assert sorted(members(done.stdout)) == ["a.png", "b.png"]
    assert b"failed (unidentified) bad.png" in done.stderr
    assert b"failed (empty) empty.png" in done.stderr
    assert run("purify", "--tar", "-", "-", *BLUR, "--fail-on", "50%", input=data).returncode == 0


CUTS: dict[str, Callable[[bytes], bytes]] = {
    "in an image": lambda data: data[:700],
    "between two images": lambda data: data[:1024],
    "nothing": lambda data: b"",
    "text": lambda data: b"no tar at all\n" * 100,
    "a damaged header": lambda data: data[:1024] + b"\xff" * 512 + data[1536:],
}


@pytest.mark.parametrize("cut", CUTS)
def test_a_stream_that_breaks_off_is_a_failure(cut: str) -> None:
    data = tar_of(("a.png", png()), ("b.png", png(1)))
    assert len(png()) <= 512  # so each image takes two blocks
    done = run("purify", "--tar", "-", "-", *BLUR, input=CUTS[cut](data))
    assert done.returncode == 3
    assert b"failed (truncated) -:" in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_stream_without_images_is_empty() -> None:
    done = run("purify", "--tar", "-", "-", *BLUR, input=tar_of(("notes.txt", b"x")))
    assert done.returncode == 0
    assert members(done.stdout) == {}


@pytest.mark.fault("F06")
def test_a_reader_who_leaves_early_ends_the_run_with_141(here: Path) -> None:
    pictures(here / "in", 40, (64, 64))
    done = shell(f"tar c in | ({FILTER}; echo $? >code) | head -c 600 >part", here)
    assert (here / "code").read_text() == "141\n", done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.fault("F26")
def test_a_full_disk_under_the_output_exits_5(here: Path) -> None:
    pictures(here / "in", 3)
    done = shell(f"tar c in | ({FILTER} >/dev/full; echo $? >code)", here)
    assert (here / "code").read_text() == "5\n", done.stderr


def test_a_signal_stops_a_stream(here: Path) -> None:
    with start("purify", "--tar", "-", "-", *BLUR, cwd=here, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(bytes(2**20))
        process.stdin.flush()
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(timeout=60) == 143
        finally:
            process.kill()


@pytest.mark.parametrize(
    "words",
    [
        ("in", "out"),
        ("-", "out"),
        ("-", "-", "--json"),
        ("-", "-", "--watch"),
        ("-", "-", "--overwrite"),
        ("-", "-", "--shard", "1/2"),
        ("-", "-", "--files-from", "x"),
    ],
)
def test_what_a_stream_has_no_use_for_exits_2(here: Path, words: tuple[str, ...]) -> None:
    pictures(here / "in", 1)
    result = invoke("purify", "--tar", *words, *BLUR)
    assert result.exit_code == 2


def test_a_stream_is_filtered_by_patterns_and_hidden_files_are_left_out() -> None:
    data = tar_of(
        ("a/x.png", png()), ("b/x.png", png(1)), (".hidden.png", png(2)), ("a/.cache/z.png", png(3))
    )
    done = run("purify", "--tar", "-", "-", *BLUR, "--exclude", "b/*", input=data)
    assert done.returncode == 0
    assert list(members(done.stdout)) == ["a/x.png"]


def test_times_are_kept_and_owners_are_not(here: Path) -> None:
    member = tarfile.TarInfo("a.png")
    member.mtime, member.uid, member.uname = 1_000_000_000, 1234, "somebody"
    done = run("purify", "--tar", "-", "-", *BLUR, input=tar_of((member, png())))
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as tar:
        (written,) = tar.getmembers()
    assert (written.mtime, written.uid, written.uname, written.mode) == (1_000_000_000, 0, "", 0o644)


def test_a_picture_of_every_size_comes_out(here: Path) -> None:
    for n, size in enumerate([(1, 1), (7, 5), (64, 3), (100, 100)]):
        picture(here / "in" / f"{n}.png", size, seed=n)
    done = shell(f"tar c in | {FILTER} | tar t", here)
    assert sorted(done.stdout.decode().split()) == [f"in/{n}.png" for n in range(4)]
    assert sys.getfilesystemencoding() == "utf-8"


def test_a_header_without_end_is_not_held_in_memory() -> None:
    """A megabyte of gzip that unpacks to a name of a gigabyte."""
    member = tarfile.TarInfo("././@LongLink")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, 2**30
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=1) as stream:
        stream.write(member.tobuf(tarfile.GNU_FORMAT))
        for _ in range(2**7):
            stream.write(bytes(2**23))

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (2 * 2**30, 2 * 2**30))

    done = run("purify", "--tar", "-", "-", *BLUR, input=packed.getvalue(), preexec_fn=limited)
    assert done.returncode == 3, done.stderr
    assert b"a header of 1,073,741,824 bytes" in done.stderr


@pytest.mark.parametrize("mtime", ["1e300", "nan", "-1", "inf", "1e11"])
def test_a_time_without_sense_costs_nothing(mtime: str) -> None:
    member = tarfile.TarInfo("a.png")
    member.pax_headers = {"mtime": mtime}
    done = run("purify", "--tar", "-", "-", *BLUR, input=tar_of((member, png()), format=tarfile.PAX_FORMAT))
    assert done.returncode == 0, done.stderr
    assert list(members(done.stdout)) == ["a.png"]


def test_headers_within_headers_end_the_stream_and_not_the_program() -> None:
    chain = b""
    for n in range(3000):
        member = tarfile.TarInfo("././@LongLink")
        member.type, member.size = tarfile.GNUTYPE_LONGNAME, 2
        chain += member.tobuf(tarfile.GNU_FORMAT) + f"{n % 10}\0".encode().ljust(512, b"\0")
    done = run("purify", "--tar", "-", "-", *BLUR, input=chain + tar_of(("a.png", png())))
    assert done.returncode == 3
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("names", [("a.jpg", "a.png/b.png"), ("a.png/b.png", "a.jpg")])
def test_a_file_and_a_folder_of_one_name_are_not_both_written(names: tuple[str, str]) -> None:
    done = run("purify", "--tar", "-", "-", *BLUR, input=tar_of(*((name, png()) for name in names)))
    assert done.returncode == 3
    assert len(members(done.stdout)) == 1
    assert b"failed (collision)" in done.stderr
