"""A pytest plugin: runs Snakemake's own tests with another executor wherever they would use ``local``.

``-p use_executor`` loads it into the pytest that runs them; two environment variables configure it.
Two ways lead from a test to an executor, and the plugin redirects both:

- the API in pytest's own process (most tests): ``DAGApi.execute_workflow``;
- ``snakemake`` as a command of the test: the ``subprocess`` module as the test modules see it.

Calls by a workflow itself (a ``snakemake`` in a shell command) are unchanged.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from snakemake.api import DAGApi

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

EXECUTOR = os.environ["FORGE_UPSTREAM_EXECUTOR"]
RESULTS = Path(os.environ["FORGE_UPSTREAM_RESULTS"])
TEST_MODULES = ("tests.common", "tests.tests", "tests.test_api", "tests.test_logging")

_TURNED_FUNCTIONS = ("run", "Popen", "check_call", "check_output")
_COMMAND = re.compile(r"(^|\s|/)snakemake(?=\s|$)")
TAKES = "takes the executor"  # the property of a test that would have used ``local``
_running: list[pytest.Item] = []


def _take() -> None:
    """Note that the running test uses the executor."""
    for item in _running:
        if (TAKES, True) not in item.user_properties:
            item.user_properties.append((TAKES, True))


def _turn_text(command: str) -> str:
    if "--executor" in command:
        turned = command.replace("--executor local", f"--executor {EXECUTOR}")
    else:
        turned = _COMMAND.sub(rf"\1snakemake --executor {EXECUTOR}", command, count=1)
    if turned != command:
        _take()
    return turned


def _turn(command: Any) -> Any:
    """Put the other executor into a command that calls snakemake."""
    if isinstance(command, str):
        return _turn_text(command)
    words = [os.fspath(word) for word in command]
    program = words[:3]  # snakemake, or python -m snakemake
    place = next((i for i, word in enumerate(program) if Path(word).name == "snakemake"), None)
    if place is None or "--executor" in words:
        return command
    _take()
    return [*words[: place + 1], "--executor", EXECUTOR, *words[place + 1 :]]


def _turned(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(command: Any, *args: Any, **kwargs: Any) -> Any:
        return function(_turn(command), *args, **kwargs)

    return call


def _turned_subprocess() -> SimpleNamespace:
    turned = {name: _turned(getattr(subprocess, name)) for name in _TURNED_FUNCTIONS}
    return SimpleNamespace(**{**vars(subprocess), **turned})


def _turn_module(module: ModuleType) -> None:
    for name, value in list(vars(module).items()):
        if value is subprocess:
            setattr(module, name, _turned_subprocess())


def _turn_api() -> None:
    original = DAGApi.execute_workflow

    def execute_workflow(self: Any, executor: str = "local", *args: Any, **kwargs: Any) -> Any:
        if executor == "local":
            _take()
            executor = EXECUTOR
        return original(self, executor, *args, **kwargs)

    setattr(DAGApi, "execute_workflow", execute_workflow)  # noqa: B010 - mypy forbids the plain assignment


def pytest_configure() -> None:
    """Redirect the API."""
    if EXECUTOR != "local":
        _turn_api()


def pytest_collection_modifyitems() -> None:
    """Redirect the commands of the test modules, which are all imported by now."""
    if EXECUTOR != "local":
        for name in TEST_MODULES:
            if name in sys.modules:
                _turn_module(sys.modules[name])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Remember the running test."""
    _running[:] = [item]
    return (yield)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Record the end of a test, in the process that all workers report to; it also notices a worker's death."""
    if "PYTEST_XDIST_WORKER" in os.environ or (report.passed and report.when != "call"):
        return
    text = "\n".join([str(report.longrepr), *(f"--- {name}\n{body}" for name, body in report.sections)]) if report.failed else ""
    takes = (TAKES, True) in map(tuple, report.user_properties)
    record = {"test": report.nodeid, "outcome": report.outcome, "takes": takes, "seconds": round(report.duration, 2), "text": text}
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
