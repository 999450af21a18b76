"""A backend in front of the local one that takes over jobs of earlier runs, which ended or still run without them.

::

    submit ──► no entry writes the same files ─────────────────────────────► the local backend
           └─► one does ──► claim, compare ──► another job: end it, discard it ──┘
                                           └─► the same job: wait for its end ──► publish ──► done

A job that differs is ended and discarded when a job that writes the same files is submitted, and not before: a later
run may still ask for it.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

from ...kernel.descriptors import closing, is_readable
from ...record.codec import read_verdict, was_discarded
from ...spec import words
from ...spec.backend import Done
from ...spec.errors import UnfitError
from ...spec.job import LaunchSpec
from ...spec.outcome import revised
from ...spec.verdict import Cause, EndedBy, Order, Outcome, Verdict
from ...staging.confines import in_words
from ...staging.fingerprint import differences, output_paths, take_fingerprint
from ...staging.journal import UndecidedError
from ...staging.liveness import signal_supervisor
from ...staging.pending import Entry, EntryClaim, Status, claim
from ...supervisor.reaper import lost, never_started
from .admission import QueuedBackend
from .backend import LocalBackend
from .takeover import Deed, Seen, Takeover, TakeoverPhase, decide

_AGAIN_SECONDS = 1.0  # a supervisor that does not know yet that Snakemake is gone ignores signals
_CLAIM_MILLISECONDS = 200  # between two attempts at a claim that another run has
_THREADS = 1000  # one for each job of this run that waits for one of an earlier run
_MERCY_SECONDS = 30.0  # beyond the grace of a job; then its supervisor is killed, and the job with it


@dataclass(slots=True)
class _Taken:
    """A job of this run, from its submission until it is told of or passed on."""

    spec: LaunchSpec
    done: Done
    order: Order | None = None  # to end it
    left: bool = False  # Snakemake loses its terminal: what runs continues
    bell: int = field(default_factory=lambda: os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))  # written at each change


class AdoptingBackend:
    """The local :class:`...spec.backend.Backend`, and the entries that a run finds in its state directory at its start.

    Longer than other classes: the calls of the contract and the threads that adopt share one table and its lock.
    """

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
            run: the id of this run, for their records.
            notice: shows a sentence to the user; called in any thread.
            ended: called with the path of each entry whose job ran at the start and has ended.
        """
        self._inner = inner
        self.name = inner.name
        self.host = inner.host
        self._run = run
        self._notice = notice
        self._ended = ended
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._table: dict[str, Entry] = {}  # by path of an output
        for entry in found:
            self._table.update(dict.fromkeys(entry.identity.outputs, entry))
        self._taken: dict[str, _Taken] = {}
        self._adopted: list[str] = []
        self._takeovers = ThreadPoolExecutor(_THREADS, thread_name_prefix="forge-adopting")
        self._closing = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK | os.EFD_SEMAPHORE)  # once for each watcher
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
        """``run/attempt`` of each adopted job so far."""
        with self._lock:
            return list(self._adopted)

    def check(self, rule: str, resources: dict[str, object]) -> None:
        self._inner.check(rule, resources)

    def submit(self, spec: LaunchSpec, payload: bytes, done: Done, *, is_command: bool) -> None:
        """See :class:`...spec.backend.Backend`. No entry is read here: that could take long."""
        otherwise = partial(self._inner.submit, spec, payload, done, is_command=is_command)
        with self._lock:
            places = output_paths(spec) if self._table else ()
            found = list({entry.path: entry for place in places if (entry := self._table.get(place))}.values())
            for place in [place for entry in found for place in entry.identity.outputs]:
                self._table.pop(place, None)
            if found:
                self._taken[spec.name] = taken = _Taken(spec, done)
        if found:
            self._takeovers.submit(self._run_takeovers, taken, found, otherwise)
        else:
            otherwise()

    # -- one job (in threads) --------------------------------------------------------------------------------------

    def _run_takeovers(self, taken: _Taken, found: list[Entry], otherwise: Callable[[], None]) -> None:
        verdict: Verdict | None = None
        try:
            verdict = self._consider(taken, found)
        except OSError as error:
            self._notice(f"Forge: rule {taken.spec.rule}: the result of an earlier run cannot be adopted: {error}")
        except BaseException as error:  # a bug of Forge: Snakemake must be told all the same
            traceback.print_exc()
            verdict = lost(taken.spec, Cause.ADOPTION_FAILED, repr(error))
        finally:
            self._end(taken, verdict, otherwise)

    def _consider(self, taken: _Taken, found: list[Entry]) -> Verdict | None:
        """Return the verdict on what was adopted, if anything was.

        Raises:
            OSError: if an entry or its files cannot be read.
        """
        present = take_fingerprint(taken.spec)
        verdict: Verdict | None = None
        for entry in reversed(found):  # the newest first
            why = "; ".join(differences(entry.identity, present))
            if not taken.spec.adoptable:
                why = "its outputs are not staged now"
            elif verdict is not None:
                why = why or "there is a newer one"
            verdict = self._take_over(taken, entry, why) or verdict
        return verdict

    def _take_over(self, taken: _Taken, entry: Entry, why: str) -> Verdict | None:
        state = Takeover(why, taken.spec.grace_seconds + _MERCY_SECONDS)
        verdict: Verdict | None = None
        held: EntryClaim | None = None
        try:
            while state.phase is not TakeoverPhase.OVER:
                held = held or claim(entry)
                seen = _see(entry, taken, held=held is not None)
                state, deed = decide(state, seen)
                if held is None:
                    verdict = seen.verdict if deed is Deed.COUNT else None
                    if deed is Deed.WAIT_FOR_CLAIM:
                        select.poll().poll(_CLAIM_MILLISECONDS)
                elif state.phase is TakeoverPhase.OVER:
                    verdict = self._conclude(deed, held, seen, why)
                else:
                    self._proceed(deed, held.entry, seen, taken, why)
        finally:
            if held is not None:
                held.release()
        return verdict

    def _proceed(self, deed: Deed, entry: Entry, seen: Seen, taken: _Taken, why: str) -> None:
        begin, running = f"Forge: rule {entry.rule}", seen.status is Status.RUNNING
        match deed:
            case Deed.REPLACE:
                what = "still makes" if running else "had staged"
                self._notice(f"{begin}: the outputs that run {entry.run} {what} are discarded, because {why}.")
            case Deed.ADOPT:
                if running:
                    self._notice(f"{begin} continues from run {entry.run}: adopted ({entry.directory}).")
            case Deed.WAIT:
                _wait_for(entry, None, taken.bell)
            case Deed.TERMINATE | Deed.KILL:
                signal_supervisor(entry, signal.SIGKILL if deed is Deed.KILL else signal.SIGTERM)
                _wait_for(entry, _AGAIN_SECONDS, taken.bell)
            case _:
                raise AssertionError(f"{deed.name} does not come before the end")

    def _conclude(self, deed: Deed, held: EntryClaim, seen: Seen, why: str) -> Verdict | None:
        """Do the last deed; returns the verdict that counts for the job of this run."""
        entry = held.entry
        match deed:
            case Deed.NOTHING:
                return None
            case Deed.PUBLISH:
                return self._publish(held)
            case Deed.RECORD:
                return self._noted(entry, held.mark(self._run))
            case Deed.RUN_AGAIN:
                ended = "its supervisor died" if seen.verdict is None else seen.verdict.reason
                self._notice(f"Forge: rule {entry.rule}, adopted from run {entry.run}, is run again: {ended}.")
            case Deed.DISCARD | Deed.FORGET | Deed.STOPPED:
                pass
            case _:
                raise AssertionError(f"{deed.name} is not the end")
        held.discard(why if deed is Deed.DISCARD else "")
        return seen.verdict if deed is Deed.STOPPED else None

    def _end(self, taken: _Taken, verdict: Verdict | None, otherwise: Callable[[], None]) -> None:
        """Tell Snakemake of the verdict, or run the job."""
        name = taken.spec.name
        with self._lock:
            told = not taken.left and (verdict is not None or taken.order is not None)
            if not told:
                self._forget(name)
                if not taken.left:
                    otherwise()  # with the lock, so that cancel_all() cannot miss it
        if told:
            try:
                if verdict is None:
                    assert taken.order is not None
                    verdict = never_started(taken.spec, taken.order)
                taken.done(verdict)
            except Exception:  # a bug of Forge; a pool of threads keeps silent about it
                traceback.print_exc()
            finally:
                with self._lock:
                    self._forget(name)

    def _forget(self, name: str) -> None:
        """Forget a job. The caller holds the lock."""
        os.close(self._taken.pop(name).bell)
        self._idle.notify_all()

    def _publish(self, held: EntryClaim) -> Verdict | None:
        entry = held.entry
        try:
            verdict = held.publish(self._run)
        except UnfitError as error:
            self._notice(
                f"Forge: rule {entry.rule}: the outputs that run {entry.run} had staged are discarded, because {error}."
            )
            held.discard(str(error))
            return None
        except UndecidedError as error:  # the job is run again, so that its outputs are whole
            what = in_words(error.filename, os.path.realpath(os.getcwd()))
            self._notice(f"Forge: rule {entry.rule} of run {entry.run} cannot be adopted, and is run again: {what}")
            held.discard(str(error))
            return None
        except OSError as error:
            found, said = read_verdict(entry.directory), words.unseen(Cause.UNPUBLISHED, entry.run, error)
            if found is None:
                return None
            failed = revised(found, Outcome.FAILED, Cause.UNPUBLISHED, said)
            with suppress(OSError):  # a full disk: Snakemake is told all the same
                held.note_failure(failed)
            return failed
        self._notice(f"Forge: rule {entry.rule} has finished, begun by run {entry.run}: adopted ({entry.directory}).")
        return self._noted(entry, verdict)

    def _noted(self, entry: Entry, verdict: Verdict) -> Verdict:
        with self._lock:
            self._adopted.append(f"{entry.run}/{entry.name}")
        return verdict

    def _await(self, entry: Entry) -> None:
        """Wait until the supervisor of an entry has ended, or has written its verdict."""
        while not self._closed and entry.supervised() and entry.status() is Status.RUNNING:
            _wait_for(entry, None, self._closing)
        if not self._closed:
            self._ended(entry.path)

    # -- all jobs --------------------------------------------------------------------------------------------------

    def cancel(self, name: str, order: Order) -> None:
        with self._lock:
            taken = self._taken.get(name)
            if taken is not None:
                taken.order = taken.order or order
                os.eventfd_write(taken.bell, 1)
        if taken is None:
            self._inner.cancel(name, order)

    def cancel_all(self, order: Order) -> None:
        """See :class:`...spec.backend.Backend`. Jobs that this run has not adopted continue."""
        self._cancel_own(order)
        self._inner.cancel_all(order)

    def _cancel_own(self, order: Order) -> None:
        with self._lock:
            for taken in self._taken.values():
                first = taken.order or order
                taken.order = replace(first, grace=first.grace and order.grace)
                os.eventfd_write(taken.bell, 1)

    def leave(self, order: Order) -> None:
        with self._lock:
            for taken in self._taken.values():
                taken.left = True
                os.eventfd_write(taken.bell, 1)
        self._inner.leave(order)

    def wait_idle(self, timeout_seconds: float) -> bool:
        deadline = time.monotonic() + timeout_seconds
        with self._idle:
            idle = self._idle.wait_for(lambda: not self._taken, timeout_seconds)
        return self._inner.wait_idle(max(0.0, deadline - time.monotonic())) and idle

    def close(self) -> None:
        self._cancel_own(Order(EndedBy.FORGE, "the run is over", grace=False))
        with self._idle:
            self._idle.wait_for(lambda: not self._taken, _MERCY_SECONDS)
        self._takeovers.shutdown()
        self._closed = True
        os.eventfd_write(self._closing, len(self._watchers))
        for watcher in self._watchers:
            watcher.join()
        os.close(self._closing)
        self._inner.close()
        self._say_what_is_left()

    def _say_what_is_left(self) -> None:
        """Name the entries that this run had no use for; those that no run can publish any more are discarded."""
        left = list({entry.path: entry for entry in self._table.values()}.values())
        running = [entry for entry in left if entry.status() is Status.RUNNING]
        waiting = [entry for entry in left if entry.status() is Status.WAITING and not self._is_stale(entry)]
        if running or waiting:
            rules = ", ".join(sorted({entry.rule for entry in (*running, *waiting)}))
            self._notice(
                f"Forge: {len(running)} job(s) of earlier runs still run and {len(waiting)} wait with staged outputs; "
                f"this run had no use for them (rule {rules}). snakemake-forge resume --stop ends those that run; "
                "snakemake-forge gc deletes what has waited too long."
            )

    def _is_stale(self, entry: Entry) -> bool:
        """Whether an entry cannot be published any more; then it is discarded."""
        held: EntryClaim | None = None
        with suppress(OSError):
            held = claim(entry)
        if held is None:
            return False
        try:
            held.check()
        except UnfitError as error:
            self._notice(
                f"Forge: rule {entry.rule}: the outputs that run {entry.run} had staged are discarded, because {error}."
            )
            held.discard(str(error))
            return True
        finally:
            held.release()
        return False


def _see(entry: Entry, taken: _Taken, *, held: bool) -> Seen:
    exists = held or os.path.exists(entry.path)
    status = entry.status()
    verdict = read_verdict(entry.directory) if status is Status.OVER else None
    published = verdict is not None and verdict.ok and not verdict.staged and not was_discarded(entry.directory)
    return Seen(time.monotonic(), status, held, exists, verdict, published, taken.order, taken.left)


def _wait_for(entry: Entry, seconds: float | None, bell: int) -> None:
    """Wait until the supervisor of an entry has ended, the time is over, or the bell is rung."""
    try:
        fd = os.pidfd_open(entry.pid)
    except OSError:
        return
    with closing(fd):
        if entry.supervised():
            is_readable(fd, bell, seconds=seconds)
            with suppress(BlockingIOError):
                os.eventfd_read(bell)
