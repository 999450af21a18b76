"""YAML from files that may be hostile: bounded in size, depth and what aliases stand for; an error names the line."""

from __future__ import annotations

import os
import stat
from typing import Any

import yaml
from yaml.error import MarkedYAMLError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.reader import ReaderError

_MOST_BYTES = 1 << 18
_MOST_DEPTH = 50
_MOST_NODES = 100_000  # with everything that aliases stand for
_WRONG_VALUE = (ValueError, TypeError, AttributeError, KeyError, IndexError, OverflowError)
"""The errors of PyYAML for a value that its tag does not allow: !!int x, !!bool x, an impossible date."""


class UnfitYamlError(Exception):
    """The text is no YAML, or more than these bounds allow."""

    def __init__(self, problem: str, line: int = 1) -> None:
        super().__init__(problem)
        self.line = line


def read_text(path: str) -> str:
    """Return the text of a regular file of at most 256 KiB.

    Raises:
        OSError, UnicodeDecodeError: if it cannot be read.
        UnfitYamlError: if it is larger.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise UnfitYamlError("it is no regular file")
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise UnfitYamlError(f"it is larger than {_MOST_BYTES >> 10} KiB")
    return data.decode("utf-8")


def load(text: str) -> tuple[Node | None, Any]:
    """Return the nodes of a document, which know their lines, and its content.

    Raises:
        UnfitYamlError: for the first problem.
    """
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            return None, None
        _check_nodes(root, max(_MOST_NODES, len(text)))
        return root, loader.construct_document(root)
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UnfitYamlError(f"the character {chr(error.character)!a} is not allowed", line) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise UnfitYamlError(str(getattr(error, "problem", error)), mark.line + 1 if mark is not None else 1) from None
    except _WRONG_VALUE as error:
        raise UnfitYamlError(str(error)) from None


class _Loader(yaml.SafeLoader):
    """A SafeLoader with a bounded depth, whose every error has a place."""

    _depth = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        if self._depth > _MOST_DEPTH:
            _refuse(f"it is nested more than {_MOST_DEPTH} levels deep", self.peek_event().start_mark)  # type: ignore[no-untyped-call]
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except _WRONG_VALUE:
            said = f"{str(node.value)[:60]!r} is no {node.tag.rpartition(':')[2]}"
            raise MarkedYAMLError(problem=said, problem_mark=node.start_mark) from None


def _check_nodes(root: Node, most: int) -> None:
    """Count the nodes with what aliases stand for, and look into the texts.

    Raises:
        MarkedYAMLError: for too many, a loop, and characters that are in no path and no variable.
    """
    sizes: dict[int, int] = {}  # 0: it is being counted

    def size(node: Node) -> int:
        known = sizes.get(id(node))
        if known == 0:
            _refuse("an alias stands for something that it is a part of", node.start_mark)
        if known is not None:
            return known
        sizes[id(node)] = 0
        total = 1 + sum(map(size, _inner(node)))
        if total > most:
            _refuse(f"its aliases stand for more than {most} values", node.start_mark)
        sizes[id(node)] = total
        return total

    size(root)


def _inner(node: Node) -> list[Node]:
    match node:
        case MappingNode():
            return [part for pair in node.value for part in pair]
        case SequenceNode():
            return list(node.value)
        case ScalarNode() if any(char == "\0" or "\ud800" <= char <= "\udfff" for char in node.value):
            _refuse(f"{node.value[:60]!a} has a character that no path and no variable can have", node.start_mark)
    return []


def _refuse(problem: str, mark: Any) -> None:
    raise MarkedYAMLError(problem=problem, problem_mark=mark)
