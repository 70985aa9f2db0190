"""--help, --version and what follows a slip of the pen."""

import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from cli.shell import COMMAND, ENVIRONMENT, ROOT, invoke, picture

from zipcli import __version__
from zipcli.cli.main import COMMANDS, cli
from zipcli.errors import ExitCode

MODELS = ("list", "pull", "info", "verify", "convert", "path")
HELPS = [
    ["--help"],
    ["--version"],
    *([name, "--help"] for name in COMMANDS),
    *(["models", name, "--help"] for name in MODELS),
]
SECONDS = 0.3
"""How long a command may take to explain itself."""

PYTHONS = 20
"""On a slower machine: as long as this many starts of Python with nothing to do."""


def commands() -> list[click.Command]:
    context = click.Context(cli)
    outer = [command for name in COMMANDS if (command := cli.get_command(context, name))]
    groups = [command for command in outer if isinstance(command, click.Group)]
    return [*outer, *(inner for group in groups for inner in group.commands.values())]


def options():
    return [
        pytest.param(option, id=f"{command.name} {option.opts[0]}")
        for command in commands()
        for option in command.params
        if isinstance(option, click.Option)
    ]


@pytest.mark.timed
@pytest.mark.parametrize("words", HELPS, ids=" ".join)
def test_help_answers_in_a_third_of_a_second(words: list[str]) -> None:
    took, bare = [], []
    for _ in range(40):  # other programs may have the processor
        bare.append(timed(sys.executable, "-c", "print()")[0])
        seconds, done = timed(*COMMAND, *words)
        took.append(seconds)
        assert done.returncode == 0
        assert done.stdout
        assert not done.stderr
        if min(took) <= max(SECONDS, PYTHONS * min(bare)):
            return
    pytest.fail(f"it takes {min(took):.2f} seconds and more, and Python alone {min(bare):.3f}")


def timed(*words: str) -> "tuple[float, subprocess.CompletedProcess[bytes]]":
    began = time.monotonic()
    done = subprocess.run(words, env=ENVIRONMENT, capture_output=True)
    return time.monotonic() - began, done


@pytest.mark.parametrize(
    "words",
    [*HELPS, ["purify"], ["purify", "in", "out", "--fit", "tle"], ["purify", "in", "out", "--method", "zp"]],
    ids=" ".join,
)
def test_help_and_slips_import_no_heavy_library(words: list[str]) -> None:
    program = (
        "import sys\n"
        "from zipcli.cli.main import cli\n"
        "try:\n"
        f"    cli({words!r}, prog_name='zipcli')\n"
        "except SystemExit:\n"
        "    pass\n"
        "print(*sorted({'torch', 'numpy', 'PIL', 'rich'} & sys.modules.keys()), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True
    )
    assert done.stderr.splitlines()[-1] == ""


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_what_it_does(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command
    assert command.help
    line = next(line for line in invoke("--help").stdout.splitlines() if line.split()[:1] == [name])
    assert line.strip() != name
    assert invoke(name, "-h").stdout == invoke(name, "--help").stdout


@pytest.mark.parametrize("option", options())
def test_every_option_has_help(option: click.Option) -> None:
    assert option.help
    assert option.help.strip().endswith((".", "]"))
    assert not option.hidden


def test_the_version_is_that_of_the_package() -> None:
    result = invoke("--version")
    assert result.exit_code == 0
    assert __version__ in result.stdout.split()[-1]


@pytest.mark.parametrize("code", ExitCode, ids=lambda code: code.name)
def test_the_help_lists_every_exit_code(code: ExitCode) -> None:
    words = invoke("--help").stdout.replace(",", " ").replace(";", " ").split()
    assert str(int(code)) in words[words.index("codes:") :]


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["purfy"], "purify"),
        (["models", "pul"], "pull"),
        (["models", "convert", "a.pt", "b.safetensors", "--like", "openai256"], "openai-256"),
        (["purify", "in", "out", "--overwrit"], "--overwrite"),
        (["purify", "in", "out", "--transfrom", "gray"], "--transform"),
        (["purify", "in", "out", "--transform", "blurr:4"], "blur"),
        (["purify", "in", "out", "--transform", "blur:2+grey"], "gray"),
        (["purify", "in", "out", "--method", "blr"], "blur"),
        (["purify", "in", "out", "--grid", "offical"], "official"),
        (["purify", "in", "out", "--fit", "centercrop"], "center-crop"),
        (["purify", "in", "out", "--variant", "paper-alg3"], "paper-alg2"),
        (["purify", "in", "out", "--dtype", "float3"], "float32"),
        (["purify", "in", "out", "--format", "jpgg"], "jpg"),
        (["purify", "in", "out", "--metadata", "saf"], "safe"),
        (["purify", "in", "out", "--detector", "nonne"], "none"),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else None,
)
def test_a_slip_gets_the_nearest_name(here: Path, words: list[str], meant: str) -> None:
    picture(here / "in" / "a.png")
    result = invoke(*words)
    assert result.exit_code == ExitCode.USAGE
    guess = result.stderr.partition("Did you mean")[2].partition("?")[0]
    assert meant in guess
    assert not (here / "out").exists()


def test_an_unknown_model_gets_the_nearest_name(here: Path) -> None:
    picture(here / "in" / "a.png")
    result = invoke("purify", "in", "out", "--model", "bultin")
    assert result.exit_code == ExitCode.MODEL
    assert "Did you mean 'builtin'?" in result.stderr
    assert ".safetensors" in result.stderr
    assert not (here / "out").exists()
