"""What every way to purify sets up for `zipcli purify`: the purifier, and the detector before it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from zipcli.cli.console import say
from zipcli.cli.detector_options import advice
from zipcli.cli.downloads import model_listener
from zipcli.cli.signals import StopSignals
from zipcli.config import DetectConfig, PurifyConfig, check

if TYPE_CHECKING:
    from zipcli.pipeline.detection import Screening
    from zipcli.pipeline.purifier import Purifier


@contextmanager
def engine(
    config: PurifyConfig, detect: DetectConfig, stop: StopSignals, verbosity: int
) -> Iterator[tuple["Purifier", "Screening"]]:
    """Load the models, tell the user what should be known of them, and heed signals from then on."""
    from zipcli.pipeline.detection import open_detector
    from zipcli.pipeline.purifier import Purifier, asked_classifier

    with asked_classifier(config, stop.check) as classifier:
        purifier = Purifier.from_config(config, model_listener(stop, quiet=verbosity < 0))
        purifier.stop_with(stop.check)
        if classifier is not None:
            purifier.ask_with(classifier)
        check(
            not purifier.removes_nothing,
            f"transform {' '.join(config.transforms)}: keeps the whole image, triggers too; choose another, "
            "or copy with --method none",
        )
        if verbosity >= 0 and (text := advice(detect)):
            say(f"Note: {text}")
        # One that both the method and the detector ask is opened once.
        with open_detector(detect, lambda text: say(f"Note: {text}"), stop.check, classifier) as screening:
            yield purifier, screening
