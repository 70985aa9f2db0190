"""Looks at files whose disk may not answer."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from zipcli.errors import ZipcliError, shown


@contextlib.contextmanager
def looking(path: Path, error: type[ZipcliError]) -> Iterator[None]:
    """Turn what the system says about a path into an error of ours.

    Raises:
        error: The system does not tell, for another reason than that there is nothing.
    """
    try:
        yield
    except OSError as e:
        raise error(f"{shown(str(path))}: cannot look there: {e.strerror}") from e
