"""Purifies a folder for `zipcli purify`: what is decided and refused before a run, the run, and the watch."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

import click

from zipcli.cli import purify_places as places
from zipcli.cli.console import Progress, emit, say
from zipcli.cli.purify_crew import crew_run
from zipcli.cli.purify_engine import engine
from zipcli.cli.purify_stream import stdin
from zipcli.cli.signals import StopSignals
from zipcli.config import TAR_PATTERNS, CrewConfig, DetectConfig, FolderConfig, PurifyConfig, check
from zipcli.errors import ConfigError, ExitCode, StoppedError, shown
from zipcli.pipeline.url import Url

if TYPE_CHECKING:
    from zipcli.pipeline.account import Account
    from zipcli.pipeline.crew import CrewRun
    from zipcli.pipeline.folder import FolderRun
    from zipcli.pipeline.outcome import Outcome
    from zipcli.pipeline.plan import Entry, Plan, Selection
    from zipcli.pipeline.tar_shards import TarShardsRun


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What the user wants of one run, besides the settings of the images.

    Attributes:
        source: The input folder.
        out: The output folder.
        files_from: A list of the files to take, or "-" for standard input; None to walk the folder.
        null: Whether the names in it end in NUL bytes.
        retry_failed: Take what has failed in earlier runs.
        tar_shards: Whether the images are in tar shards.
        watch: Go on with what comes.
        settle: Seconds that a file must stay as it is, when watching.
        allow_empty: Whether a folder without images is no error.
        dry_run: Only say what would be done.
        as_json: JSON lines on standard output.
        verbosity: -1 for quiet, 0, or 1 and more for a line per image.
        crew: Which processes do it.
    """

    source: Path | Url
    out: Path | Url
    files_from: Path | None = None
    null: bool = False
    retry_failed: bool = False
    tar_shards: bool = False
    watch: bool = False
    settle: float = 2.0
    allow_empty: bool = False
    dry_run: bool = False
    as_json: bool = False
    verbosity: int = 0
    crew: CrewConfig = field(default_factory=CrewConfig)

    def __post_init__(self) -> None:
        """Check the values."""
        check(0 < self.settle <= A_DAY, f"settle: {self.settle} is not between 0 and {A_DAY} seconds")


A_DAY = 24 * 60 * 60


def purify_folder(
    wishes: Wishes, config: PurifyConfig, files: FolderConfig, detect: DetectConfig, stop: StopSignals
) -> int:
    """Purify a folder; returns the exit code."""
    if wishes.tar_shards and files.include == FolderConfig.include:
        files = replace(files, include=TAR_PATTERNS)
    plan = _plan(wishes, files, stop)
    if wishes.retry_failed and not plan.listed:
        return _nothing_to_do(wishes)
    size = _check_plan(plan, stop, allow_empty=wishes.allow_empty, watch=wishes.watch)
    if places.is_inside(wishes.out, wishes.source):
        say(f"Note: {shown(str(wishes.out))} lies inside the input folder; who removes that removes it, too")

    from zipcli.images.guard import shared_pool

    has_crew = wishes.crew.is_used and not wishes.dry_run
    if not wishes.dry_run and not has_crew:
        shared_pool().warm(files.jobs)  # they start while we import torch
    ledger = places.ledger_of(wishes.out, plan.base, files)
    if not wishes.watch:  # a service must start again; what is in the way costs one image then
        _refuse_foreign(plan, ledger, stop)
    if not wishes.dry_run and isinstance(wishes.out, Path):
        from zipcli.pipeline.ledger import refuse_unwritable

        refuse_unwritable(wishes.out)

    if has_crew:
        from zipcli.pipeline.ledger import Ledger
        from zipcli.pipeline.plan import Plan

        assert isinstance(plan, Plan)  # several processes and a URL are refused together
        assert isinstance(ledger, Ledger)
        with crew_run(wishes.crew, plan, ledger, config, detect, stop, wishes.verbosity) as crew:
            _use_settings(ledger, files, crew.fingerprint_parts(stop.check))
            return _run(crew, plan, ledger, wishes, size, stop)

    from zipcli.pipeline.folder import FolderRun
    from zipcli.pipeline.ledger import Ledger
    from zipcli.pipeline.plan import Plan
    from zipcli.pipeline.tar_shards import TarShardsRun

    shape = {"tar_shards": True} if wishes.tar_shards else {}
    with engine(config, detect, stop, wishes.verbosity) as (purifier, screening):
        _use_settings(ledger, files, purifier.fingerprint_parts | screening.fingerprint_parts | shape)
        if wishes.dry_run:
            again = wishes.tar_shards and wishes.retry_failed
            return _show_plan(plan, ledger, size, stop, again=again, as_json=wishes.as_json)
        stop.check()
        run: FolderRun | TarShardsRun = FolderRun(plan, purifier, screening.detector, ledger)
        if wishes.tar_shards:
            assert isinstance(plan, Plan)  # a URL and tar shards are refused together
            assert isinstance(ledger, Ledger)
            run = TarShardsRun(plan, purifier, screening.detector, ledger, again=wishes.retry_failed)
        return _run(run, plan, ledger, wishes, size, stop)


def _use_settings(ledger: "Account", files: FolderConfig, fingerprint_parts: dict[str, Any]) -> None:
    ledger.use_settings({**fingerprint_parts, **files.file_settings()}, overwrite=files.overwrite)
    if ledger.damaged_lines:
        say(f"Warning: {ledger.damaged_lines} damaged lines in the ledger of {ledger.out} are ignored")


def _nothing_to_do(wishes: Wishes) -> int:
    say(f"nothing has failed in {shown(str(wishes.out))}")
    if wishes.as_json:
        from zipcli.pipeline.outcome import Summary

        emit("run_end", **Summary().as_json(), exit_code=int(ExitCode.DONE))
    return ExitCode.DONE


def _plan(wishes: Wishes, files: FolderConfig, stop: StopSignals) -> "Selection":
    from zipcli.pipeline.plan import without_collisions

    plan = all_files = places.whole_plan(wishes.source, wishes.out, files)
    plan = all_files = replace(plan, keeps_names=wishes.tar_shards)
    if wishes.retry_failed:
        plan = replace(plan, listed=places.failed_paths(wishes.out), may_be_gone=True)
    elif wishes.files_from is not None:
        names = _read_list(wishes.files_from, stop, null=wishes.null)
        plan = all_files = replace(plan, listed=places.relative_paths(names, wishes.source, wishes.out))
    if files.on_collision == "append":
        plan = without_collisions(plan, _until_stopped(all_files.of_all_shards(), stop))
    return plan


def _read_list(file: Path, stop: StopSignals, *, null: bool) -> list[str]:
    """Names from a file or standard input, as the file system spells them."""
    try:
        if str(file) == "-":
            data = stop.read(stdin())
        else:
            with file.open("rb") as f:  # a pipe, perhaps
                data = stop.read(f)
    except OSError as e:
        raise ConfigError(f"{file}: cannot read the list of files: {e.strerror}") from e
    names = data.split(b"\0") if null else [line.removesuffix(b"\r") for line in data.split(b"\n")]
    if any(b"\0" in name for name in names):
        raise click.UsageError("the names of --files-from hold NUL bytes; add -0")
    return [os.fsdecode(name) for name in names if name]


@dataclass
class PlanSize:
    """How many files a plan takes, and how many it leaves because no pattern takes them."""

    found: int = 0
    ignored: int = 0

    def ignore(self, _path: str) -> None:
        """Count a file that is left."""
        self.ignored += 1


def _check_plan(plan: "Selection", stop: StopSignals, *, allow_empty: bool, watch: bool) -> PlanSize:
    """Count the files of our shard, refusing names that collide and a run that would do nothing."""
    from zipcli.pipeline.plan import collisions, no_images

    size = PlanSize()
    of_all = 0

    def counted() -> Iterator["Entry | Outcome"]:
        nonlocal of_all
        for entry in _until_stopped(plan.of_all_shards(size.ignore), stop):
            of_all += 1
            size.found += plan.takes(entry)
            yield entry

    shared = collisions(counted())
    if watch:
        return size  # likewise: who comes second to a name fails
    if not (of_all or allow_empty):
        raise ConfigError(no_images(plan))
    if shared:
        others = "" if plan.config.on_collision == "append" else " or --on-collision append"
        what = f"some images would get in each other's way; rename one, or use --format same{others}"
        raise _refusal(
            what, [f"{shown(a)} and {shown(b)} would both become {shown(target)}" for a, b, target in shared]
        )
    if plan.config.portable_names:
        _refuse_unportable(_until_stopped(plan.of_all_shards(), stop))
    return size


def _until_stopped(entries: Iterator["Entry | Outcome"], stop: StopSignals) -> Iterator["Entry | Outcome"]:
    for entry in entries:
        stop.check()
        yield entry


def _refusal(what: str, lines: Sequence[str]) -> ConfigError:
    """An error with a list, of which the beginning is enough."""
    more = [f"  ... and {len(lines) - 20} more"] if len(lines) > 20 else []
    return ConfigError("\n".join([what, *(f"  {line}" for line in lines[:20]), *more]))


def _refuse_unportable(entries: Iterator["Entry | Outcome"]) -> None:
    from zipcli.pipeline.portable import unportable

    if found := unportable(entries):
        what = "some names would not survive on every system; rename them in the input"
        raise _refusal(what, [f"{shown(name)}: {why}" for name, why in found])


def _run(
    run: "FolderRun | TarShardsRun | CrewRun",
    plan: "Selection",
    ledger: "Account",
    wishes: Wishes,
    size: PlanSize,
    stop: StopSignals,
) -> int:
    """Purify and report; the ledger is ours until the end."""
    name, as_json = shown(str(ledger.out)), wishes.as_json
    if as_json:
        facts = {"fingerprint": ledger.fingerprint, "settings": ledger.settings}
        emit("run_start", schema=1, found=size.found, **facts)
    verbosity = wishes.verbosity
    if wishes.watch and not as_json:
        verbosity = verbosity or 1  # there is no end at which failures could be listed
    total = None if wishes.watch or wishes.tar_shards else size.found  # images in tars are not counted yet
    progress = Progress(total, verbosity=verbosity, as_json=as_json)
    progress.summary.ignored = size.ignored
    stopped = False
    with ledger.open(force=plan.config.force_unlock), progress:
        if ledger.took_over:
            say(f"Note: {ledger.took_over} had {name} before and did not end in order; going on")
        try:
            if wishes.tar_shards:
                cast("TarShardsRun", run).tick = progress.tick
            elif wishes.watch:
                _watch(cast("FolderRun", run), cast("Plan", plan), wishes, progress, stop)
            code = run.run(progress.add, stop.check).exit_code(plan.config.tolerated)
        except StoppedError as e:
            code, stopped = e.exit_code, True
    progress.finish(str(ledger.out))
    if as_json:
        emit("run_end", **progress.summary.as_json(), exit_code=int(code))
    if stopped:
        say(stop.last_words)
    elif stale := ledger.stale():
        say(f"Warning: {stale} images in {name} are still those of other settings; see the ledger")
    return code


def _watch(run: "FolderRun", plan: "Plan", wishes: Wishes, progress: Progress, stop: StopSignals) -> NoReturn:
    """Purify what has settled, and look again, until a signal comes."""
    from zipcli.pipeline.watch import Watch

    if wishes.verbosity >= 0:
        say(f"watching {shown(str(plan.base))}; stop with Ctrl-C")
    watch = Watch(plan)
    while True:
        if settled := watch.look(stop.check):
            run.source = replace(plan, only=settled)
            run.run(progress.add, stop.check)
        stop.wait(wishes.settle)


def _refuse_foreign(plan: "Selection", ledger: "Account", stop: StopSignals) -> None:
    """Refuse before any work when outputs exist that we did not write."""
    from zipcli.pipeline.plan import Entry, files_in_the_way
    from zipcli.pipeline.resume import Decision

    foreign = []
    folders: set[str] = set()
    for entry in plan.entries():
        stop.check()
        if isinstance(entry, Entry):
            folders.update(entry.target_folders)
            decision = ledger.decide(entry.path, entry.target, None, overwrite=plan.config.overwrite)
            if decision is Decision.REFUSE:
                foreign.append(entry.target)
    name = shown(str(ledger.out))
    # Of objects, one may be called as the folder of another.
    if isinstance(ledger.out, Path) and (blocking := files_in_the_way(folders, ledger.out)):
        what = f"{name}: files are in the way where folders are needed; move them"
        raise _refusal(what, [shown(file) for file in blocking])
    if foreign:
        what = (
            f"{name}: {len(foreign)} files are in the way and were not written by zipcli; move them, "
            "choose another output folder, or use --overwrite"
        )
        raise _refusal(what, [shown(file) for file in foreign])


def _show_plan(
    plan: "Selection",
    ledger: "Account",
    counts: PlanSize,
    stop: StopSignals,
    *,
    again: bool,
    as_json: bool,
) -> int:
    """Say what a run would do; inputs are not read, so those that were changed are not seen.

    `again` tells that what is there is made anew, as tars with failures are.
    """
    from zipcli.pipeline.plan import Entry
    from zipcli.pipeline.resume import Decision

    found = todo = size = 0
    for entry in plan.entries():
        stop.check()
        found += 1
        if isinstance(entry, Entry):
            decision = ledger.decide(
                entry.path,
                entry.target,
                None,
                overwrite=plan.config.overwrite,
                paranoid=plan.config.paranoid,
            )
            if again and decision is Decision.SKIP:
                decision = Decision.PURIFY
            todo += decision is Decision.PURIFY
            size += entry.size if decision is Decision.PURIFY else 0
            if as_json:
                from zipcli.pipeline.outcome import json_path

                paths = json_path("path", entry.path) | json_path("out_path", entry.target)
                emit("plan", **paths, decision=decision.value, bytes=entry.size)
    free = places.free_bytes(ledger.out)
    if as_json:
        counted = {"found": found, "ignored": counts.ignored, "purify": todo, "bytes": size}
        disk = {} if free is None else {"free_bytes": free}
        emit("plan_end", **counted, **disk, settings=ledger.settings)
    else:
        disk_there = "" if free is None else f"free disk there: {free / 1e9:.1f} GB; "
        what = "tars" if plan.keeps_names else "images"
        say(f"would purify {todo} of {found} {what} ({size / 1e6:.1f} MB) into {ledger.out}")
        say(f"{disk_there}settings: {ledger.settings}")
    return ExitCode.DONE
