"""A backend in front of the local one that takes over what jobs of earlier runs have done, or still do, alone.

::

    submit ──► no entry writes the same ──────────────────────────► the local backend
           └─► one does ──► claim, compare ──► another job: end it, discard ──┘
                                           └─► the same: wait for it ──► publish ──► done

What differs is ended and discarded when a job comes that writes the same, and not before: of what this run does not ask
for, nobody can say that nobody will.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace

from ..errors import UnfitError
from ..model import Done, LaunchSpec, Outcome, Verdict
from ..record.verdicts import read_verdict, was_discarded
from ..sameness import differences, identify, places
from ..staged import Claim, Entry, Status, claim, tell
from ..unattended import lost, never_started
from .local import LocalBackend
from .queued import QueuedBackend

_AGAIN_SECONDS = 1.0  # a supervisor that does not know yet that it is alone hears nothing
_LOOK_MILLISECONDS = 200  # for a claim of another run
_HELPERS = 4
_MERCY_SECONDS = 30.0  # beyond the grace of a job; then its supervisor is killed, and with it all of the job


@dataclass(slots=True)
class _Taken:
    """A job of this run, as long as it is here."""

    spec: LaunchSpec
    done: Done
    reason: str | None = None  # why it shall end
    grace: bool = True
    left: bool = False  # Snakemake loses its terminal: whatever it is, let it be
    bell: int = field(default_factory=lambda: os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))  # rung for each of these


class AdoptingBackend:
    """The local backend, and what is found in the state directory when a run starts."""

    def __init__(
        self,
        inner: LocalBackend | QueuedBackend,
        found: list[Entry],
        run: str,
        notice: Callable[[str], None],
        ended: Callable[[str], None],
    ) -> None:
        """Make it when the nursery has been forked: it starts threads.

        Args:
            found: the entries of earlier runs.
            run: for their records.
            notice: shows a sentence to the user; called in any thread.
            ended: is told the path of each entry whose job was running and has ended: what it held is free.

        """
        self._inner = inner
        self.name = inner.name
        self.host = inner.host
        self._run = run
        self._notice = notice
        self._ended = ended
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._table: dict[str, Entry] = {}  # a place to who writes it
        for entry in found:
            self._table.update(dict.fromkeys(entry.identity.outputs, entry))
        self._taken: dict[str, _Taken] = {}
        self._adopted: list[str] = []
        self._helpers = ThreadPoolExecutor(_HELPERS, thread_name_prefix="forge-adopting")
        self._closing = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK | os.EFD_SEMAPHORE)  # rung once for each watcher
        self._closed = False
        self._watchers = [
            threading.Thread(target=self._await, args=(entry,), name="forge-alone", daemon=True)
            for entry in found
            if entry.status() is Status.RUNNING
        ]
        for watcher in self._watchers:
            watcher.start()

    @property
    def adopted(self) -> list[str]:
        """``run/attempt`` of each so far."""
        with self._lock:
            return list(self._adopted)

    def check(self, rule: str, resources: dict[str, object]) -> None:
        """See :class:`..model.Backend`."""
        self._inner.check(rule, resources)

    def submit(self, spec: LaunchSpec, payload: bytes, done: Done, *, is_command: bool) -> None:
        """See :class:`..model.Backend`. Nothing is looked at here: that could take long."""
        if not self._table:
            self._inner.submit(spec, payload, done, is_command=is_command)
            return
        with self._lock:
            found = list({e.path: e for place in places(spec) if (e := self._table.pop(place, None))}.values())
            if found:
                for entry in found:
                    for place in entry.identity.outputs:
                        self._table.pop(place, None)
                taken = self._taken[spec.name] = _Taken(spec, done)
        if not found:
            self._inner.submit(spec, payload, done, is_command=is_command)
            return

        def otherwise() -> None:
            self._inner.submit(spec, payload, done, is_command=is_command)

        self._helpers.submit(self._begin, taken, found, otherwise)

    # -- one job (in threads) --------------------------------------------------------------------------------------

    def _begin(self, taken: _Taken, found: list[Entry], otherwise: Callable[[], None]) -> None:
        """Who has to wait does it in a thread of its own, so that others are not kept waiting."""
        if all(entry.status() is Status.STAGED and not _is_claimed(entry) for entry in found):
            self._carry_out(taken, found, otherwise)
        else:
            threading.Thread(target=self._carry_out, args=(taken, found, otherwise), name="forge-adopting").start()

    def _carry_out(self, taken: _Taken, found: list[Entry], otherwise: Callable[[], None]) -> None:
        verdict: Verdict | None = None
        try:
            verdict = self._consider(taken, found)
        except OSError as error:
            self._notice(f"Forge: rule {taken.spec.rule}: what an earlier run has left cannot be adopted: {error}")
        except BaseException as error:  # a bug of ours: Snakemake must be told something
            verdict = lost(taken.spec, f"to adopt it failed: {error!r}")
            raise
        finally:
            self._end(taken, verdict, otherwise)

    def _consider(self, taken: _Taken, found: list[Entry]) -> Verdict | None:
        """The verdict on what was adopted, if anything was; what is not the same is given up.

        Raises:
            OSError: if what was found cannot be looked at.

        """
        present = identify(taken.spec)
        verdict: Verdict | None = None
        for entry in reversed(found):  # the newest first
            if entry.status() is Status.ELSEWHERE:
                continue
            held = self._claim(taken, entry)
            try:
                why = "; ".join(differences(entry.identity, present))
                if not taken.spec.adoptable:
                    why = "its outputs are not staged now"
                elif verdict is not None:
                    why = why or "there is a newer one"
                if held is None:  # whoever had it claimed is done with it
                    verdict = verdict or (None if why else _published(entry))
                elif entry.status() is Status.OVER and (why or _published(entry) is None):
                    held.discard("")  # it failed: its verdict is on record, and it is run again
                elif why:
                    self._give_up(taken, held, why)
                else:
                    verdict = self._adopt(taken, held)
            finally:
                if held is not None:
                    held.release()
        return verdict

    def _claim(self, taken: _Taken, entry: Entry) -> Claim | None:
        """Claim it, or wait until whoever has done so is done; None if there is nothing left to be claimed."""
        while (held := claim(entry)) is None and os.path.exists(entry.path) and not taken.left and not taken.reason:
            select.poll().poll(_LOOK_MILLISECONDS)
        return held

    def _end(self, taken: _Taken, verdict: Verdict | None, otherwise: Callable[[], None]) -> None:
        """Tell Snakemake, or have it run."""
        name = taken.spec.name
        with self._lock:
            told = not taken.left and (verdict is not None or taken.reason is not None)
            if not told:
                self._forget(name)
                if not taken.left:
                    otherwise()  # with the lock, so that who ends all does not miss it
        if told:
            try:
                taken.done(verdict or never_started(taken.spec, str(taken.reason)))
            finally:
                with self._lock:
                    self._forget(name)

    def _forget(self, name: str) -> None:
        """With the lock."""
        os.close(self._taken.pop(name).bell)
        self._idle.notify_all()

    def _give_up(self, taken: _Taken, held: Claim, why: str) -> None:
        """End and discard what another job has done, or still does, at the places of this one."""
        entry = held.entry
        running = entry.status() is Status.RUNNING
        what = "still makes" if running else "had staged"
        self._notice(f"Forge: rule {entry.rule}: what run {entry.run} {what} is discarded, because {why}.")
        self._stop(entry, taken, grace=True)
        held.discard(why)

    def _stop(self, entry: Entry, taken: _Taken, *, grace: bool) -> None:
        """Have its supervisor end it, and wait until it has."""
        begin = time.monotonic()
        patience = taken.spec.grace_seconds + _MERCY_SECONDS if grace else 0.0
        while entry.supervised() and entry.status() is Status.RUNNING:
            late = time.monotonic() - begin > patience or (taken.reason is not None and not taken.grace)
            tell(entry, signal.SIGKILL if late else signal.SIGTERM)
            _wait_for(entry, _AGAIN_SECONDS, taken.bell)

    def _adopt(self, taken: _Taken, held: Claim) -> Verdict | None:
        """Wait for the job and bring what it has written to its places; None if it has to be run again."""
        entry = held.entry
        if entry.status() is Status.RUNNING:
            self._notice(f"Forge: rule {entry.rule} goes on since run {entry.run}: adopted ({entry.directory}).")
            while entry.status() is Status.RUNNING:
                if taken.left:
                    return None
                if taken.reason is not None:
                    self._stop(entry, taken, grace=taken.grace)
                _wait_for(entry, None, taken.bell)
        if taken.left:
            return None
        if entry.status() is Status.STAGED:
            return self._publish(held)
        verdict = read_verdict(entry.directory)
        if verdict is None or verdict.outcome in (Outcome.LOST, Outcome.CANCELLED):
            why = "its supervisor died" if verdict is None else verdict.reason
            if taken.reason is None:
                self._notice(f"Forge: rule {entry.rule}, adopted from run {entry.run}, is run again: {why}.")
            held.discard("")
            return None if taken.reason is None or verdict is None else verdict
        return self._noted(entry, held.mark(self._run))

    def _publish(self, held: Claim) -> Verdict | None:
        entry = held.entry
        try:
            verdict = held.publish(self._run)
        except UnfitError as error:
            self._notice(f"Forge: rule {entry.rule}: what run {entry.run} had staged is discarded, because {error}.")
            held.discard(str(error))
            return None
        except OSError as error:
            reason = f"its outputs, staged by run {entry.run}, could not be published, and none was: {error}"
            found = read_verdict(entry.directory)
            return None if found is None else replace(found, outcome=Outcome.FAILED, reason=reason)
        self._notice(f"Forge: rule {entry.rule} had finished without its run {entry.run}: adopted ({entry.directory}).")
        return self._noted(entry, verdict)

    def _noted(self, entry: Entry, verdict: Verdict) -> Verdict:
        with self._lock:
            self._adopted.append(f"{entry.run}/{entry.name}")
        return verdict

    def _await(self, entry: Entry) -> None:
        """Until its supervisor has ended, or it is clear that it will soon."""
        while not self._closed and entry.supervised() and entry.status() is Status.RUNNING:
            _wait_for(entry, None, self._closing)
        if not self._closed:
            self._ended(entry.path)

    # -- of all ----------------------------------------------------------------------------------------------------

    def cancel(self, name: str, reason: str) -> None:
        """See :class:`..model.Backend`."""
        with self._lock:
            taken = self._taken.get(name)
            if taken is not None:
                taken.reason = taken.reason or reason
                os.eventfd_write(taken.bell, 1)
        if taken is None:
            self._inner.cancel(name, reason)

    def cancel_all(self, reason: str, grace: bool) -> None:
        """See :class:`..model.Backend`. What this run has not adopted goes on."""
        self._cancel_own(reason, grace=grace)
        self._inner.cancel_all(reason, grace)

    def _cancel_own(self, reason: str, *, grace: bool) -> None:
        with self._lock:
            for taken in self._taken.values():
                taken.reason = taken.reason or reason
                taken.grace = taken.grace and grace
                os.eventfd_write(taken.bell, 1)

    def leave(self, reason: str) -> None:
        """See :class:`..model.Leaves`."""
        with self._lock:
            for taken in self._taken.values():
                taken.left = True
                os.eventfd_write(taken.bell, 1)
        self._inner.leave(reason)

    def wait_idle(self, timeout_seconds: float) -> bool:
        """See :class:`..model.Backend`."""
        deadline = time.monotonic() + timeout_seconds
        with self._idle:
            idle = self._idle.wait_for(lambda: not self._taken, timeout_seconds)
        return self._inner.wait_idle(max(0.0, deadline - time.monotonic())) and idle

    def close(self) -> None:
        """See :class:`..model.Backend`."""
        self._cancel_own("the run is over", grace=False)
        with self._idle:
            self._idle.wait_for(lambda: not self._taken, _MERCY_SECONDS)
        self._helpers.shutdown()
        self._closed = True
        os.eventfd_write(self._closing, len(self._watchers))
        for watcher in self._watchers:
            watcher.join()
        os.close(self._closing)
        self._inner.close()
        self._say_what_is_left()

    def _say_what_is_left(self) -> None:
        """What this run had no use for: it waits for another one, unless none can have any use for it either."""
        left = list({entry.path: entry for entry in self._table.values()}.values())
        running = [entry for entry in left if entry.status() is Status.RUNNING]
        waiting = [entry for entry in left if entry.status() is Status.STAGED and not self._is_stale(entry)]
        if running or waiting:
            rules = ", ".join(sorted({entry.rule for entry in (*running, *waiting)}))
            self._notice(
                f"Forge: {len(running)} job(s) of earlier runs still run and {len(waiting)} wait with staged outputs; "
                f"this run had no use for them (rule {rules}). snakemake-forge resume --stop ends those that run; "
                "snakemake-forge gc gives up what waits for too long."
            )


    def _is_stale(self, entry: Entry) -> bool:
        """Whether it cannot be published any more; then it is discarded."""
        held: Claim | None = None
        with suppress(OSError):
            held = claim(entry)
        if held is None:
            return False
        try:
            held.check()
        except UnfitError as error:
            self._notice(f"Forge: rule {entry.rule}: what run {entry.run} had staged is discarded, because {error}.")
            held.discard(str(error))
            return True
        finally:
            held.release()
        return False


def _is_claimed(entry: Entry) -> bool:
    """Whether somebody has it, for the moment."""
    with suppress(OSError):
        held = claim(entry)
        if held is not None:
            held.release()
            return False
    return True


def _published(entry: Entry) -> Verdict | None:
    """The verdict on a job that is over, if its outputs were published: by its own run, or by one that adopted it."""
    verdict = read_verdict(entry.directory)
    if verdict is None or not verdict.ok or verdict.staged or was_discarded(entry.directory):
        return None
    return verdict


def _wait_for(entry: Entry, seconds: float | None, bell: int) -> None:
    """Until its supervisor has ended, the time is over, or somebody rings."""
    try:
        fd = os.pidfd_open(entry.pid)
    except OSError:
        return
    try:
        if entry.supervised():
            poll = select.poll()
            for readable in (fd, bell):
                poll.register(readable, select.POLLIN)
            poll.poll(None if seconds is None else seconds * 1000)
            with suppress(BlockingIOError):
                os.eventfd_read(bell)
    finally:
        os.close(fd)
