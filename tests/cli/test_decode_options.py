"""zipcli purify and detect: what they refuse to decode, and the options that say so."""

import io
from pathlib import Path

import pytest
from cli.shell import BLUR, images, invoke, json_lines, noise, picture, pictures, pixels, run, tree
from PIL import Image
from scan_bomb import scan_bomb

BOMB = scan_bomb()


def animation(colours: tuple[str, ...] = ("red", "green")) -> bytes:
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), colour) for colour in colours]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def half(format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    noise((32, 32)).save(buffer, format)
    return buffer.getvalue()[: len(buffer.getvalue()) * 3 // 4]


@pytest.mark.fault("F09", "F73")
def test_a_file_that_takes_for_ever_costs_one_image(here: Path) -> None:
    pictures(here / "in", 4)
    (here / "in" / "00-slow.jpg").write_bytes(BOMB)
    result = run("purify", "in", "out", "--json", "--decode-seconds", "1", *BLUR, cwd=here)
    assert result.returncode == 3
    found = images(result.stdout)
    slow = found.pop("00-slow.jpg")
    assert (slow["state"], slow["reason"]) == ("failed", "decode_timeout")
    assert slow["message"].startswith("00-slow.jpg: ")
    assert "--decode-seconds" in slow["message"]
    assert {line["state"] for line in found.values()} == {"done"}
    assert sorted(tree(here / "out")) == ["00.png", "02.png", "sub/01.png", "sub/03.png"]


@pytest.mark.fault("F09", "F73")
def test_detect_gives_up_on_such_a_file_too(here: Path) -> None:
    pictures(here / "in", 2)
    (here / "in" / "slow.jpg").write_bytes(BOMB)
    result = invoke("detect", "in", "--detector", "frequency", "--json", "--decode-seconds", "1")
    assert result.exit_code == 3
    found = images(result.stdout)
    assert found["slow.jpg"]["reason"] == "decode_timeout"
    assert "score" in found["00.png"]


@pytest.mark.fault("F10")
def test_a_file_that_takes_too_much_memory_costs_one_image(here: Path) -> None:
    picture(here / "in" / "a.png")
    Image.new("RGB", (5000, 5000)).save(here / "in" / "b.png")
    result = invoke("purify", "in", "out", "--json", "--decode-memory", "32", *BLUR)
    assert result.exit_code == 3
    line = images(result.stdout)["b.png"]
    assert line["reason"] == "out_of_memory"
    assert "--decode-memory" in line["message"]
    assert sorted(tree(here / "out")) == ["a.png"]


@pytest.mark.fault("F63")
@pytest.mark.parametrize("command", ["purify", "detect"])
@pytest.mark.parametrize(
    ("options", "reason"), [(("--max-pixels", "63"), "bomb_pixels"), (("--max-bytes", "99"), "bomb_bytes")]
)
def test_a_limit_can_be_set_and_is_named_by_the_refusal(
    here: Path, command: str, options: tuple[str, str], reason: str
) -> None:
    picture(here / "in" / "a.png")
    words = ("out", *BLUR) if command == "purify" else ("--detector", "frequency")
    result = invoke(command, "in", *words, "--json", *options)
    assert result.exit_code == 3
    line = images(result.stdout)["a.png"]
    assert line["reason"] == reason
    assert options[0] in line["message"]
    raised = (options[0], "1000000")
    assert invoke(command, "in", *words, *raised).exit_code == 0


@pytest.mark.fault("F65")
def test_the_first_frame_can_be_purified(here: Path) -> None:
    (here / "in").mkdir()
    (here / "in" / "a.gif").write_bytes(animation())
    refused = invoke("purify", "in", "out", *BLUR)
    assert refused.exit_code == 3
    assert "--frames first" in refused.stderr
    result = invoke("purify", "in", "first", "--json", "--frames", "first", *BLUR)
    assert result.exit_code == 0
    assert "the first of several frames" in images(result.stdout)["a.gif"]["notes"]
    assert (pixels(here / "first" / "a.png") == (255, 0, 0)).all()
    assert invoke("report", "first", "-o", "report.html").exit_code == 0
    assert "cannot be shown" not in (here / "report.html").read_text()


@pytest.mark.fault("F60")
def test_what_is_there_of_a_truncated_file_can_be_purified(here: Path) -> None:
    (here / "in").mkdir()
    (here / "in" / "a.png").write_bytes(half())
    assert invoke("purify", "in", "out", *BLUR).exit_code == 3
    result = invoke("purify", "in", "degraded", "--json", "--allow-truncated", *BLUR)
    assert result.exit_code == 0
    assert any(note.startswith("degraded:") for note in images(result.stdout)["a.png"]["notes"])


@pytest.mark.fault("F58")
def test_a_file_with_the_extension_of_another_format_can_be_refused(here: Path) -> None:
    jpeg = picture(here / "in" / "a.jpg")
    jpeg.rename(here / "in" / "a.png")
    assert invoke("purify", "in", "out", *BLUR).exit_code == 0
    result = invoke("purify", "in", "strict", "--json", "--strict-ext", *BLUR)
    assert result.exit_code == 3
    assert images(result.stdout)["a.png"]["reason"] == "extension_mismatch"


def test_the_record_names_what_decides_outputs_and_only_where_it_was_chosen(here: Path) -> None:
    picture(here / "in" / "a.png")
    limits = ("--max-pixels", "9999", "--max-bytes", "9999", "--decode-seconds", "9", "--decode-memory", "99")
    settings = {}
    for name, options in {
        "none": (),
        "limits": (*limits, "--strict-ext"),
        "frames": ("--frames", "first"),
        "truncated": ("--allow-truncated",),
    }.items():
        result = invoke("purify", "in", name, "--json", *options, *BLUR)
        settings[name] = json_lines(result.stdout)[0]["settings"]
    assert settings["limits"] == settings["none"]
    assert settings["frames"] == settings["none"] | {"frames": "first"}
    assert settings["truncated"] == settings["none"] | {"allow_truncated": True}


@pytest.mark.fault("F09", "F73")
def test_the_pipe_has_limits_too(here: Path) -> None:
    slow = run("purify", "-", "-", "--decode-seconds", "1", *BLUR, cwd=here, input=BOMB)
    assert (slow.returncode, slow.stdout) == (3, b"")
    assert slow.stderr.startswith(b"Error: standard input: ")
    assert b"--decode-seconds" in slow.stderr
    first = invoke("purify", "-", "-", "--frames", "first", *BLUR, input=animation())
    assert first.exit_code == 0
    assert Image.open(io.BytesIO(first.stdout_bytes)).getpixel((0, 0)) == (255, 0, 0)
    assert invoke("purify", "-", "-", "--strict-ext", *BLUR, input=animation()).exit_code == 2


@pytest.mark.fault("F08")
def test_a_run_ends_when_no_worker_can_be_started(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zipcli.images import guard

    picture(here / "in" / "a.png")
    monkeypatch.setattr(guard, "_shared", guard.Pool(program=("-c", "raise SystemExit(3)")))
    result = invoke("purify", "in", "out", *BLUR)
    assert result.exit_code == 1
    assert "Error: no process can be started that decodes images" in result.stderr
    assert "Traceback" not in result.stderr
    assert tree(here / "out") == {}
