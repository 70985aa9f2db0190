"""Workers on this machine: a process for each, which ends when its driver has, however that ended.

A process hears Ctrl-C and SIGTERM from nobody but its driver. Messages go through a pair of sockets in
the form of `multiprocessing`; both ends are our own.
"""

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait

from zipcli.errors import ExitCode, StoppedError, WorkerLostError
from zipcli.models.hub import Listener
from zipcli.pipeline.crew import Hand
from zipcli.pipeline.messages import Job, Message, Said, Stop, Unit

PROGRAM = ("-P", "-m", "zipcli.pipeline.processes")
"""What Python runs in a worker: nothing from the folder that we happen to stand in."""


class ProcessHand:
    """A process, as the driver sees it."""

    def __init__(self, job: Job) -> None:
        """Start it, without waiting until it is ready.

        Raises:
            WorkerLostError: That is not possible.
        """
        self.name = job.config.device
        self.connection, theirs = Pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, *PROGRAM, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=2,  # ours may be for JSON
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C in the terminal is for us alone
            )
        except OSError as e:
            raise WorkerLostError(f"a worker cannot be started: {e.strerror}") from e
        finally:
            theirs.close()
        self._send(job)

    def send(self, unit: Unit) -> None:
        """Hand it a unit."""
        self._send(unit)

    def receive(self) -> list[Message]:
        """What it has said.

        Raises:
            WorkerLostError: It is dead.
        """
        try:
            message: Message = self.connection.recv()
        except (EOFError, OSError) as e:
            raise WorkerLostError(_ended(self._process.wait())) from e
        return [message]

    def stop(self) -> None:
        """Ask it to end."""
        self._send(Stop())

    def kill(self) -> None:
        """End it now."""
        self._process.kill()
        self._process.wait()
        self.connection.close()

    def _send(self, message: Job | Unit | Stop) -> None:
        with suppress(OSError):  # `receive` will find it dead
            self.connection.send(message)


def _ended(code: int) -> str:
    if code >= 0:
        return f"ended with code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


class Processes:
    """A `Crew` of processes, each on its device."""

    starts_at_once = True

    def __init__(self, job: Job, devices: Sequence[str], workers: int | None = None) -> None:
        """Say where to work.

        Args:
            job: What to do.
            devices: One for each process, such as cuda:0.
            workers: How many processes; the devices are taken in turn. None for one for each device.
        """
        self._job = job
        self._devices = devices
        self.size = workers or len(devices)

    def hire(self, number: int) -> Hand:
        """Start a process."""
        device = self._devices[number % len(self._devices)]
        config = self._job.config.changed(device=device)
        return ProcessHand(replace(self._job, config=config, detect=replace(self._job.detect, device=device)))

    def wait(self, hands: Collection[Hand], seconds: float) -> list[Hand]:
        """Wait until some have something to say, or are dead."""
        by_connection = {hand.connection: hand for hand in hands if isinstance(hand, ProcessHand)}
        ready = wait(by_connection, seconds)
        return [hand for connection, hand in by_connection.items() if connection in ready]


class Inbox(threading.Thread):
    """Hears the driver while the network computes: units, a request to stop, and its end."""

    def __init__(self, connection: Connection) -> None:
        """Listen at once."""
        super().__init__(name="zipcli-inbox", daemon=True)
        self.units: queue.SimpleQueue[Unit | None] = queue.SimpleQueue()
        self._connection = connection
        self._is_stopped = False
        self.start()

    def run(self) -> None:
        """Take what comes."""
        while True:
            try:
                message = self._connection.recv()
            except (EOFError, OSError):
                # Nobody is left to answer to, and nobody would write down what we did.
                os._exit(ExitCode.BUG)
            if isinstance(message, Stop):
                self._is_stopped = True
                self.units.put(None)
            else:
                self.units.put(message)

    def check_stop(self) -> None:
        """Raise `StoppedError` when the driver has asked for it."""
        if self._is_stopped:
            raise StoppedError(ExitCode.TERMINATED)


def main() -> None:
    """Work until the driver asks us to stop, or is gone."""
    # A scheduler may tell every process to end, but the driver has lines to write about us. No SIG_IGN,
    # which a program that we start would inherit.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    connection = Connection(int(sys.argv[1]))
    job = connection.recv()
    inbox = Inbox(connection)

    from zipcli.pipeline.worker import last_words, open_worker  # torch: seconds, in which we listen

    def tell(message: Message) -> None:
        with suppress(OSError):  # the driver is gone, and so are we, as soon as the inbox finds out
            connection.send(message)

    listener = Listener(
        progress=lambda *values: tell(Said(kind="progress", values=values)),
        ended=lambda: tell(Said(kind="ended", values=())),
        note=lambda text: tell(Said(kind="note", values=(text,))),
        check_stop=inbox.check_stop,
    )
    try:
        with open_worker(job, listener) as worker:
            tell(worker.ready)
            while (unit := inbox.units.get()) is not None:
                worker.work(unit, tell)
    except StoppedError:
        pass
    except Exception as e:  # the driver decides what it means
        tell(last_words(e))


if __name__ == "__main__":
    main()
