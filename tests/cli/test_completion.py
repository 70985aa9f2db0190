"""zipcli completion: what shells are told, asked of the shells themselves."""

import os
import pty
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from select import select

import click
import pytest
from cli.shell import ENVIRONMENT, PATIENCE, invoke

from zipcli.cli.completion import SHELLS
from zipcli.cli.main import COMMANDS, cli
from zipcli.cli.options import Name
from zipcli.config import FITS, FORMATS, METHOD_SETTINGS

CASES = {
    "a transform": (["purify", "-t", "bl"], {"blur"}),
    "a model": (["models", "pull", "openai"], {"openai-256", "openai-512"}),
    "a command for man": (["man", "pur"], {"purify"}),
    "commands": (["p"], {"purify"}),
    "options": (["purify", "--on-c"], {"--on-collision"}),
    "method": (["purify", "--method", ""], {"auto", *METHOD_SETTINGS}),
    "fit": (["purify", "in", "out", "--fit", ""], set(FITS)),
    "format": (["purify", "--format", "p"], {name for name in FORMATS if name.startswith("p")}),
    "models": (["models", "pu"], {"pull"}),
    "shells": (["completion", ""], set(SHELLS)),
}


@pytest.fixture(scope="module")
def zipcli(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which `zipcli` is a command, and nothing of this user's shell is read."""
    folder = tmp_path_factory.mktemp("bin")
    program = folder / "zipcli"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m zipcli "$@"\n')
    program.chmod(0o755)
    home = str(tmp_path_factory.mktemp("home"))
    return {**ENVIRONMENT, "PATH": f"{folder}:{os.environ['PATH']}", "HOME": home, "TERM": "xterm"}


def ask(shell: str, program: str, env: dict[str, str]) -> list[str]:
    """What a program in a shell prints, line by line."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    words = {"bash": ["bash", "--norc", "-c"], "zsh": ["zsh", "-f", "-c"], "fish": ["fish", "-c"]}[shell]
    done = subprocess.run([*words, program], env=env, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.mark.parametrize(("words", "expected"), CASES.values(), ids=CASES)
def test_bash_completes(zipcli: dict[str, str], words: list[str], expected: set[str]) -> None:
    typed = " ".join(f"'{word}'" for word in ["zipcli", *words])
    program = (
        'source <(zipcli completion bash)\ncomplete -p zipcli | grep -q "_zipcli_completion" || exit 9\n'
        f"COMP_WORDS=({typed}); COMP_CWORD={len(words)}\n"
        '_zipcli_completion zipcli\nprintf "%s\\n" "${COMPREPLY[@]}"'
    )
    assert set(ask("bash", program, zipcli)) == expected


def test_bash_completes_every_command_and_every_option(zipcli: dict[str, str]) -> None:
    program = (
        "source <(zipcli completion bash)\nCOMP_WORDS=(zipcli {}); COMP_CWORD={}\n"
        '_zipcli_completion zipcli\nprintf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    assert set(ask("bash", program.format("''", 1), zipcli)) == set(COMMANDS)
    command = cli.get_command(click.Context(cli), "purify")
    assert command is not None
    names = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
    long_names = {name for name in names if name.startswith("--")}
    assert set(ask("bash", program.format("purify --", 2), zipcli)) == {*long_names, "--help"}


def test_bash_is_told_that_folders_are_files(zipcli: dict[str, str]) -> None:
    program = "COMP_WORDS='zipcli purify pho' COMP_CWORD=2 _ZIPCLI_COMPLETE=bash_complete zipcli"
    assert ask("bash", program, zipcli) == ["file,pho"]


@pytest.mark.parametrize(
    "words", [["nonsense", ""], ["models", "nonsense", ""], ["purify", "--nonsense", ""]]
)
def test_a_slip_before_the_cursor_is_no_error(zipcli: dict[str, str], words: list[str]) -> None:
    typed = " ".join(["zipcli", *words])
    program = f"COMP_WORDS='{typed}' COMP_CWORD={len(words)} _ZIPCLI_COMPLETE=bash_complete zipcli"
    ask("bash", program, zipcli)  # which wants an empty stderr


@pytest.mark.parametrize(("words", "expected"), CASES.values(), ids=CASES)
def test_fish_completes(zipcli: dict[str, str], words: list[str], expected: set[str]) -> None:
    program = f"zipcli completion fish | source\ncomplete -C 'zipcli {' '.join(words)}'"
    assert {line.split("\t")[0] for line in ask("fish", program, zipcli)} == expected


def test_zsh_completes_at_a_prompt(zipcli: dict[str, str]) -> None:
    """Completion needs zsh's line editor, and that needs a terminal."""
    if shutil.which("zsh") is None:
        pytest.skip("zsh is not installed")
    typed = "zipcli purify --meth\tnulls\t --on-coll\tapp\t"
    start = (
        "autoload -Uz compinit && compinit -u -D; PS1='> '; eval \"$(zipcli completion zsh)\"; echo re''ady\n"
    )
    shown = at_a_prompt(["zsh", "-f", "-i"], start, typed, zipcli)
    assert "--method nullspace --on-collision append" in shown


def at_a_prompt(words: list[str], start: str, typed: str, env: dict[str, str]) -> str:
    """Type into an interactive shell, wait after each tab, and return the line as the shell then has it."""
    master, slave = pty.openpty()
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), slave)
    with subprocess.Popen(words, env={**env, "COLUMNS": "200"}, start_new_session=True, **streams) as shell:
        os.close(slave)
        try:
            os.write(master, start.encode())
            wait_for(master, "ready")
            for part in typed.split("\t")[:-1]:
                os.write(master, part.encode() + b"\t")
                wait_for(master, "")
            os.write(master, b"\x01: '\x05'\n")  # the line becomes the argument of what does nothing
            os.write(master, b"fc -ln -1 | sed 's/^/line: /'\n")
            shown = wait_for(master, "line: :")
            return shown[shown.index("line: :") :]
        finally:
            shell.kill()
            os.close(master)


def wait_for(master: int, text: str) -> str:
    """Read until a text was shown and then nothing more for a while."""
    shown, began = "", time.monotonic()
    while time.monotonic() - began < PATIENCE:
        quiet = not select([master], [], [], 1.0)[0]
        if quiet and text in shown and shown:
            return shown
        if not quiet:
            with suppress(OSError):
                shown += os.read(master, 65_536).decode(errors="replace")
    raise AssertionError(f"{text!r} was not shown: {shown!r}")


@pytest.mark.parametrize("shell", SHELLS)
def test_the_shell_can_read_the_script(zipcli: dict[str, str], shell: str, tmp_path: Path) -> None:
    (tmp_path / "script").write_text(invoke("completion", shell).stdout)
    assert (tmp_path / "script").stat().st_size > 200
    check = {"bash": "bash -n", "zsh": "zsh -n", "fish": "fish --no-execute"}[shell]
    assert ask(shell, f"{check} {tmp_path / 'script'}", zipcli) == []


def test_an_unknown_shell_exits_2_and_suggests_one() -> None:
    result = invoke("completion", "zhs")
    assert result.exit_code == 2
    assert "'zsh'" in result.stderr


def test_our_own_type_of_names_completes() -> None:
    parameter = click.Option(["--x"], type=Name("fruit", ["apple", "avocado", "pear"]))
    found = parameter.type.shell_complete(click.Context(cli), parameter, "a")
    assert [item.value for item in found] == ["apple", "avocado"]


def test_completing_imports_no_heavy_library() -> None:
    program = (
        "import sys\nfrom zipcli.cli.main import cli\n"
        "try:\n    cli([], prog_name='zipcli')\nexcept SystemExit as e:\n    assert e.code == 0\n"
        "print(*sorted({'torch', 'numpy', 'PIL', 'rich'} & sys.modules.keys()), file=sys.stderr)\n"
    )
    env = {"_ZIPCLI_COMPLETE": "bash_complete", "COMP_WORDS": "zipcli purify --method z", "COMP_CWORD": "3"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=ENVIRONMENT | env, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("plain,zip\n", "\n")
