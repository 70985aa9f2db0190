"""The black box seen from outside: a file, an HTTP service, a command."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from zipcli.classifiers.sidecar import with_sidecar
from zipcli.config import ClassifierConfig
from zipcli.protocols import Classifier


@contextmanager
def open_classifier(
    config: ClassifierConfig, check_stop: Callable[[], None] = lambda: None
) -> Iterator[Classifier]:
    """Open what the word of --classifier means; a program that was started ends with the block.

    A model file is a program that runs with the user's rights: open none that a stranger gave.
    What opening one executes is said in `model_file`.

    Args:
        config: The word, and what the user said of the classifier.
        check_stop: Called often while a service or program is waited for; it may raise to stop.

    Raises:
        ConfigError: The word or a setting does not fit.
        ClassifierError: The classifier is missing or damaged.
    """
    if config.kind == "file":
        from zipcli.classifiers.model_file import open_model_file

        yield open_model_file(config)
    elif config.kind == "http":
        from zipcli.classifiers.http_service import HttpClassifier

        yield HttpClassifier(config, check_stop)
    else:
        from zipcli.classifiers.command import open_command

        with open_command(config, check_stop) as classifier:
            yield classifier


def identity(config: ClassifierConfig) -> dict[str, Any]:
    """What decides the answers of a classifier, ready for JSON.

    A model file counts by its content and by what its sidecar says, not by its name. A service or program
    is known by its name alone: nobody can see from outside whether another one stands behind it today.

    Raises:
        ConfigError: The sidecar is wrong.
    """
    if config.kind != "file":
        return config.settings()
    file = Path(config.classifier)
    settings = with_sidecar(config, file).settings()
    with suppress(OSError), file.open("rb") as f:  # whoever opens it says what is wrong
        settings["sha256"] = hashlib.file_digest(f, "sha256").hexdigest()
        del settings["classifier"]
    return settings
