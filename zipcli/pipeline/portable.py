"""Names that only some systems can hold, or can tell apart."""

import re
import unicodedata
from collections.abc import Iterable

from zipcli.errors import shown
from zipcli.pipeline.outcome import Outcome
from zipcli.pipeline.plan import Entry

# Of Windows, with any extension (Microsoft, "Naming Files, Paths, and Namespaces").
_DEVICE = re.compile(
    r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9\u00b9\u00b2\u00b3]) *(\..*)?", re.I | re.S
)
_FORBIDDEN = re.compile(r'[<>:"|?*\\]')
_LONGEST = 256
"""UTF-16 units of a path below `C:\\`, of the 260 that most programs on Windows allow."""


def unportable(entries: Iterable[Entry | Outcome]) -> list[tuple[str, str]]:
    """Find outputs that Windows or macOS could not hold: (path of the output, what is wrong)."""
    found = []
    seen: set[str] = set()
    spellings: dict[str, str] = {}
    for entry in entries:
        paths = (*reversed(entry.target_folders), entry.target) if isinstance(entry, Entry) else ()
        for path in paths:
            if path in seen:
                continue
            seen.add(path)
            twin = spellings.setdefault(_key(path), path)
            if _name(twin) != _name(path):  # else it is the folders above that differ
                found.append((path, f"differs from {shown(twin)} only in case or in how accents are stored"))
            if why := _fault(path):
                found.append((path, why))
    return found


def _key(path: str) -> str:
    """What a system compares that folds case and normalises (The Unicode Standard, 3.13, D145)."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", path).casefold())


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _fault(path: str) -> str | None:
    """What is wrong with the last name of a path, or with its length."""
    name = _name(path)
    if len(path.encode("utf-16-le", "surrogatepass")) > 2 * _LONGEST:
        return f"is longer than {_LONGEST} characters"
    if any("\ud800" <= c <= "\udfff" for c in name):
        return "holds bytes that are no text"
    if any(unicodedata.category(c) == "Cc" for c in name):
        return "holds a control character"
    if character := _FORBIDDEN.search(name):
        return f"holds {character.group()}, which Windows forbids"
    if name.endswith((".", " ")):
        return "ends in a dot or a space, which Windows drops"
    if _DEVICE.fullmatch(name):
        return "is the name of a device on Windows"
    return None
