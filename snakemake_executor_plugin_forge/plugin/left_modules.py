"""Modules that jobs have left where Snakemake imports from: it runs them outside of any sandbox, as with ``local``."""

from __future__ import annotations

import importlib.machinery
import os
import sys
from collections.abc import Iterator

from ..kernel.imports import modules_in, own_path
from ..spec.paths import STATE
from ..spec.printable import printable
from ..staging.owners import Owners


def left_modules(workdir: str) -> Iterator[str]:
    """Yield a message for each module of a job that Snakemake has imported, or would import instead of another one."""
    own, owners = own_path(sys.path), Owners(workdir, f"{workdir}/{STATE}", ())
    for name, path in modules_in([entry for entry in sys.path if entry not in own]).items():
        parent, base = os.path.split(path)
        source = f"{path}/__init__.py" if os.path.isdir(path) else path
        compiled = f"{parent}/__pycache__/{base.removesuffix('.py')}.{sys.implementation.cache_tag}.pyc"
        for file in (source, compiled):
            rule = owners.left_by(file)
            if rule is None:
                continue
            if getattr(sys.modules.get(name), "__file__", None) == source:
                yield _message(f"has imported {file}", rule, file, workdir)
            elif name in sys.stdlib_module_names or importlib.machinery.PathFinder.find_spec(name, own) is not None:
                yield _message(f"would import {file} instead of the installed module {name}", rule, file, workdir)


def _message(what: str, rule: str, file: str, workdir: str) -> str:
    name = os.path.realpath(file).removeprefix(f"{workdir}/")
    whose = f"a job of rule {rule}" if rule else "a job"
    return printable(
        f"Forge: Snakemake {what}, which {whose} has left there undeclared; it runs outside of any sandbox. If "
        f'that is not meant, remove it; if it is, declare it: output: "{name}".'
    )
