"""The black box seen from outside: a file, an HTTP service, a command."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
