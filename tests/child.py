"""Runs a function in a forked child of the test, as root or as an ordinary user, and returns its result."""

from __future__ import annotations

import os
import pickle
import signal
import traceback
from collections.abc import Callable
from typing import TypeVar

from .ordinary import UID

Value = TypeVar("Value")


def in_child(function: Callable[[], Value], *, ordinary: bool = False) -> Value:
    """Fork, run the function, and return its result. An exception or a signal in the child fails an assertion here."""
    answers, answer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(answers)
        result: tuple[bool, object] = (False, "the child returned nothing")
        try:
            signal.alarm(60)
            if ordinary and os.geteuid() == 0:
                os.setgroups([])
                os.setresgid(UID, UID, UID)
                os.setresuid(UID, UID, UID)
            result = (True, function())
        except BaseException:
            result = (False, traceback.format_exc())
        finally:
            with open(answer, "wb") as file:
                pickle.dump(result, file)
            os._exit(0)
    os.close(answer)
    with open(answers, "rb") as file:
        text = file.read()
    status = os.waitpid(pid, 0)[1]
    assert text, f"the child ended with status {os.waitstatus_to_exitcode(status)} and said nothing"
    good, value = pickle.loads(text)
    assert good, value
    found: Value = value
    return found
