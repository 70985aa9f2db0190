"""zipcli man: manual pages, made from the same words as --help."""

import re
from collections.abc import Iterable, Iterator, Sequence

import click

from zipcli import __version__
from zipcli.errors import ExitCode

EXIT_CODES = {
    ExitCode.DONE: "All done.",
    ExitCode.BUG: "A bug in zipcli; a traceback is shown.",
    ExitCode.USAGE: "Wrong usage, or refused; nothing was written.",
    ExitCode.SOME_FAILED: "Some images failed; the rest were written.",
    ExitCode.MODEL: "A model or classifier is missing, damaged or gave no usable answer.",
    ExitCode.OUTPUT: "The output cannot be written.",
    ExitCode.LOCKED: "Another run owns the output folder.",
    ExitCode.HANGUP: "Stopped by SIGHUP.",
    ExitCode.INTERRUPTED: "Stopped by SIGINT (Ctrl-C).",
    ExitCode.PIPE_CLOSED: "Nobody reads standard output any more.",
    ExitCode.TERMINATED: "Stopped by SIGTERM.",
}

ENVIRONMENT = {
    "ZIPCLI_CACHE": "Folder for models where the Hub's cache cannot be written; ~/.cache/zipcli by default.",
    "ZIPCLI_HUB_PATIENCE": "Seconds to wait for the Hub before giving up; 60 by default.",
    "ZIPCLI_CLASSIFIER_TOKEN": "Sent to a classifier that is an HTTP service, as a bearer token.",
    "HF_HOME, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE": "As for every program that uses the Hugging Face Hub.",
    "NO_COLOR": "Draw the progress bar without colours.",
}


def _beginnings(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """The commands that begin as the user has begun."""
    root = ctx.find_root()
    names = root.command.list_commands(root) if isinstance(root.command, click.Group) else []
    return [name for name in names if name.startswith(incomplete)]


@click.command(
    epilog="\b\nExamples:\n"
    "  zipcli man | man -l -\n"
    "  zipcli man models pull > ~/.local/share/man/man1/zipcli-models-pull.1"
)
@click.argument("words", nargs=-1, metavar="[COMMAND]", shell_complete=_beginnings)
@click.pass_context
def man(ctx: click.Context, /, words: tuple[str, ...]) -> int:
    """Print the manual page of zipcli, or of one of its commands, as roff."""
    click.echo(page(_inner(ctx.find_root().command, words)))
    return 0


def page(ctx: click.Context) -> str:
    """The manual page of a command.

    Args:
        ctx: A context of the command, within those of the groups that it belongs to.
    """
    command, name = ctx.command, ctx.command_path.replace(" ", "-")
    lines = [
        f'.TH "{_text(name.upper())}" "1" "" "zipcli {_text(__version__)}" "zipcli manual"',
        ".ad l",  # a narrow terminal leaves no room to adjust
        ".SH NAME",
        _text(f"{name} - {command.get_short_help_str(200)}"),
        ".SH SYNOPSIS",
        f".B {_text(ctx.command_path)}",
        *(_text(piece) for piece in command.collect_usage_pieces(ctx)),
        ".SH DESCRIPTION",
        *_paragraphs(command.help or ""),
    ]
    if isinstance(command, click.Group):
        lines += [".SH COMMANDS", *_commands(command, ctx)]
    lines += [".SH OPTIONS", *_options(ctx)]
    lines += [".SH EXIT STATUS", *_table((str(int(code)), words) for code, words in EXIT_CODES.items())]
    lines += [".SH ENVIRONMENT", *_environment(ctx), *_table(ENVIRONMENT.items())]
    lines += _examples(command.epilog or "")
    lines += [".SH SEE ALSO", _text(", ".join(f"{other}(1)" for other in _related(ctx)))]
    return "\n".join(lines)


def _inner(root: click.Command, words: Sequence[str]) -> click.Context:
    """The context of the command that the words name; a slip fails with a suggestion."""
    ctx = click.Context(root, info_name="zipcli")
    for word in words:
        if not isinstance(ctx.command, click.Group):
            raise click.UsageError(f"{ctx.command_path} has no commands; leave {word!r} out")
        command = ctx.command.get_command(ctx, word)
        assert command is not None  # our groups fail on an unknown name
        ctx = click.Context(command, info_name=word, parent=ctx)
    return ctx


def _commands(group: click.Group, ctx: click.Context) -> Iterator[str]:
    names = group.list_commands(ctx)
    inner = ((name, group.get_command(ctx, name)) for name in names)
    return _table((name, command.get_short_help_str(200)) for name, command in inner if command)


def _options(ctx: click.Context) -> Iterator[str]:
    for option in ctx.command.get_params(ctx):
        record = option.get_help_record(ctx)
        if isinstance(option, click.Option) and record is not None:
            names = re.sub(r"(?<![^ /,])(\\-[\w\\-]+)", r"\\fB\1\\fR", _text(record[0]))
            yield from (".TP", names.replace("|", r"|\:"), _text(record[1]))  # a line may end there


def _environment(ctx: click.Context) -> Iterator[str]:
    """How a variable sets an option, with the first option of this command that has one."""
    for option in ctx.command.params:
        if isinstance(option, click.Option) and option.envvar:
            long_name = max(option.opts, key=len)
            yield _text(
                f"Every option can be set by a variable, such as {long_name} by {option.envvar}; "
                "what is typed wins."
            )
            return


def _related(ctx: click.Context) -> Iterator[str]:
    """Pages of the group around a command, and of the commands in it."""
    if ctx.parent is not None:
        yield ctx.parent.command_path.replace(" ", "-")
    if isinstance(ctx.command, click.Group):
        for name in ctx.command.list_commands(ctx):
            yield f"{ctx.command_path} {name}".replace(" ", "-")


def _table(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    for term, words in rows:
        yield from (".TP", f"\\fB{_text(term)}\\fR", _text(words))


def _paragraphs(text: str) -> Iterator[str]:
    for number, paragraph in enumerate(re.split(r"\n\s*\n", text.strip())):
        if number:
            yield ".PP"
        yield _text(" ".join(paragraph.split()))


def _examples(epilog: str) -> Iterator[str]:
    """The epilog: a line of heading, and commands that stay as they are."""
    heading, *commands = epilog.removeprefix("\b\n").splitlines() or [""]
    if commands:
        yield from (f".SH {_text(heading.rstrip(':').upper())}", ".EX", *map(_text, commands), ".EE")


def _text(text: str) -> str:
    """Text that roff shows as it is: nothing is a command, a minus is no hyphen, and all is ASCII."""
    escaped = text.replace("\\", r"\e").replace("-", r"\-").replace("'", r"\(aq").replace("`", r"\(ga")
    escaped = escaped.replace("^", r"\(ha").replace("~", r"\(ti").replace('"', r"\(dq")
    escaped = "".join(c if c.isascii() else rf"\[u{ord(c):04X}]" for c in escaped)
    return rf"\&{escaped}" if escaped.startswith(".") else escaped
