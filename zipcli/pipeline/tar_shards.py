"""Purifies tar shards, as WebDataset has them: a folder of tars becomes a folder of tars of the same names.

Files of a tar that have one name up to the first dot are a sample: an image, its label, and what else there
is. Images are purified, everything else is copied, and the order stays. The tar is the unit of a run: it is
read once from its beginning to its end, its images go through the `FolderRun` of every folder together with
those of the tars beside it, what is finished waits in a spool on the disk, and the output appears whole, once
nothing of it is missing.

A sample of which an image failed is not in the output: there is no label without its image, and no image that
nobody has purified. Of a tar that cannot be read to its end there is no output.
"""

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import PurePosixPath
from tarfile import TarInfo
from typing import IO

from zipcli.config import IMAGE_PATTERNS, FolderConfig
from zipcli.errors import InputError, Reason, shown
from zipcli.images.load import is_called_a_picture, picture_kind
from zipcli.pipeline.folder import FolderRun
from zipcli.pipeline.ledger import Ledger
from zipcli.pipeline.outcome import Outcome, Summary
from zipcli.pipeline.plan import Entry, Plan, matches, target_of
from zipcli.pipeline.purifier import Purifier
from zipcli.pipeline.resume import Decision, size_of
from zipcli.pipeline.tar import given_once
from zipcli.pipeline.tar_file import Piece, Spool, file_digest, open_tar, tar_of
from zipcli.protocols import Detector

GROUP_IMAGES = 4096
"""Images after which we wait until all those that were read are finished, so that no tar stays open for the
sake of one image of a rare size; larger tars are finished as a whole."""

OPEN_TARS = 64
"""Tars that may be read and not finished; each has a file open."""

FAILED_BEFORE = "failed when its tar was written; --retry-failed takes the tar again"


class TarShardsRun:
    """A run over tar shards: `tick` is called for each image, `report` for all of a tar at its end."""

    def __init__(
        self, plan: Plan, purifier: Purifier, detector: Detector, ledger: Ledger, *, again: bool
    ) -> None:
        """Join the parts.

        Args:
            plan: The tars.
            purifier: For their images.
            detector: Decides which images need purifying.
            ledger: Open while `run` works.
            again: Take also what an earlier run has finished.
        """
        self.plan, self.ledger, self.again = plan, ledger, again
        self.purifier, self.detector = purifier, detector
        self.tick: Callable[[], None] = lambda: None

    def run(
        self, report: Callable[[Outcome], None], check_stop: Callable[[], None] = lambda: None
    ) -> Summary:
        """Purify everything; the arguments and errors are those of `FolderRun.run`."""
        shards = _Shards(self.plan, self.ledger, check_stop, again=self.again)
        folder_run = FolderRun(shards, self.purifier, self.detector, shards)
        summary = Summary()

        def hand_on() -> None:
            for outcome in shards.take_ended():
                summary.add(outcome)
                report(outcome)

        def on_its_way(_: Outcome) -> None:
            self.tick()
            hand_on()

        try:
            while not shards.at_end:
                folder_run.run(on_its_way, check_stop)
                hand_on()
        finally:
            hand_on()  # what was finished while we were stopping
            shards.close()
        return summary


@dataclass(slots=True)
class _Image:
    """An image, or another member that has failed."""

    path: str
    sample: str
    piece: Piece | None = None
    outcome: Outcome | None = None


@dataclass
class _Shard:
    """A tar on its way.

    Attributes:
        entry: The tar.
        spool: What is finished of it.
        pieces: The members of the output, in their order.
        images: The images of it, by path.
        left_out: Samples that have failed, and why.
        waiting: Images that are not finished yet.
        is_read: Whether nothing more is to come.
        error: Why there will be no output.
        sha256: Digest of the input.
    """

    entry: Entry
    spool: Spool
    pieces: list[Piece] = field(default_factory=list)
    images: dict[str, _Image] = field(default_factory=dict)
    left_out: dict[str, tuple[Reason, str]] = field(default_factory=dict)
    taken: set[tuple[str, str]] = field(default_factory=set)
    samples: set[str] = field(default_factory=set)
    in_pieces: set[str] = field(default_factory=set)
    last_sample: str | None = None
    waiting: int = 0
    is_read: bool = False
    error: InputError | None = None
    sha256: str | None = None

    def take(
        self, member: TarInfo, file: IO[bytes] | None, config: FolderConfig
    ) -> tuple[Entry, bytes] | None:
        """Take the next member; returns an image with its bytes, which is to be purified."""
        place = PurePosixPath(member.name)
        name = str(place)
        path = f"{self.entry.path}/{name}".replace("\0", "\\0")
        sample = sample_of(name)
        is_image = matches(name, IMAGE_PATTERNS)
        is_nowhere = not place.parts and not member.isdir()
        if is_nowhere or place.is_absolute() or ".." in place.parts or "\0" in name:
            self.fail(path, sample, Reason.NAME_UNSUPPORTED, "the name leads out of the folder")
        elif member.isdir():
            self.pieces.append(Piece(name=member.name, sample="", mtime=member.mtime, is_folder=True))
        elif file is None:
            reason = Reason.SYMLINK if member.issym() else Reason.NOT_A_FILE
            self.fail(path, sample, reason, "a link or a device in a tar is not followed")
        elif member.size > config.limits.max_bytes:
            message = f"{member.size:,} bytes are more than the limit of --max-bytes"
            self.fail(path, sample, Reason.BOMB_BYTES, message)
        elif not (is_image and place.name.startswith(".")):  # as in a folder; nor does WebDataset see those
            target = target_of(member.name, config) if is_image else None
            return self._take_file(member, file, path, sample, target)
        return None

    def _take_file(
        self, member: TarInfo, file: IO[bytes], path: str, sample: str, target: str | None
    ) -> tuple[Entry, bytes] | None:
        """The same for a regular file; `target` is what an image becomes."""
        self._note_order(sample)
        piece = Piece(name=target or member.name, sample=sample, mtime=member.mtime)
        name = str(PurePosixPath(piece.name))
        identity = (sample, name[len(sample) :].lower())  # WebDataset does not tell A.JPG from A.jpg
        if identity in self.taken or path in self.images:
            message = f"two files of the tar are, or become, {shown(name)}; WebDataset would refuse that"
            self.fail(path, sample, Reason.COLLISION, message)
            return None
        self.taken.add(identity)
        if target is not None:
            data = file.read()  # which may fail
            self.pieces.append(piece)
            self.images[path] = _Image(path=path, sample=sample, piece=piece)
            entry = Entry(
                path=path,
                source=self.entry.source,
                target=f"{self.entry.target}/{name}",
                size=member.size,
            )
            return entry, data
        start = file.read(512)
        if kind := picture_kind(start):
            message = (
                f"a picture ({kind}) that has not the name of one; call it .png or .jpg, or leave it out"
            )
            self.fail(path, sample, Reason.EXTENSION_MISMATCH, message)
            return None
        if is_called_a_picture(member.name):
            message = "a picture by its name, in a form that we do not purify; make it .png, or leave it out"
            self.fail(path, sample, Reason.FORMAT_NOT_ALLOWED, message)
            return None
        self.pieces.append(piece)
        self.spool.copy(piece, file, member.size, start)
        return None

    def _note_order(self, sample: str) -> None:
        if sample != self.last_sample and sample in self.samples:
            self.in_pieces.add(sample)
        self.samples.add(sample)
        self.last_sample = sample

    def fail(self, path: str, sample: str, reason: Reason, message: str) -> None:
        """Leave a sample out, for the sake of one member."""
        if path in self.images:  # a second one of that name; what becomes of the first is not known yet
            self.left_out.setdefault(sample, (reason, message))
            return
        outcome = Outcome(path=path, state="failed", reason=reason, message=f"{shown(path)}: {message}")
        self.images[path] = _Image(path=path, sample=sample, outcome=outcome)

    def outcomes(self) -> Iterator[Outcome]:
        """What became of the images, now that all are finished, in their order."""
        images = list(self.images.values())
        for image in images:
            if image.outcome is not None and image.outcome.state == "failed":
                message = f"its sample is left out, since another file of it failed: {shown(image.path)}"
                self.left_out.setdefault(image.sample, (Reason.SAMPLE_INCOMPLETE, message))
        for image in images:
            outcome = image.outcome
            assert outcome is not None  # `waiting` has counted them
            failure = self.left_out.get(image.sample)
            if self.error is not None:
                failure = self.error.reason, f"its tar has failed: {self.error}"
            if failure is not None and outcome.state != "failed":
                reason, message = failure
                message = f"{shown(image.path)}: {message}"
                outcome = replace(
                    Outcome(path=image.path, state="failed", reason=reason, message=message),
                    in_sha256=outcome.in_sha256,
                )
            yield replace(outcome, tar=self.entry.path)


class _Shards:
    """The tars of a folder, as source and sink of a `FolderRun`."""

    def __init__(self, plan: Plan, ledger: Ledger, check_stop: Callable[[], None], *, again: bool) -> None:
        """Start at the first tar; the arguments are those of `TarShardsRun`."""
        self.config = plan.config
        self.at_end = False
        self._entries = plan.entries()
        self._ledger = ledger
        self._again = again
        self._check_stop = check_stop
        self._lock = threading.Lock()
        self._open: dict[str, _Shard] = {}
        self._on_their_way: dict[str, tuple[_Shard, _Image]] = {}
        self._data: dict[str, bytes] = {}
        self._ended: deque[Outcome] = deque()
        self._known: defaultdict[str, list[str]] = defaultdict(list)
        for path, record in ledger.records.items():
            if record.tar is not None:
                self._known[record.tar].append(path)

    def take_ended(self) -> Iterator[Outcome]:
        """What has become final since the last call."""
        while self._ended:
            yield self._ended.popleft()

    def close(self) -> None:
        """Let go of what is not finished."""
        for shard in self._open.values():
            shard.spool.close()

    # The source: called in one thread.

    def entries(self) -> Iterator[Entry | Outcome]:
        """Yield the images of the next tars, as many as may be open at a time."""
        count = 0
        while count < GROUP_IMAGES and len(self._open) < OPEN_TARS:
            found = next(self._entries, None)
            if found is None:
                self.at_end = True
                return
            self._check_stop()
            if isinstance(found, Outcome):
                self._end_tar(replace(found, is_tar=True))
            elif self._is_done(found):
                self._report_done(found)
            else:
                for entry in self._read(found):
                    count += 1
                    yield entry
            if not count:
                return  # somebody may want to hear of it

    def _is_done(self, tar: Entry) -> bool:
        """Whether an earlier run has finished a tar, from the very same bytes."""
        if self._again:
            return False
        settings = {"overwrite": self.config.overwrite, "paranoid": self.config.paranoid}
        if self._ledger.decide(tar.path, tar.target, None, **settings) is not Decision.SKIP:
            return False
        try:
            digest = file_digest(tar.source, shown(tar.path), self._check_stop)
        except InputError:
            return False  # `_read` will say why
        return (
            self._ledger.decide(tar.path, tar.target, digest, overwrite=self.config.overwrite)
            is Decision.SKIP
        )

    def _report_done(self, tar: Entry) -> None:
        """Say again of each image what an earlier run has made of it."""
        for path in self._known[tar.path]:
            record = self._ledger.records[path]
            if record.is_finished:
                self._ended.append(Outcome(path=path, state="skipped", tar=tar.path))
            elif record.state == "failed":
                reason = next((r for r in Reason if r == record.reason), Reason.UNREADABLE)
                message = f"{shown(path)}: {FAILED_BEFORE}"
                failed = Outcome(path=path, state="failed", reason=reason, message=message, tar=tar.path)
                self._ended.append(failed)
        self._ended.append(Outcome(path=tar.path, state="skipped", out_path=tar.target, is_tar=True))

    def _read(self, tar: Entry) -> Iterator[Entry]:
        """Yield the images of one tar, copying everything else."""
        shard = self._open[tar.path] = _Shard(entry=tar, spool=Spool(self._ledger.scratch))
        try:
            with open_tar(tar.source, shown(tar.path), self._check_stop) as opened:
                for member, file in opened.members():
                    image = shard.take(member, file, self.config)
                    if image is not None:
                        entry, self._data[image[0].path] = image
                        with self._lock:
                            shard.waiting += 1
                            self._on_their_way[entry.path] = shard, shard.images[entry.path]
                        yield entry
                shard.sha256 = opened.sha256
        except InputError as e:
            shard.error = e
            with suppress(InputError):
                shard.sha256 = file_digest(tar.source, shown(tar.path), self._check_stop)
        with self._lock:
            shard.is_read = True
            is_complete = not shard.waiting
        if is_complete:
            self._complete(shard)

    def read(self, entry: Entry) -> bytes:
        """The bytes of one image; they are given once.

        Raises:
            InputError: It is empty.
        """
        return given_once(self._data, entry)

    # The sink: called in several threads.

    def decide(
        self, path: str, target: str, in_sha256: str | None, *, overwrite: bool, paranoid: bool = False
    ) -> Decision:
        """Purify: what is done was left out as a whole tar."""
        return Decision.PURIFY

    def start(self, images: Iterable[tuple[str, str, str]], seed: int | None) -> None:
        """Nothing to note: no output can appear before its tar is complete."""

    def publish(self, path: str, target: str, data: bytes) -> None:
        """Keep a purified image until its tar is complete."""
        shard, image = self._on_their_way[path]
        assert image.piece is not None
        shard.spool.add(image.piece, data)

    def finish(self, outcome: Outcome) -> None:
        """Note what became of an image; the last one of a tar makes its output appear."""
        with self._lock:
            shard, image = self._on_their_way.pop(outcome.path)
            image.outcome = outcome
            shard.waiting -= 1
            is_complete = shard.is_read and not shard.waiting
        if is_complete:
            self._complete(shard)

    def retract(self, path: str, target: str, in_sha256: str | None) -> None:
        """Nothing to take back."""

    def _complete(self, shard: _Shard) -> None:
        """Write the output of a tar, or none, and the lines of its images and of itself."""
        tar = shard.entry
        try:
            done = self._publish(shard) if shard.error is None else None
        except InputError as e:
            shard.error, done = e, None
        if done is None:
            assert shard.error is not None
            self._ledger.retract(tar.path, tar.target, shard.sha256)
            done = Outcome(
                path=tar.path,
                state="failed",
                reason=shard.error.reason,
                message=str(shard.error),
                in_sha256=shard.sha256,
                is_tar=True,
            )
        for outcome in shard.outcomes():
            self._ledger.finish(outcome)
            self._ended.append(outcome)
        self._forget(shard)
        self._end_tar(done)
        shard.spool.close()
        with self._lock:
            del self._open[tar.path]

    def _publish(self, shard: _Shard) -> Outcome:
        """Make the output of a tar appear.

        Raises:
            InputError: Something is in the way, or the name is not possible there.
        """
        tar = shard.entry
        assert shard.sha256 is not None  # it was read to its end
        images = sum(outcome.state in ("done", "passed") for outcome in shard.outcomes())
        pieces = [piece for piece in shard.pieces if piece.sample not in shard.left_out]
        fill = tar_of(pieces, shard.spool, compressed=not tar.target.lower().endswith(".tar"))
        digest, size = sha256(), 0

        def filled(write: Callable[[bytes], object]) -> None:
            nonlocal digest, size
            digest, size = sha256(), 0

            def seen(part: bytes) -> None:
                nonlocal size
                digest.update(part)
                size += len(part)
                write(part)

            fill(seen)

        self._ledger.start([(tar.path, tar.target, shard.sha256)], None)
        self._ledger.publish(tar.path, tar.target, filled)
        strays = len(shard.in_pieces - shard.left_out.keys())
        note = f"{strays} samples are in pieces, each of which WebDataset takes for a sample of its own"
        return Outcome(
            path=tar.path,
            state="done",
            in_sha256=shard.sha256,
            out_sha256=digest.hexdigest(),
            out_path=tar.target,
            out_bytes=size,
            is_tar=True,
            images=images,
            left_out=len(shard.left_out),
            notes=(note,) if strays else (),
        )

    def _forget(self, shard: _Shard) -> None:
        """Say of images that an earlier version of a tar had, and its output does not have any more."""
        tar = shard.entry
        if shard.error is not None and size_of(self._ledger.out / tar.target) is not None:
            return  # the output of the earlier version stands
        for path in self._known.get(tar.path, ()):
            if path not in shard.images and self._ledger.records[path].state != "skipped":
                message = "it is not in the tar any more"
                gone = Outcome(
                    path=path, state="skipped", reason=Reason.VANISHED, message=message, tar=tar.path
                )
                self._ledger.finish(gone)

    def _end_tar(self, outcome: Outcome) -> None:
        if not outcome.is_folder:
            self._ledger.finish(outcome)
        self._ended.append(outcome)


def sample_of(name: str) -> str:
    """The sample of a member: its name up to the first dot behind the folders.

    A file without such a dot, or hidden, is a sample of its own, which WebDataset does not look at.
    """
    folder, slash, base = name.rpartition("/")
    key = base.partition(".")[0]
    return f"{folder}{slash}{key}" if key else name
