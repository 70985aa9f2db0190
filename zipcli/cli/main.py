"""The command group, and the one place where errors become exit codes."""

import errno
import json
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

from zipcli import __version__
from zipcli.cli.console import printable, replace_closed_streams
from zipcli.errors import ExitCode, StoppedError, ZipcliError
from zipcli.registry import unknown_name
from zipcli.system import keep_freed_memory, spin_less

COMMANDS = {
    "purify": "zipcli.cli.purify:purify",
    "attack": "zipcli.cli.attack:attack",
    "evaluate": "zipcli.cli.evaluate:evaluate",
    "detect": "zipcli.cli.detect:detect",
    "report": "zipcli.cli.report:report",
    "verify": "zipcli.cli.inspect:verify",
    "status": "zipcli.cli.inspect:status",
    "merge": "zipcli.cli.inspect:merge",
    "train": "zipcli.cli.train:train",
    "bench": "zipcli.cli.bench:bench",
    "doctor": "zipcli.cli.doctor:doctor",
    "models": "zipcli.cli.models:models",
    "completion": "zipcli.cli.completion:completion",
    "man": "zipcli.cli.manual:man",
}


class Commands(click.Group):
    """A group that imports a command when it is used, and turns errors into our exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List the commands in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command, and let the environment set its options."""
        if cmd_name not in COMMANDS:
            if ctx.resilient_parsing:  # a shell completes what follows a slip
                return None
            ctx.fail(unknown_name("command", cmd_name, COMMANDS))
        module, attribute = COMMANDS[cmd_name].split(":")
        command: click.Command = getattr(import_module(module), attribute)
        _name_environment(command, f"ZIPCLI_{cmd_name}")
        return command

    def main(
        self, args: Sequence[str] | None = None, prog_name: str | None = None, *_: Any, **extra: Any
    ) -> Any:
        """Run, and exit with one of `ExitCode`.

        Click's own version turns a closed pipe and Ctrl-C into exit code 1 before we can see them.
        """
        replace_closed_streams()
        keep_freed_memory()
        spin_less()
        words = list(sys.argv[1:] if args is None else args)
        name = prog_name or "zipcli"
        self._main_shell_completion(extra, name)
        as_json = "--json" in words
        try:
            code = self._run(name, words, extra)
            sys.stdout.flush()
        except click.ClickException as e:
            if as_json:
                _say_error(e.format_message(), ExitCode.USAGE, as_json=True)
            else:
                e.show(sys.stderr)
            code = ExitCode.USAGE
        except (click.Abort, KeyboardInterrupt):
            code = ExitCode.INTERRUPTED
        except BrokenPipeError:
            _abandon_stdout()  # whoever read our output is gone
            code = ExitCode.PIPE_CLOSED
        except ZipcliError as e:
            if isinstance(e, StoppedError) and not as_json:
                click.echo(str(e), err=True)  # asked for: no error
            else:
                _say_error(str(e), e.exit_code, as_json=as_json)
            code = e.exit_code
        except Exception as e:
            if isinstance(e, OSError) and e.errno == errno.ENOSPC:  # standard output is a file on a full disk
                _abandon_stdout()
                _say_error("standard output: no space left on the disk", ExitCode.OUTPUT, as_json=as_json)
                sys.exit(int(ExitCode.OUTPUT))
            # The last line of defence: a bug, shown in full.
            if as_json:
                _say_error(f"{type(e).__name__}: {e}", ExitCode.BUG, as_json=True)
            traceback.print_exc()
            click.echo("This is a bug in zipcli; please report it with the lines above.", err=True)
            code = ExitCode.BUG
        sys.exit(int(code or 0))

    def _run(self, name: str, words: list[str], extra: dict[str, Any]) -> int:
        try:
            with self.make_context(name, words, **extra) as ctx:
                return int(self.invoke(ctx) or 0)
        except click.exceptions.Exit as e:
            return e.exit_code


def _abandon_stdout() -> None:
    """Send to nowhere what is left for standard output; at exit it would be tried again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _name_environment(command: click.Command, prefix: str) -> None:
    """Let the environment set the options of a command, and of the commands inside it."""
    for option in command.params:
        if isinstance(option, click.Option):
            # Click would name it after our argument: ZIPCLI_PURIFY_AS_JSON for --json.
            long_name = max(option.opts, key=len).lstrip("-").replace("-", "_")
            option.envvar = f"{prefix}_{long_name}".upper()
    for name, inner in command.commands.items() if isinstance(command, click.Group) else ():
        _name_environment(inner, f"{prefix}_{name}")


def _say_error(message: str, code: ExitCode, *, as_json: bool) -> None:
    if as_json:
        line = json.dumps({"type": "error", "message": message, "exit_code": int(code)})
    else:
        line = printable(f"Error: {message}")
    click.echo(line, err=True)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="zipcli")
def cli() -> None:
    """Clean image folders of backdoor triggers with zero-shot diffusion purification.

    Exit codes: 0 all done, 1 bug, 2 usage, 3 some images failed, 4 model, 5 output not writable,
    6 another run owns the output, 129, 130 and 143 stopped by SIGHUP, Ctrl-C and SIGTERM, 141
    nobody reads the output.
    """
