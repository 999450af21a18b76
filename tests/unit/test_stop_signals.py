"""Signals that end a run: when they raise, and when they do not."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from snakemake_executor_plugin_forge.plugin import stop_signals
from snakemake_executor_plugin_forge.plugin.stop_signals import StopSignals

from ..conftest import DEADLINE

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """The handlers of before each test."""
    before = {number: signal.getsignal(number) for number in ENDING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def waiting() -> threading.Semaphore:
    return threading.Semaphore(0)


@pytest.fixture
def signals(waiting: threading.Semaphore) -> Iterator[StopSignals]:
    made = StopSignals()
    made.take(SimpleNamespace(_open_jobs=waiting))
    yield made
    made.restore()


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM"), (signal.SIGHUP, "SIGHUP")])
def test_the_first_is_raised_where_the_scheduler_waits(
    signals: StopSignals, waiting: threading.Semaphore, number: int, name: str
) -> None:
    signal.raise_signal(number)
    with pytest.raises(KeyboardInterrupt):
        waiting.acquire()
    assert signals.by == name


def test_the_scheduler_waits_as_before_if_there_is_none(signals: StopSignals, waiting: threading.Semaphore) -> None:
    waiting.release()
    assert waiting.acquire()
    assert signals.by == "Ctrl-C"


def test_it_may_come_while_a_lock_is_held(signals: StopSignals, waiting: threading.Semaphore) -> None:
    """The handler does not raise between an acquisition and the ``try`` that would release the lock."""
    lock = threading.Lock()
    lock.acquire()
    signal.raise_signal(signal.SIGTERM)
    lock.release()
    with pytest.raises(KeyboardInterrupt):
        waiting.acquire()
    assert signals.by == "SIGTERM"


@pytest.mark.usefixtures("signals")
def test_it_may_be_delivered_to_another_thread(waiting: threading.Semaphore) -> None:
    """The main thread, which waits for a lock, sees nothing of it by itself."""
    sender = threading.Timer(0.2, lambda: signal.pthread_kill(threading.get_ident(), signal.SIGTERM))
    sender.start()
    with pytest.raises(KeyboardInterrupt):
        waiting.acquire(True, DEADLINE)
    sender.join()


def test_the_program_around_is_told_too(waiting: threading.Semaphore) -> None:
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    before = signal.set_wakeup_fd(write_end)
    try:
        signals = StopSignals()
        signals.take(SimpleNamespace(_open_jobs=waiting))
        signal.raise_signal(signal.SIGTERM)
        assert os.read(read_end, 1) == bytes([signal.SIGTERM])
        signals.restore()
        assert signal.set_wakeup_fd(before) == write_end
    finally:
        os.close(read_end)
        os.close(write_end)


def test_the_second_is_raised_at_once(signals: StopSignals, waiting: threading.Semaphore) -> None:
    signal.raise_signal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        waiting.acquire()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert signals.by == "SIGTERM"


@pytest.mark.usefixtures("signals")
def test_long_work_between_two_waits_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop_signals, "_PATIENCE_SECONDS", 0.05)
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        time.sleep(DEADLINE)


def test_a_scheduler_without_such_a_wait_is_interrupted_at_once() -> None:
    signals = StopSignals()
    signals.take(SimpleNamespace())
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)
    signals.restore()
    assert signals.by == "SIGTERM"


def test_ignored_signals_stay_ignored_and_handlers_are_restored(waiting: threading.Semaphore) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    before = [signal.getsignal(number) for number in ENDING]
    signals = StopSignals()
    signals.take(SimpleNamespace(_open_jobs=waiting))
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    assert [signal.getsignal(number) for number in ENDING] != before
    signals.restore()
    assert [signal.getsignal(number) for number in ENDING] == before


def test_nothing_is_handled_in_another_thread(waiting: threading.Semaphore) -> None:
    before = [signal.getsignal(number) for number in ENDING]
    thread = threading.Thread(target=StopSignals().take, args=(SimpleNamespace(_open_jobs=waiting),))
    thread.start()
    thread.join()
    assert [signal.getsignal(number) for number in ENDING] == before
