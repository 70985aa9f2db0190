"""The decode guard, with real crashes, hangs, memory limits and lies."""

import ast
import errno
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms
from scan_bomb import scan_bomb
from test_images_load import BAD, RAMP, icc_profile, noise_file, orientation_exif, png, png_header, saved

from zipcli.config import LIMITS, MIB, Limits
from zipcli.errors import ExitCode, InputError, Reason, ZipcliError
from zipcli.images import guard, load
from zipcli.images.guard import Pool

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")

GOOD = noise_file("PNG")
BOMB = scan_bomb()
"""Half a minute of decoding."""

PATIENCE = 120


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "this did not happen in time"
        time.sleep(0.01)


def stat(pid: int | str) -> list[str]:
    """The fields of /proc/PID/stat from the state on; empty when the process is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
    return [] if fields[0] in "ZX" else fields


def workers() -> set[int]:
    """Our children that are workers."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        fields = stat(folder.name)
        if fields and int(fields[1]) == os.getpid():
            words = (folder / "cmdline").read_bytes().split(b"\0")
            found |= {int(folder.name)} if words[:1] == [os.fsencode(sys.executable)] else set()
    return found


def processor_time(pid: int) -> float:
    fields = stat(pid)
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK") if fields else 0.0


@pytest.fixture
def mine() -> Callable[[], set[int]]:
    """The workers that were started since the test began."""
    before = workers()
    return lambda: workers() - before


@pytest.fixture
def pool(mine: Callable[[], set[int]]) -> Iterator[Pool]:
    with Pool(1) as pool:
        yield pool
    until(lambda: not mine())


def refusal(pool: Pool, data: bytes, limits: Limits = LIMITS) -> Reason:
    with pytest.raises(InputError, match=r"^dir/a\.png: .+; .+") as caught:
        pool.decode(data, "dir/a.png", limits)
    return caught.value.reason


def at_work(
    pool: Pool, mine: Callable[[], set[int]], limits: Limits = LIMITS
) -> "tuple[int, Future[tuple[Reason, str]]]":
    """Let a thread decode the bomb; the worker that is at it."""
    pool.decode(GOOD, "a")
    (pid,) = mine()
    before = processor_time(pid)
    future: Future[tuple[Reason, str]] = Future()
    thread = threading.Thread(
        target=lambda: future.set_result(outcome(pool.decode, BOMB, limits)), daemon=True
    )
    thread.start()
    until(lambda: processor_time(pid) > before + 0.05)
    return pid, future


def outcome(decode: Callable[..., load.Picture], data: bytes, limits: Limits = LIMITS) -> Any:
    """Everything that decoding gives, ready to be compared."""
    try:
        picture = decode(data, "dir/a.png", limits)
    except InputError as e:
        return e.reason, str(e)
    pixels = picture.pixels
    form = pixels.shape, pixels.dtype, pixels.flags.c_contiguous, pixels.flags.writeable
    return {**vars(picture), "pixels": (*form, pixels.tobytes())}


# The same as without it


def files() -> dict[str, bytes]:
    noise = Image.open(io.BytesIO(GOOD))
    exif = orientation_exif(6)
    exif[0x010F], exif[0x0110] = "Acme", "Box 3000"
    exif.get_ifd(0x8769)[0x9003] = "2024:05:17 12:30:00"
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    grey = icc_profile(b"GRAY", 1, {0: 0, 1: 128})
    return {
        **{name: data for name, (data, _) in BAD.items()},
        **{kind: noise_file(kind) for kind in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM")},
        **{f"{mode} {kind}": saved(noise.convert(mode), kind) for mode, kind in (
            ("L", "PNG"), ("1", "PNG"), ("P", "PNG"), ("LA", "PNG"), ("RGBA", "WEBP"), ("CMYK", "JPEG"),
            ("CMYK", "TIFF"), ("YCbCr", "TIFF"), ("LAB", "TIFF"), ("I", "TIFF"), ("F", "TIFF"), ("P", "GIF"),
        )},
        "16 bits": saved(Image.fromarray(RAMP), "PNG"),
        "16 bits, big-endian": saved(Image.frombytes("I;16B", (256, 256), RAMP.tobytes()), "TIFF"),
        "alpha": saved(Image.new("RGBA", (3, 2), (100, 0, 255, 102)), "PNG"),
        "transparent palette": saved(noise.quantize(9), "PNG", transparency=bytes(range(9))),
        "camera": noise_file("JPEG", exif=exif, dpi=(300, 72.5), icc_profile=srgb),
        "turned TIFF": noise_file("TIFF", exif=exif, dpi=(300, 72.5)),
        "damaged EXIF": noise_file("JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"),
        "invalid profile": noise_file("PNG", icc_profile=b"not a profile"),
        "grey profile": saved(noise.convert("L"), "PNG", icc_profile=grey),
        "levels of no range": saved(Image.fromarray(np.array([[-1, 9]], np.int32)), "TIFF"),
        "nan": saved(Image.fromarray(np.array([[0, np.nan]], np.float32)), "TIFF"),
    }  # fmt: skip


@pytest.fixture(scope="module")
def shared() -> Iterator[Pool]:
    with Pool(2) as pool:
        yield pool


@pytest.mark.parametrize("data", files().values(), ids=files())
def test_a_worker_gives_what_decoding_here_gives(shared: Pool, data: bytes) -> None:
    assert outcome(shared.decode, data) == outcome(load.decode, data)


@pytest.mark.parametrize(
    "limits",
    [Limits(max_bytes=300), Limits(max_pixels=50), Limits(max_side=7), Limits(strict_ext=True)],
    ids=["bytes", "pixels", "side", "extension"],
)
def test_a_worker_keeps_to_the_limits_of_each_request(shared: Pool, limits: Limits) -> None:
    for data in (GOOD, noise_file("JPEG")):
        assert outcome(shared.decode, data, limits) == outcome(load.decode, data, limits)
        assert outcome(shared.decode, data) == outcome(load.decode, data)


@pytest.mark.parametrize("limits", [Limits(frames="first"), Limits(allow_truncated=True)], ids=str)
def test_a_worker_follows_the_policy_of_each_request(shared: Pool, limits: Limits) -> None:
    for data, _ in BAD.values():
        assert outcome(shared.decode, data, limits) == outcome(load.decode, data, limits)


def test_damage_anywhere_ends_in_a_worker_as_it_ends_here(shared: Pool) -> None:
    random = np.random.default_rng(2)
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"):
        for _ in range(25):
            damaged = bytearray(noise_file(kind))
            for position in random.integers(0, min(len(damaged), 400), 4):
                damaged[position] = random.integers(256)
            cut = bytes(damaged[: random.integers(1, len(damaged) + 1)])
            assert outcome(shared.decode, cut) == outcome(load.decode, cut)


def test_the_declared_size_is_told(shared: Pool) -> None:
    assert shared.declared_size(png(png_header(6000, 8000)), "a") == (6000, 8000)
    for data, _ in BAD.values():
        here = size_or_refusal(load.declared_size, data)
        assert size_or_refusal(shared.declared_size, data) == here


def size_or_refusal(declared_size: Callable[..., tuple[int, int]], data: bytes) -> object:
    try:
        return declared_size(data, "dir/a.png")
    except InputError as e:
        return e.reason, str(e)


@pytest.mark.parametrize("name", ["new\nline.png", "\x1b[31m.png", "caf\udce9.png", "", "x" * 5000, "a: b"])
def test_a_name_of_any_kind_stays_what_it_is(shared: Pool, name: str) -> None:
    with pytest.raises(InputError) as here:
        load.decode(b"nothing", name)
    with pytest.raises(InputError) as there:
        shared.decode(b"nothing", name)
    assert str(there.value) == str(here.value)


def test_nothing_but_the_writer_decodes_in_the_process_that_holds_the_model() -> None:
    package = Path(load.__file__).parents[1]
    here = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = {alias.name for alias in node.names} if isinstance(node, ast.ImportFrom) else set()
            if names & {"decode", "declared_size"} and node.module == "zipcli.images.load":
                here.add(path.relative_to(package).as_posix())
            if isinstance(node, ast.Attribute) and ast.unparse(node).endswith("Image.open"):
                here.add(path.relative_to(package).as_posix())
    assert here == {"images/load.py", "images/worker.py", "images/write.py"}


# Crashes


@pytest.mark.fault("F08")
@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS])
def test_a_crash_costs_one_image_and_the_worker_is_replaced(pool, mine, number) -> None:
    pid, future = at_work(pool, mine)
    os.kill(pid, number)
    assert future.result(PATIENCE)[0] == Reason.DECODE_CRASH
    assert outcome(pool.decode, GOOD) == outcome(load.decode, GOOD)
    assert mine() != {pid}
    assert len(mine()) == 1


@pytest.mark.fault("F10")
def test_a_worker_that_the_system_ends_was_short_of_memory(pool, mine) -> None:
    """So does the kernel when memory runs out, and it takes workers first."""
    pid, future = at_work(pool, mine)
    os.kill(pid, signal.SIGKILL)
    assert future.result(PATIENCE)[0] == Reason.OUT_OF_MEMORY
    assert outcome(pool.decode, GOOD) == outcome(load.decode, GOOD)


@pytest.mark.fault("F08")
def test_a_crash_leaves_the_work_of_other_threads_alone(mine) -> None:
    with Pool(2) as pool, ThreadPoolExecutor(3) as threads:
        pid, future = at_work(pool, mine)
        neighbours = [threads.submit(outcome, pool.decode, GOOD) for _ in range(30)]
        os.kill(pid, signal.SIGSEGV)
        neighbours += [threads.submit(outcome, pool.decode, GOOD) for _ in range(30)]
        expected = outcome(load.decode, GOOD)
        assert all(neighbour.result(PATIENCE) == expected for neighbour in neighbours)
        assert future.result(PATIENCE)[0] == Reason.DECODE_CRASH


def test_an_idle_worker_that_somebody_ended_costs_no_image(pool, mine) -> None:
    pool.decode(GOOD, "a")
    (pid,) = mine()
    os.kill(pid, signal.SIGKILL)
    until(lambda: not stat(pid))
    assert outcome(pool.decode, GOOD) == outcome(load.decode, GOOD)


# Time


@pytest.mark.fault("F09", "F73")
def test_a_slow_file_is_given_up_after_its_processor_time(pool, mine) -> None:
    began = time.monotonic()
    assert refusal(pool, BOMB, Limits(seconds=1)) == Reason.DECODE_TIMEOUT
    assert time.monotonic() - began < PATIENCE  # of the half minute that it would take
    assert outcome(pool.decode, GOOD) == outcome(load.decode, GOOD)


@pytest.mark.fault("F73")
def test_the_slow_file_is_an_ordinary_picture_for_who_waits() -> None:
    assert (load.decode(scan_bomb(64, scans=3000), "a").pixels == 77).all()


@pytest.mark.fault("F09")
def test_a_worker_that_hangs_is_ended(pool, mine) -> None:
    pid, future = at_work(pool, mine, Limits(seconds=1))
    os.kill(pid, signal.SIGSTOP)  # so that it uses no processor time either
    assert future.result(PATIENCE)[0] == Reason.DECODE_TIMEOUT
    assert outcome(pool.decode, GOOD) == outcome(load.decode, GOOD)
    assert pid not in mine()


def test_the_time_of_one_image_does_not_count_for_the_next(pool, mine) -> None:
    slow, limits = scan_bomb(scans=40), Limits(seconds=2)  # a twentieth of a second, on a free core
    assert pool.decode(slow, "a", limits).pixels[0, 0] == 77
    (pid,) = mine()
    while processor_time(pid) <= limits.seconds + 1:  # for limits are of whole seconds
        assert pool.decode(slow, "a", limits).pixels[0, 0] == 77
        assert mine() == {pid}


# Memory


@pytest.mark.fault("F10")
def test_a_file_that_takes_too_much_memory_costs_one_image(pool, mine) -> None:
    large = saved(Image.new("RGB", (6000, 6000)), "PNG")  # 103 MiB of pixels in a small file
    assert refusal(pool, large, Limits(memory=64 * MIB)) == Reason.OUT_OF_MEMORY
    assert outcome(pool.decode, GOOD, Limits(memory=64 * MIB)) == outcome(load.decode, GOOD)
    assert pool.decode(large, "a").pixels.shape == (6000, 6000, 3)


@pytest.mark.fault("F10")
def test_a_file_that_does_not_even_fit_costs_one_image(pool, mine) -> None:
    data = saved(Image.fromarray(np.zeros((3000, 3000), np.uint8)), "BMP")
    assert refusal(pool, data, Limits(memory=2 * MIB)) == Reason.OUT_OF_MEMORY
    assert pool.decode(data, "a").pixels.shape == (3000, 3000)


def test_the_memory_of_one_image_is_there_again_for_the_next(pool, mine) -> None:
    data = saved(Image.new("RGB", (3000, 3000)), "PNG")
    for _ in range(12):
        pool.decode(data, "a", Limits(memory=160 * MIB))
    assert len(mine()) == 1


@pytest.mark.fault("F62")
@pytest.mark.parametrize("name", ["3,600 megapixels declared", "100 megapixels declared", "text bomb"])
def test_a_bomb_is_refused_before_memory_is_taken(pool, name) -> None:
    data, reason = BAD[name]
    assert refusal(pool, data, Limits(memory=16 * MIB)) == reason


@pytest.mark.slow
@pytest.mark.parametrize(
    "mode", ["RGB", "RGBA", "RGBA WebP", "CMYK", "I;16", "I", "F", "P", "LA", "LAB", "turned"]
)
def test_fifty_megapixels_of_any_mode_fit_into_the_default_memory(pool, mode) -> None:
    assert pool.decode(fifty_megapixels(mode), "a", Limits(seconds=120)).pixels.shape[:2] in (
        (5000, 10_000),
        (10_000, 5000),
    )


def fifty_megapixels(mode: str) -> bytes:
    size, fast = (10_000, 5000), {"compress_level": 1}
    if mode == "RGBA WebP":
        image = Image.new("RGBA", size, (1, 2, 3, 4))
        return saved(image, "WEBP", exif=orientation_exif(6), quality=10, method=0)
    if mode in ("CMYK", "LAB", "F", "I"):
        return saved(Image.new(mode, size, 1), "TIFF", compression="tiff_lzw")
    if mode == "I;16":
        levels = np.full((5000, 10_000), 999, np.uint16)
        return saved(Image.fromarray(levels), "PNG", exif=orientation_exif(6), **fast)
    if mode == "P":
        transparent = {"transparency": bytes(range(0, 256, 2)), "exif": orientation_exif(6)}
        return saved(Image.new("P", size, 1), "PNG", **transparent, **fast)
    image = Image.new("RGB" if mode == "turned" else mode, size)
    return saved(image, "PNG", exif=orientation_exif(6), **fast)


# Threads, and what is left behind


def test_threads_share_the_workers(mine) -> None:
    expected = outcome(load.decode, GOOD)
    with Pool(3) as pool, ThreadPoolExecutor(8) as threads:
        results = [threads.submit(outcome, pool.decode, GOOD) for _ in range(400)]
        most = 0
        while not all(result.done() for result in results):
            most = max(most, len(mine()))
        assert all(result.result() == expected for result in results)
    assert 1 <= most <= 3


def test_a_single_thread_uses_a_single_worker(mine) -> None:
    with Pool(4) as pool:
        assert mine() == set()
        for _ in range(20):
            pool.decode(GOOD, "a")
            pool.declared_size(GOOD, "a")
        assert len(mine()) == 1


def test_warm_workers_are_there_before_they_are_needed(mine) -> None:
    with Pool(2) as pool:
        pool.warm(5)
        before = mine()
        assert len(before) == 2
        pool.decode(GOOD, "a")
        assert mine() == before


def test_a_worker_is_replaced_after_some_images(pool, mine, monkeypatch) -> None:
    monkeypatch.setattr(guard, "RECYCLE", 3)
    used = []
    for _ in range(7):
        pool.decode(GOOD, "a")
        pool.declared_size(GOOD, "a")
        used.append(mine())
    assert used[0] == used[1] != used[3] == used[4]
    assert len(set().union(*used)) == 3


def test_a_closed_pool_has_no_workers_and_starts_none(mine) -> None:
    with Pool(2) as pool:
        pool.decode(GOOD, "a")
        pool.warm(2)
    until(lambda: not mine())
    with pytest.raises(RuntimeError, match="closed"):
        pool.decode(GOOD, "a")
    pool.warm(2)
    assert not mine()


def test_closing_ends_even_a_worker_at_work(mine) -> None:
    pool = Pool(1)
    pool.decode(GOOD, "a")
    with ThreadPoolExecutor(1) as thread:
        (pid,) = mine()
        before = processor_time(pid)
        future = thread.submit(pool.decode, BOMB, "a")
        until(lambda: processor_time(pid) > before + 0.05)
        pool.close()
        with pytest.raises(RuntimeError, match="closed"):
            future.result(PATIENCE)
    until(lambda: not mine())


# The process

LEAN = """
import json, os, signal, struct, sys
source, sink = sys.stdin.buffer, sys.stdout.buffer
def say(header, body=b""):
    text = json.dumps(header).encode()
    sink.write(struct.pack(">I", len(text)) + text + body)
    sink.flush()
say({"ready": True, "bytes": 0})
while length := source.read(4):
    request = json.loads(source.read(*struct.unpack(">I", length)))
    source.read(request["bytes"])
    answer(request)
"""
"""A worker that does whatever `answer` does."""

FINE = {
    "shape": [1, 2], "format": "PNG", "mode": "L", "notes": [], "bytes": 2,
    "metadata": {"dpi": None, "date": None, "make": None, "model": None},
}  # fmt: skip


def lean(answer: str) -> tuple[str, ...]:
    """The program of a worker that answers by running some lines of Python."""
    lines = "\n".join(f"    {line}" for line in answer.splitlines())
    return ("-I", "-S", "-c", f"def answer(request):\n{lines}\n{LEAN}")


@pytest.mark.fault("F08")
def test_descriptors_threads_and_children_stay_the_same_over_many_crashes(mine) -> None:
    crash = "os.kill(os.getpid(), signal.SIGSEGV)"
    program = lean(f"{crash} if request['name'] == 'odd' else say({FINE}, b'ab')")
    with Pool(2, program=program) as pool:
        assert pool.decode(b"x", "even").pixels.tolist() == [[97, 98]]
        before = (descriptors(), threading.active_count(), len(mine()))
        crashes = 0
        for n in range(300):
            try:
                pool.decode(b"x", "odd" if n % 2 else "even")
            except InputError as e:
                crashes += e.reason == Reason.DECODE_CRASH
        assert crashes == 150
        pool.decode(b"x", "even")
        assert (descriptors(), threading.active_count(), len(mine())) == before


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_worker_knows_no_torch_no_token_and_no_terminal(pool, mine, monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HTTPS_PROXY", "http://user:secret@proxy")
    pool.decode(GOOD, "a")
    (pid,) = mine()
    process = Path(f"/proc/{pid}")
    maps = (process / "maps").read_text()
    assert "PIL" in maps
    assert "torch" not in maps
    environment = (process / "environ").read_bytes()
    assert b"PYTHONPATH=" in environment
    assert b"secret" not in environment
    assert os.getsid(pid) == pid  # Ctrl-C is not for it
    assert (process / "cwd").readlink() == Path("/")
    assert {(process / "fd" / name).readlink().name.partition(":")[0] for name in "01"} == {"pipe"}
    assert len(list((process / "fd").iterdir())) == 3
    limits = (process / "limits").read_text().splitlines()
    bounded = {line[:20].strip(): line.split()[-3] for line in limits}
    assert (bounded["Max core file size"], bounded["Max file size"]) == ("0", "0")


@pytest.fixture
def good(tmp_path: Path) -> Path:
    (tmp_path / "good.png").write_bytes(GOOD)
    return tmp_path / "good.png"


def test_a_worker_does_not_outlive_us_even_at_work(good: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from zipcli.images.guard import Pool\n"
        "from zipcli.config import Limits; pool = Pool(1); pool.decode(Path(sys.argv[1]).read_bytes(), 'a')\n"
        "bomb = Path(sys.argv[2]).read_bytes()\n"
        "print(pool._idle[0]._process.pid, flush=True)\n"
        "pool.decode(bomb, 'a', Limits(seconds=100))\n"
    )
    bomb = tmp_path / "bomb.jpg"
    bomb.write_bytes(BOMB)
    with subprocess.Popen([sys.executable, "-c", program, good, bomb], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        before = processor_time(pid)
        until(lambda: processor_time(pid) > before + 0.05)
        parent.kill()
        killed = time.monotonic()
        until(lambda: not stat(pid))
        assert time.monotonic() - killed < 15  # of the half minute that it had before it


def test_a_forked_process_has_workers_of_its_own(good: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path; from zipcli.images import guard\n"
        "data = Path(sys.argv[1]).read_bytes(); guard.decode(data, 'a')\n"
        "ours = guard.shared_pool()._idle[0]._process.pid\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    guard.decode(data, 'a')\n"
        "    theirs = guard.shared_pool()._idle[0]._process.pid\n"
        "    sys.exit(7 if theirs != ours else 8)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7\n"
        "guard.decode(data, 'a')\n"
        "assert guard.shared_pool()._idle[0]._process.pid == ours\n"
    )
    words = [sys.executable, "-W", "error", "-c", program, good]
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, "")


# Lies


def framed(text: bytes, body: bytes = b"") -> str:
    """A statement that says a header as it is."""
    return f"sink.write({len(text).to_bytes(4, 'big') + text + body!r}); sink.flush()"


def changed(**values: object) -> str:
    return f"nan = float('nan'); say({ {**FINE, **values} }, b'ab')"


def beside(**values: object) -> str:
    return changed(metadata={**FINE["metadata"], **values})


LIES = {
    "garbage": "sink.write(b'hello, this is no header' * 9); sink.flush()",
    "endless header": "sink.write(b'\\xff' * 99999); sink.flush()",
    "a pickle": framed(b"\x80\x04cos\nsystem\n(S'true'\ntR."),
    "no JSON": framed(b"{'ready': yes}"),
    "no UTF-8": framed(b'{"reason": "\xff"}'),
    "no object": framed(b"[1, 2]"),
    "deep nesting": framed(b"[" * 16_000),
    "long number": framed(b'{"bytes": ' + b"9" * 9000 + b"}"),
    "nothing in it": "say({})",
    "unknown reason": "say({'reason': 'because', 'text': 'x'})",
    "reason of a wrong type": "say({'reason': ['corrupt'], 'text': 'x'})",
    "terminal codes": "say({'reason': 'corrupt', 'text': '\\x1b[31m; x'})",
    "long text": "say({'reason': 'corrupt', 'text': 'x' * 1001})",
    "number for a text": "say({'reason': 'corrupt', 'text': 7})",
    "too many pixels": changed(shape=[60_000, 60_000], bytes=3_600_000_000),
    "too long a side": changed(shape=[70_000, 1], bytes=70_000),
    "negative sides": changed(shape=[-1, -2]),
    "no pixels": changed(shape=[0, 2], bytes=0),
    "true for a side": changed(shape=[True, 2]),
    "fractions": changed(shape=[1.0, 2]),
    "text for a shape": changed(shape="12"),
    "one side": changed(shape=[2]),
    "four channels": changed(shape=[1, 2, 4], bytes=8),
    "other bytes": changed(bytes=3),
    "unknown format": changed(format="EPS"),
    "unknown mode": changed(mode="XYZ"),
    "list for a mode": changed(mode=["L"]),
    "notes with codes": changed(notes=["\x1b]0;title\x07"]),
    "endless notes": changed(notes=["x"] * 21),
    "text for notes": changed(notes="degraded"),
    "text for metadata": changed(metadata="none"),
    "unknown metadata": beside(gps="here"),
    "long maker": beside(make="x" * 65),
    "maker with codes": beside(make="\x1b[31mAcme"),
    "number for a camera": beside(model=7),
    "free text for a date": beside(date="a payload of any length"),
    "resolution without end": beside(dpi=[1e9, 1e9]),
    "resolution of nothing": beside(dpi=[float("nan"), 72.0]),
    "three resolutions": beside(dpi=[72.0, 72.0, 72.0]),
    "an end without a word": "sys.exit(0)",
    "an end in the middle": "sink.write(b'\\0\\0\\0\\x09{'); sink.flush(); sys.exit(0)",
    "silence": "os.close(1); signal.pause()",
}


@pytest.mark.fault("F08")
@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_nonsense_from_a_worker_counts_as_a_crash(lie: str, mine) -> None:
    with Pool(1, program=lean(lie)) as pool:
        assert refusal(pool, b"data") == Reason.DECODE_CRASH
        assert mine() == set()  # it is not asked again


def test_the_program_of_these_lies_is_believed_when_it_tells_the_truth(mine) -> None:
    with Pool(1, program=lean(changed())) as pool:
        picture = pool.decode(b"data", "a")
        assert (picture.pixels.tolist(), picture.format, picture.mode) == ([[97, 98]], "PNG", "L")
        assert len(mine()) == 1


def test_a_worker_that_answers_before_it_is_asked_is_not_asked_again(mine) -> None:
    with Pool(1, program=lean(f"{changed()}; say({FINE}, b'xy')")) as pool:
        assert pool.decode(b"data", "a").pixels.tolist() == [[97, 98]]
        first = mine()
        until(lambda: not (pool._idle and pool._idle[-1].is_silent))
        assert pool.decode(b"data", "b").pixels.tolist() == [[97, 98]]
        assert not mine() & first


@pytest.mark.parametrize(
    "size", [[1], [1, 2, 3], [-1, 2], ["1", 2], None, [9000, 9000], [70_000, 1]], ids=str
)
def test_a_size_that_cannot_be_counts_as_a_crash(size: object) -> None:
    with Pool(1, program=lean(f"say({{'size': {size}, 'bytes': 0}})")) as pool:
        with pytest.raises(InputError) as caught:
            pool.declared_size(b"data", "a")
        assert caught.value.reason == Reason.DECODE_CRASH


def test_a_worker_that_drips_is_ended_when_its_time_is_over() -> None:
    drip = "import time\nwhile True: sink.write(b'\\0'); sink.flush(); time.sleep(0.2)"
    slow = f"say({ {**FINE, 'shape': [100, 100], 'bytes': 10_000} })\n{drip}"
    with Pool(1, program=lean(slow)) as pool:
        began = time.monotonic()
        assert refusal(pool, b"data", Limits(seconds=1)) == Reason.DECODE_TIMEOUT
        assert time.monotonic() - began < 30  # three, on a free core


def test_a_worker_that_does_not_read_is_ended_when_its_time_is_over() -> None:
    with Pool(1, program=("-I", "-S", "-c", LEAN.partition("while")[0] + "signal.pause()")) as pool:
        assert refusal(pool, bytes(8 * MIB), Limits(seconds=1)) == Reason.DECODE_TIMEOUT


# Workers that cannot be started


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (("-c", "raise SystemExit(3)"), "ended with code 3"),
        (("-c", "print('no header, and no end of it either' * 1000)"), "before it was ready"),
        (("-c", "import os; os.kill(os.getpid(), 9)"), "ended with code -9"),
    ],
    ids=["missing module", "other program", "killed"],
)
def test_a_worker_that_does_not_start_ends_the_run_and_not_the_image(program, said, mine) -> None:
    with Pool(2, program=program) as pool, pytest.raises(ZipcliError, match=said) as caught:
        pool.decode(GOOD, "a")
    assert not isinstance(caught.value, InputError)
    assert caught.value.exit_code == ExitCode.BUG
    assert mine() == set()


def test_a_missing_interpreter_is_told(monkeypatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with Pool(2) as pool:
        pool.warm(2)
        for _ in range(2):
            with pytest.raises(ZipcliError, match=r"no process can be started.+No such file"):
                pool.decode(GOOD, "a")


def test_all_threads_learn_that_no_worker_can_be_started(monkeypatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with Pool(2) as pool, ThreadPoolExecutor(6) as threads:
        waiting = [threads.submit(pool.decode, GOOD, "a") for _ in range(30)]
        for future in waiting:
            assert isinstance(future.exception(PATIENCE), ZipcliError)


def test_one_worker_does_the_work_where_a_second_cannot_be_started(mine, monkeypatch) -> None:
    with Pool(2) as pool, ThreadPoolExecutor(4) as threads:
        pool.decode(GOOD, "a")

        def refuse(*_: object, **__: object) -> None:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

        monkeypatch.setattr(subprocess, "Popen", refuse)
        results = [threads.submit(outcome, pool.decode, GOOD) for _ in range(20)]
        expected = outcome(load.decode, GOOD)
        assert all(result.result(PATIENCE) == expected for result in results)
        assert len(mine()) == 1
