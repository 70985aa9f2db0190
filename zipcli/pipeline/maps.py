"""Suspicion maps for pictures one by one."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from zipcli.config import DetectConfig
from zipcli.images.load import Pixels
from zipcli.pipeline.detection import as_rgb, map_picture, open_detector


@contextmanager
def residual_maps(check_stop: Callable[[], None]) -> Iterator[Callable[[Pixels], Pixels]]:
    """Give a function that draws how implausible each pixel is under the built-in prior.

    It takes uint8 (H, W) or (H, W, 3) and returns uint8 (H, W), where black is usual; several threads
    may call it.

    Raises:
        ModelError: The prior or what is usual for it is damaged.
    """
    with open_detector(DetectConfig(detector="residual"), check_stop=check_stop) as screening:
        detector = screening.detector
        one_at_a_time = threading.Lock()  # the network takes every core by itself

        def draw(pixels: Pixels) -> Pixels:
            with one_at_a_time:
                (found,) = detector([as_rgb(pixels)])
            assert found.map is not None
            return map_picture(found.map)

        yield draw
