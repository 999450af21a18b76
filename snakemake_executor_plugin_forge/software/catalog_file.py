"""``forge.yaml``: YAML to a :class:`~..spec.catalog.Catalog`, with errors that name file, line, key and the near miss.

The shape of the file is a pydantic model, which also gives its JSON schema (docs/reference/forge.schema.json). Forge
imports this module only for a catalog, because pydantic takes a tenth of a second.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from ..spec.catalog import HOST, Allowance, Catalog, Paths, Runtime, RuntimeKind
from ..spec.errors import UsageError, near_miss
from ..spec.file_policy import TEMPORARY_VARIABLES
from ..spec.job import FilePolicy, Network
from ..spec.paths import CATALOG_FILE
from ..spec.printable import printable
from ..spec.units import parse_bytes, parse_seconds
from . import safe_yaml
from .safe_yaml import UnfitYamlError, read_text

SCHEMA_VERSION = 1
SCHEMA_ID = "https://github.com/snakemake-forge/snakemake-executor-plugin-forge/docs/reference/forge.schema.json"

_NAME = r"[A-Za-z][A-Za-z0-9_.-]*"
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MAX_PIDS = 4194304  # PID_MAX_LIMIT, proc(5)
_MOST_ANCESTORS = 100
_LONGEST = 500  # characters of a sentence
_SHOWN = 100  # characters of a key or value in a message


# -- values ------------------------------------------------------------------------------------------------------------


def _parsed(parse: Callable[[str, str], float]) -> Callable[[object], object]:
    def read(value: object) -> object:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError("must be text or a number")  # noqa: TRY004 - pydantic takes no other
        try:
            return parse(str(value), "")
        except UsageError as error:
            raise ValueError(str(error).removeprefix(f"={value}: ")) from None

    return read


def _switch(value: object) -> object:
    """Accept true and false for ``on`` and ``off``, as YAML 1.1 reads them."""
    return {True: "on", False: "off"}.get(value) if isinstance(value, bool) else value


def _variables(value: object) -> object:
    if not isinstance(value, dict):
        return value
    for name, text in value.items():
        if not _VARIABLE.fullmatch(str(name)):
            raise ValueError(f"{name!r} is no name of an environment variable")
        if name in TEMPORARY_VARIABLES or str(name).startswith("FORGE_"):
            raise ValueError(f"{name} is set by Forge for every job and cannot be set here")
        if isinstance(text, bool) or not isinstance(text, str | int | float):
            raise ValueError(f"the value of {name} must be text; put it in quotes")  # noqa: TRY004
    return {str(name): str(text) for name, text in value.items()}


Size = Annotated[
    int,
    BeforeValidator(_parsed(parse_bytes)),
    WithJsonSchema({"type": ["string", "integer"], "examples": ["4GiB", "500MB"], "description": "A size in bytes."}),
]
Time = Annotated[
    float,
    BeforeValidator(_parsed(parse_seconds)),
    WithJsonSchema({"type": ["string", "number"], "examples": ["30m", "24h"], "description": "A number: seconds."}),
]
Count = Annotated[int, Field(ge=1, le=_MAX_PIDS, strict=True)]
Switch = Annotated[
    Literal["on", "off"],
    BeforeValidator(_switch),
    WithJsonSchema({"enum": ["on", "off", True, False], "description": "The host's network, or only a loopback."}),
]
Variables = Annotated[dict[str, str], BeforeValidator(_variables)]
Name = Annotated[str, Field(pattern=f"^{_NAME}$")]
Text = Annotated[str, Field(min_length=1, strict=True)]


# -- the shape of the file ---------------------------------------------------------------------------------------------


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PathsModel(_Strict):
    """Paths beyond what the file policy gives. Relative ones start at the directory of this file."""

    read: tuple[Text, ...] = Field((), description="To be read.")
    write: tuple[Text, ...] = Field((), description="To be written.")
    hide: tuple[Text, ...] = Field((), description="Not to be seen.")


class _Policy(_Strict):
    memory: Size | None = Field(None, description="Memory of a job whose rule has no mem_mb.")
    pids: Count | None = Field(None, description="Processes and threads of one job.")
    wall: Time | None = Field(None, description="Wall time of a job whose rule has no runtime.")
    disk: Size | None = Field(None, description="Temporary files of a job whose rule has no disk_mb.")
    network: Switch | None = Field(None, description="The host's network, or only a loopback of the job's own.")
    files: Literal["guard", "strict", "open"] | None = Field(None, description="The file policy.")
    env: Variables = Field({}, description="Environment variables of the jobs.")
    paths: PathsModel = PathsModel.model_validate({})


class RuntimeModel(_Policy):
    """One software environment. At most one of host, venv, conda and container; without any: host."""

    host: Literal[True] | None = Field(None, description="The environment in which Snakemake was started.")
    venv: Text | None = Field(None, description="A requirements file for pip.")
    python: Text | None = Field(None, description="The interpreter of a venv; default: that of Snakemake.")
    conda: Text | None = Field(None, description="An environment file, a lock file, or the prefix of an environment.")
    container: Text | None = Field(
        None, description="An image: oci-archive:FILE, oci:DIR, docker-archive:FILE, dir:DIR (its root), or a name."
    )
    inherits: Text | None = Field(None, description="A runtime whose keys hold where this one has none.")


class DefaultsModel(_Policy):
    """The defaults where neither a rule nor its runtime says otherwise."""

    runtime: Text = Field(HOST, description="The runtime of rules that nothing else gives one.")


class ForgeFile(_Strict):
    """The catalog of runtimes of snakemake-executor-plugin-forge."""

    version: Literal[1] = Field(description="The version of this format.")
    defaults: DefaultsModel = DefaultsModel.model_validate({})
    runtimes: dict[Name, RuntimeModel] = Field({}, description="The runtimes by name.")
    rules: dict[Text, Text] = Field(
        {}, description="Pattern of rule names (* ? [abc]) to a runtime; the first that fits holds."
    )
    protect: tuple[Text, ...] = Field((), description="Paths that no job may see.")
    provenance: Text | None = Field(None, description="The directory in which each run leaves a crate; no job sees it.")


def schema() -> str:
    """The JSON schema of the file, for editors."""
    body = ForgeFile.model_json_schema()
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": SCHEMA_ID, **body}, indent=1)


# -- reading it --------------------------------------------------------------------------------------------------------


def find(path: str | None, directory: str, argument: str = "--forge-config") -> str | None:
    """The path of the catalog: the given one, or forge.yaml in ``directory`` if it exists.

    Args:
        argument: with which it is given.

    Raises:
        UsageError: if the given one does not exist.
    """
    if path is None:
        own = os.path.abspath(f"{directory}/{CATALOG_FILE}")
        return own if os.path.isfile(own) else None
    if not os.path.isfile(path):
        raise UsageError(f"{argument}={path}: there is no such file.")
    return os.path.abspath(path)


def load(path: str) -> Catalog:
    """Read and check a catalog.

    Raises:
        UsageError: for the first error, with file, line, key, value and near miss.
    """
    try:
        text = read_text(path)
    except (OSError, UnicodeDecodeError, UnfitYamlError) as error:
        raise UsageError(f"The catalog {path} cannot be read: {error}.") from None
    return parse(text, path)


def parse(text: str, path: str) -> Catalog:
    """Read and check a catalog's text; ``path`` is its origin."""
    try:
        root, content = safe_yaml.load(text)
    except UnfitYamlError as error:
        raise UsageError(f"{path}, line {error.line}: this is no YAML for a catalog: {_bounded(str(error))}.") from None
    if not isinstance(root, MappingNode):
        raise UsageError(f"{path}, line 1: a catalog is a mapping that begins with version: {SCHEMA_VERSION}.")
    lines = _Lines(path, root)
    try:
        parsed = ForgeFile.model_validate(content)
    except ValidationError as error:
        raise lines.error_of(error) from None
    return _Builder(parsed, path, lines).build()


class _Lines:
    """The line of every key of a document."""

    def __init__(self, path: str, root: Node) -> None:
        """Refuse duplicate keys, of which YAML silently takes the last."""
        self._path = path
        self._lines: dict[tuple[str, ...], int] = {}
        self._note(root, ())

    def _note(self, node: Node, where: tuple[str, ...]) -> None:
        if isinstance(node, SequenceNode):
            for number, value in enumerate(node.value):
                inner = (*where, str(number))
                self._lines[inner] = value.start_mark.line + 1
                self._note(value, inner)
        elif isinstance(node, MappingNode):
            for key, value in node.value:
                line = key.start_mark.line + 1
                if not isinstance(key, ScalarNode):
                    raise UsageError(f"{self._path}, line {line}: {_key(where)}a key must be text.")
                inner = (*where, str(key.value))
                if inner in self._lines:
                    raise UsageError(f"{self._path}, line {line}: {_key(inner)}this key is there twice.")
                self._lines[inner] = line
                self._note(value, inner)

    def error(self, where: tuple[str, ...], text: str) -> UsageError:
        """A sentence with its place: the line of the key, or of the innermost existing key around it."""
        known = next((where[:n] for n in range(len(where), 0, -1) if where[:n] in self._lines), ())
        return UsageError(f"{self._path}, line {self._lines.get(known, 1)}: {_key(where)}{_bounded(text)}")

    def error_of(self, invalid: ValidationError) -> UsageError:
        """The first error of pydantic, in Forge's words."""
        # A typo first: it explains a missing key.
        first = min(invalid.errors(), key=lambda e: e["type"] != "extra_forbidden")
        where = tuple(str(part) for part in first["loc"] if part != "[key]")
        match first["type"]:
            case "extra_forbidden":
                return self.error(where, f"there is no such key.{near_miss(where[-1], _keys_at(where[:-1]))}")
            case "missing":
                return self.error(where, f"is missing. Begin the file with version: {SCHEMA_VERSION}.")
            case "value_error":
                return self.error(where, f"{_shown(first['input'])}: {first['ctx']['error']}")
            case "string_pattern_mismatch":
                return self.error(where, "a name begins with a letter and has letters, digits, _, . and - in it.")
            case "literal_error" if isinstance(first["input"], str):
                allowed = re.findall(r"'([^']+)'", first["msg"])
                return self.error(where, f"{_shown(first['input'])} is not one of {', '.join(allowed)}."
                                         f"{near_miss(first['input'], allowed)}")  # fmt: skip
            case _:
                return self.error(where, f"{_shown(first['input'])}: {first['msg'][:1].lower()}{first['msg'][1:]}.")


def _key(where: tuple[str, ...]) -> str:
    """A key at the beginning of a sentence."""
    return f"{printable('.'.join(part[:_SHOWN] for part in where))}: " if where else ""


def _bounded(text: str) -> str:
    return printable(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _keys_at(where: tuple[str, ...]) -> list[str]:
    """The keys that the mapping at a place accepts."""
    match where:
        case ():
            model: type[BaseModel] = ForgeFile
        case ("defaults",):
            model = DefaultsModel
        case (*_, "paths"):
            model = PathsModel
        case _:
            model = RuntimeModel
    return list(model.model_fields)


class _Builder:
    """Make a catalog from the checked shape: resolve inheritance, names, paths."""

    def __init__(self, file: ForgeFile, path: str, lines: _Lines) -> None:
        self._file = file
        self._path = path
        self._lines = lines
        self._directory = os.path.dirname(os.path.abspath(path))
        self._models = {HOST: RuntimeModel.model_validate({}), **file.runtimes}

    def build(self) -> Catalog:
        file, defaults = self._file, self._file.defaults
        runtimes = {name: self._runtime(name) for name in self._models}
        self._known(("defaults", "runtime"), defaults.runtime)
        for pattern, name in file.rules.items():
            self._known(("rules", pattern), name)
        return Catalog(
            path=self._path,
            default=defaults.runtime,
            allowance=_allowance(defaults),
            network=Network(defaults.network) if defaults.network else None,
            files=FilePolicy(defaults.files) if defaults.files else None,
            env=defaults.env,
            paths=self._paths(defaults.paths),
            runtimes=runtimes,
            rules=tuple(file.rules.items()),
            protect=tuple(map(self._real, file.protect)),
            provenance=self._absolute(file.provenance) if file.provenance else None,
        )

    def _known(self, where: tuple[str, ...], name: str) -> None:
        if name not in self._models:
            raise self._lines.error(where, f"{name!r} is no runtime of this catalog.{near_miss(name, self._models)}")

    def _ancestors(self, name: str) -> list[str]:
        """The runtime and its ancestors, nearest first."""
        chain = [name]
        while (parent := self._models[chain[-1]].inherits) is not None:
            where = ("runtimes", chain[-1], "inherits")
            self._known(where, parent)
            if parent in chain:
                raise self._lines.error(where, f"{' → '.join([*chain, parent])}: this goes round in a circle.")
            chain.append(parent)
            if len(chain) > _MOST_ANCESTORS:
                raise self._lines.error(where, f"a runtime has more than {_MOST_ANCESTORS} ancestors.")
        return chain

    def _runtime(self, name: str) -> Runtime:
        models = [self._models[n] for n in self._ancestors(name)]
        kinds = [self._kind(n) for n in self._ancestors(name)]
        kind, source, python = next((k for k in kinds if k is not None), (RuntimeKind.HOST, "", None))
        policies: list[_Policy] = [*models, self._file.defaults]
        network = next((m.network for m in models if m.network), None)
        files = next((m.files for m in models if m.files), None)
        return Runtime(
            name=name,
            kind=kind,
            source=source,
            python=python,
            allowance=functools.reduce(_or_else, map(_allowance, models)),
            network=Network(network) if network else None,
            files=FilePolicy(files) if files else None,
            env={k: v for policy in reversed(policies) for k, v in policy.env.items()},
            paths=functools.reduce(Paths.__add__, (self._paths(policy.paths) for policy in policies)),
        )

    def _kind(self, name: str) -> tuple[RuntimeKind, str, str | None] | None:
        """The kind that a runtime itself declares; None without one."""
        model, where = self._models[name], ("runtimes", name)
        said = {key: value for key in RuntimeKind if (value := getattr(model, key)) is not None}
        if RuntimeKind.CONDA in said and RuntimeKind.CONTAINER in said:
            raise self._lines.error((*where, "conda"), "conda inside a container is refused: the programs of an "
                "environment depend on paths and libraries that an image does not have. Make two runtimes, or build "
                "the environment into the image.")  # fmt: skip
        if len(said) > 1:
            raise self._lines.error(
                where, f"a runtime is one of {', '.join(RuntimeKind)}; this one is {' and '.join(said)}."
            )
        if model.python is not None and RuntimeKind.VENV not in said:
            raise self._lines.error((*where, "python"), "only a runtime with venv: has an interpreter of its own.")
        if not said:
            return None
        ((kind, value),) = said.items()
        match kind:
            case RuntimeKind.HOST:
                return kind, "", None
            case RuntimeKind.CONTAINER:
                return kind, self._image(value), None
            case RuntimeKind.VENV | RuntimeKind.CONDA:
                source = self._absolute(value)
                if not os.path.exists(source):
                    raise self._lines.error((*where, kind), f"{value!r}: there is no {source}.")
                python = model.python
                return kind, source, self._absolute(python) if python and "/" in python else python

    def _image(self, text: str) -> str:
        transport, colon, place = text.partition(":")
        if colon and transport in ("oci-archive", "docker-archive", "oci", "dir"):
            return f"{transport}:{self._absolute(place)}"
        if text.startswith("docker://"):
            return _of_docker(text.removeprefix("docker://"))
        return self._absolute(text) if text.startswith(("./", "../", "~")) else text

    def _paths(self, model: PathsModel) -> Paths:
        read, write, hide = (tuple(map(self._real, paths)) for paths in (model.read, model.write, model.hide))
        return Paths(read, write, hide)

    def _real(self, path: str) -> str:
        """Resolve links, because mounts need real paths."""
        return os.path.realpath(self._absolute(path))

    def _absolute(self, path: str) -> str:
        return os.path.normpath(os.path.join(self._directory, os.path.expanduser(path)))


def _of_docker(name: str) -> str:
    """A name with its registry: engines do not know ``docker://``, as ``container:`` of rules has it."""
    host, slash, _ = name.partition("/")
    if slash and (host == "localhost" or "." in host or ":" in host):
        return name
    return f"docker.io/{name}" if slash else f"docker.io/library/{name}"


def _allowance(policy: _Policy) -> Allowance:
    return Allowance(policy.memory, policy.pids, policy.wall, policy.disk)


def _or_else(first: Allowance, second: Allowance) -> Allowance:
    return Allowance(*(
        getattr(first, name) if getattr(first, name) is not None else getattr(second, name)
        for name in Allowance.__slots__
    ))  # fmt: skip
