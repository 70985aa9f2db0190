"""zipcli man: roff that groff takes without a warning, and that says all that --help says."""

import shutil
import subprocess

import click
import pytest
from cli.shell import PATIENCE, invoke

from zipcli.cli.main import COMMANDS, cli
from zipcli.cli.manual import EXIT_CODES, _text
from zipcli.errors import ExitCode


def pages() -> list[list[str]]:
    """The words of every command, and none for zipcli itself."""
    root = click.Context(cli)
    found: list[list[str]] = [[]]
    for name in COMMANDS:
        command = cli.get_command(root, name)
        found.append([name])
        if isinstance(command, click.Group):
            found += [[name, inner] for inner in command.list_commands(root)]
    return found


def command_of(words: list[str]) -> click.Command:
    command: click.Command = cli
    for word in words:
        assert isinstance(command, click.Group)
        inner = command.get_command(click.Context(command), word)
        assert inner is not None
        command = inner
    return command


def rendered(words: list[str], width: int = 5000) -> str:
    """A page as it is read, in lines so long that no word is split."""
    if shutil.which("groff") is None:
        pytest.skip("groff is not installed")
    result = invoke("man", *words)
    assert result.exit_code == 0, result.stderr
    done = subprocess.run(
        ["groff", "-man", "-ww", "-Tutf8", "-P-c", "-P-bou", f"-rLL={width}n", "-rHY=0"],
        input=result.stdout, capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stderr == ""
    return done.stdout


def squeezed(text: str) -> str:
    """Text without the spaces that filling a line adds."""
    return " ".join(text.split())


@pytest.mark.parametrize("words", pages(), ids=lambda words: " ".join(words) or "zipcli")
def test_a_page_has_every_option_with_its_help_and_default(words: list[str]) -> None:
    command = command_of(words)
    ctx = click.Context(command, info_name=words[-1] if words else "zipcli")
    page = squeezed(rendered(words))
    for option in command.get_params(ctx):
        if isinstance(option, click.Option):
            record = option.get_help_record(ctx)
            assert record is not None
            assert squeezed(" ".join(record)) in page
    for heading in ("NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "ENVIRONMENT", "SEE ALSO"):
        assert f" {heading} " in page
    assert squeezed((command.help or "").replace("\b", "")) in page
    if command.epilog:
        assert squeezed(command.epilog.replace("\b", "").partition(":")[2]) in page
    if isinstance(command, click.Group):
        assert all(f"{'-'.join(['zipcli', *words, name])}(1)" in page for name in command.list_commands(ctx))


@pytest.mark.parametrize("width", [60, 80])
def test_a_page_fits_a_terminal_of_any_width(width: int) -> None:
    rendered(["purify"], width)


def test_a_page_says_what_every_exit_code_means() -> None:
    assert set(EXIT_CODES) == set(ExitCode)
    page = squeezed(rendered(["detect"]))
    for code, words in EXIT_CODES.items():
        assert f" {int(code)} {words}" in page


def test_a_page_names_the_variable_of_an_option() -> None:
    assert "--transform by ZIPCLI_PURIFY_TRANSFORM;" in squeezed(rendered(["purify"]))
    assert "by ZIPCLI_MODELS_PULL_" in squeezed(rendered(["models", "pull"]))


@pytest.mark.parametrize(
    "text", [".TH x", "'br", "a\\fBb\\n(.x", 'quo"te', "--dash-ed", "caf\u00e9 \u2192 \u4e2d", "`^~'"]
)
def test_any_text_is_shown_as_it_is(text: str) -> None:
    if shutil.which("groff") is None:
        pytest.skip("groff is not installed")
    page = f".TH X 1\n.SH Y\n{_text(text)}\n"
    assert page.isascii()
    done = subprocess.run(
        ["groff", "-man", "-ww", "-Tutf8", "-P-c", "-P-bou"], input=page, capture_output=True, text=True
    )
    assert done.stderr == ""
    assert f"       {text}\n" in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [(["purfy"], "'purify'"), (["models", "pul"], "'pull'"), (["purify", "x"], "no commands")],
)
def test_a_page_that_is_not_there_exits_2(words: list[str], said: str) -> None:
    result = invoke("man", *words)
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stdout == ""
