"""The command that repairs an environment which Forge did not make, by the tool that most likely made it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence

from ..spec.catalog import Runtime, RuntimeKind
from .damage import Damage, Problem
from .store import Manifest


def by_hand(runtime: Runtime, manifest: Manifest | None, damage: Sequence[Problem]) -> str:
    """The advice for an environment that Forge did not make: whose it is, and the command that repairs its packages."""
    known = [tuple(p.package.split()) for p in damage if p.package and p.fault is not Damage.C_LIBRARY]
    command = _command(runtime, manifest.prefix, list(dict.fromkeys(known))) if manifest is not None else None
    owner = f"It is not of Forge's making: have whoever made {runtime.source} make it again"
    return f"{owner}." if command is None else f"{owner}, or repair it with: {command}"


def _command(runtime: Runtime, prefix: str, packages: list[tuple[str, ...]]) -> str | None:
    if not packages:
        return None
    place = shlex.quote(prefix)
    if runtime.kind is RuntimeKind.CONTAINER:
        return f"chroot {place} apt-get install --reinstall {' '.join(p[0] for p in packages)}"
    if not os.path.isdir(f"{prefix}/conda-meta"):
        names = " ".join(shlex.quote("==".join(p)) for p in packages)
        return f"{place}/bin/python -m pip install --force-reinstall --no-deps {names}"
    if os.path.exists(f"{prefix}/conda-meta/pixi"):
        return f"rm -r {place}, and pixi install in the directory of its pixi.toml"
    wanted = [(p, _is_of_conda(prefix, p)) for p in packages]
    of_conda = [shlex.quote("=".join(p)) for p, ours in wanted if ours]
    of_pip = [shlex.quote("==".join(p)) for p, ours in wanted if not ours]
    commands = [f"conda install --prefix {place} --force-reinstall {' '.join(of_conda)}"] if of_conda else []
    if of_pip:
        commands.append(f"{place}/bin/python -m pip install --force-reinstall --no-deps {' '.join(of_pip)}")
    return " && ".join(commands)


def _is_of_conda(prefix: str, package: tuple[str, ...]) -> bool:
    start = f"{'-'.join(package)}-"
    return any(name.startswith(start) for name in os.listdir(f"{prefix}/conda-meta"))
