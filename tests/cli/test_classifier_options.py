"""The options that describe a classifier, on a command that does nothing else."""

import subprocess
import sys
from pathlib import Path

import click
import pytest
from cli.shell import ENVIRONMENT
from click.testing import CliRunner, Result

from zipcli.cli.classifier_options import FIELDS, classifier_config, classifier_options
from zipcli.config import ClassifierConfig
from zipcli.errors import ConfigError


def call(*words: str | Path, required: bool = False) -> Result:
    """The settings that some words make, as the value that the command returns."""

    @click.command()
    @classifier_options(required=required)
    @click.pass_context
    def command(ctx: click.Context, /, **_: object) -> ClassifierConfig | None:
        return classifier_config(ctx)

    return CliRunner().invoke(command, [str(word) for word in words], standalone_mode=False)


def test_every_option_reaches_its_setting() -> None:
    result = call(
        *("--classifier", "m.onnx", "--input-size", "224", "--mean", "0.485, 0.456,0.406"),
        *("--std", "1,2,3", "--classes", "cat, dog", "--classifier-batch", "8"),
    )
    assert result.return_value == ClassifierConfig(
        classifier="m.onnx",
        input_size=224,
        mean=(0.485, 0.456, 0.406),
        std=(1.0, 2.0, 3.0),
        classes=("cat", "dog"),
        batch_size=8,
    )
    result = call("--classifier", "cmd:./a b", "--classifier-timeout", "2.5")
    assert result.return_value == ClassifierConfig(classifier="cmd:./a b", timeout=2.5)


def test_every_option_has_help() -> None:
    @click.command()
    @classifier_options(required=True)
    def command() -> None: ...

    options = [option for option in command.params if isinstance(option, click.Option)]
    assert [option.name for option in options] == list(FIELDS)
    for option in options:
        assert option.help
        assert option.help.strip().endswith((".", "]"))


def test_nothing_said_is_no_classifier() -> None:
    assert call().return_value is None


def test_names_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "a,b.txt"
    file.write_bytes("\ufeffcat\r\n\n  dog, big \nh\u00e9ron\n".encode())
    assert call("--classifier", "m.pt", "--classes", file).return_value.classes == (
        "cat",
        "dog, big",
        "h\u00e9ron",
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--input-size", "32"], "--input-size: describes a classifier; give --classifier too"),
        (["--classifier-batch", "32"], "--classifier-batch: describes a classifier"),
        (["--classifier", "m.pt", "--mean", "1,2"], "'1,2' is not three numbers"),
        (["--classifier", "m.pt", "--std", "1,b,3"], "'1,b,3' is not three numbers"),
        (["--classifier", "m.pt", "--std", "1,0,3"], "std: every number must be above 0"),
        (["--classifier", "m.pt", "--mean", "1,nan,3"], "mean: .* is not what belongs there"),
        (["--classifier", "m.pt", "--input-size", "0"], "0 is not in the range"),
        (["--classifier", "m.pt", "--classifier-timeout", "3"], "timeout: a model file has none"),
        (["--classifier", "cmd:a", "--mean", "1,1,1"], "mean: it belongs to a model file"),
        (["--classifier", "", "--input-size", "3"], "name a model file"),
        (["--classifier", "m.pt", "--classes", "missing"], "missing: No such file"),
        (["--classifier", "m.pt", "--classes", "\x1b[31m"], r"\\x1b\[31m: No such file"),
        (["--classifier", "m.pt", "--classes", "."], r"\.: Is a directory"),
        (["--classifier", "m.pt", "--classes", "a,a"], "a is there twice"),
        (["--classifier", "m.pt", "--classes", "a,"], "a name is empty"),
        (["--classifier", "m.pt", "--classes", sys.executable], "not UTF-8 text|too large"),
    ],
    ids=" ".join,
)
def test_what_does_not_fit_is_refused(words: list[str], message: str) -> None:
    result = call(*words)
    assert isinstance(result.exception, click.UsageError | ConfigError)
    with pytest.raises(type(result.exception), match=message):
        raise result.exception


def test_a_command_can_insist() -> None:
    result = call(required=True)
    assert isinstance(result.exception, click.MissingParameter)


def test_nothing_heavy_is_imported_before_a_classifier_is_opened() -> None:
    program = (
        "import sys, zipcli.classifiers, zipcli.cli.classifier_options\n"
        "print(*sorted({'torch', 'numpy', 'PIL', 'onnxruntime'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "\n"
