"""zipcli completion."""

import click
from click.shell_completion import get_completion_class

from zipcli.cli.options import Name

SHELLS = ("bash", "zsh", "fish")


@click.command(
    epilog="\b\nExamples:\n"
    "  zipcli completion bash > ~/.local/share/bash-completion/completions/zipcli\n"
    "  zipcli completion zsh > ~/.zfunc/_zipcli    # a folder of your fpath\n"
    "  zipcli completion fish > ~/.config/fish/completions/zipcli.fish"
)
@click.argument("shell", type=Name("shell", SHELLS))
@click.pass_context
def completion(ctx: click.Context, /, shell: str) -> int:
    """Print the script that lets a shell complete commands, options and their values.

    To try it in bash or zsh: eval "$(zipcli completion bash)".
    """
    complete = get_completion_class(shell)
    assert complete is not None  # Click knows all of SHELLS
    click.echo(complete(ctx.find_root().command, {}, "zipcli", "_ZIPCLI_COMPLETE").source())
    return 0
