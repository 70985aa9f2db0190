"""Option types and decorators that several commands share."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from zipcli.config import FRAMES, FolderConfig
from zipcli.errors import shown
from zipcli.pipeline.url import Url, location
from zipcli.registry import unknown_name

F = TypeVar("F", bound=Callable[..., Any])


class Name(click.Choice[str]):
    """A choice that suggests the nearest name for an unknown one."""

    def __init__(self, kind: str, names: Iterable[str]) -> None:
        """Offer the names of one kind of thing."""
        super().__init__(list(names))
        self.kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name, or fail with a suggestion."""
        if value not in self.choices:
            self.fail(unknown_name(self.kind, str(value), self.choices), param, ctx)
        return str(value)


class Location(click.Path):
    """A folder of this machine, also as file://, or a URL; the value is a `Path` or a `Url`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the folder; a URL with a password in it raises `ConfigError`."""
        where = location(value) if isinstance(value, str) else value
        return where if isinstance(where, Url) else super().convert(str(where), param, ctx)


class LocalPath(Location):
    """A file or folder of this machine."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path, or fail on a URL."""
        where = super().convert(value, param, ctx)
        if isinstance(where, Url):
            words = "only purify, status, verify and merge take URLs; copy it to a folder first"
            self.fail(f"{shown(str(where))}: {words}", param, ctx)
        return where


class NamedCommands(click.Group):
    """A group that suggests the nearest command for an unknown one."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, or fail with a suggestion."""
        command = super().get_command(ctx, cmd_name)
        if command is None and not ctx.resilient_parsing:
            ctx.fail(unknown_name("command", cmd_name, self.commands))
        return command


def given(ctx: click.Context, names: Iterable[str]) -> dict[str, Any]:
    """The options among `names` that the user set, by flag or environment, with their values."""
    return {
        name: ctx.params[name]
        for name in names
        if ctx.get_parameter_source(name) not in (None, ParameterSource.DEFAULT)
    }


def with_options(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Several options as one decorator; --help lists them in this order."""

    def decorate(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def selection_options(command: F) -> F:
    """Add --include and --exclude, which every command that walks a folder has."""
    return with_options(
        click.option(
            "--include",
            multiple=True,
            metavar="PATTERN",
            default=FolderConfig.include,
            help="Take only files that match, such as '*.png' or 'train/*'.  [default: image extensions]",
        ),
        click.option("--exclude", multiple=True, metavar="PATTERN", help="Leave out files that match."),
    )(command)


def completing(values: Callable[[], Iterable[str]]) -> Callable[..., list[str]]:
    """What `shell_complete` wants: the values that begin as the user has begun."""
    return lambda ctx, param, incomplete: [value for value in values() if value.startswith(incomplete)]


def transform_names() -> list[str]:
    """How a transform may begin."""
    from zipcli.transforms import TRANSFORMS

    return list(TRANSFORMS)


def model_names() -> list[str]:
    """The models that need no more than a name."""
    from zipcli.models.catalog import CATALOG

    return list(CATALOG)


LIMIT_OPTIONS = (
    "max_pixels",
    "max_bytes",
    "frames",
    "allow_truncated",
    "strict_ext",
    "decode_seconds",
    "decode_memory",
)
"""Fields of `FolderConfig` that `limit_options` offers."""


def limit_options(command: F) -> F:
    """Add what a command that reads the images of strangers takes and refuses."""
    return with_options(
        click.option(
            "--max-pixels",
            type=click.IntRange(min=1),
            metavar="N",
            default=FolderConfig.max_pixels,
            show_default=True,
            help="Refuse images of more than N pixels, width times height.",
        ),
        click.option(
            "--max-bytes",
            type=click.IntRange(min=1),
            metavar="N",
            default=FolderConfig.max_bytes,
            show_default=True,
            help="Refuse files of more than N bytes.",
        ),
        click.option(
            "--frames",
            type=Name("frames", FRAMES),
            default=FolderConfig.frames,
            show_default=True,
            help="Animated and multi-page files: one refuses them, first takes their first frame.",
        ),
        click.option(
            "--allow-truncated",
            is_flag=True,
            help="Take what is there of a file that ends early, and note that it is degraded.",
        ),
        click.option(
            "--strict-ext",
            is_flag=True,
            help="Refuse a file whose extension promises another format than its content.",
        ),
        click.option(
            "--decode-seconds",
            type=click.IntRange(1, 86_400),
            metavar="S",
            default=FolderConfig.decode_seconds,
            show_default=True,
            help="Give up on a file that takes more processor time to decode, or three times as long.",
        ),
        click.option(
            "--decode-memory",
            type=click.IntRange(1, 2**40),
            metavar="MIB",
            default=FolderConfig.decode_memory,
            show_default=True,
            help="Give up on a file that takes more memory to decode, in MiB.",
        ),
    )(command)
