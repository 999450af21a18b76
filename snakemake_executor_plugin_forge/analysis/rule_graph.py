"""The picture of the rules of a run and of what they need, layer by layer. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from statistics import mean

BOX_WIDTH, BOX_HEIGHT = 168, 44
_GAP, _ROW, _THIN = 16, 84, 12
_SWEEPS = 6
_WIDEST = 5  # rules beside each other, where their needs allow that
MOST_RULES = 150
"""The most rules that are drawn: more cannot be read."""

Needs = Mapping[str, Iterable[str]]
_Node = tuple[str, str, int]  # a rule and ("", layer); or the part of an edge in one layer


@dataclass(frozen=True, slots=True)
class Picture:
    """Boxes of rules, each with its left and top, and edges as paths of SVG; in pixels."""

    width: float
    height: float
    boxes: Mapping[str, tuple[float, float]]
    edges: tuple[str, ...]


def draw(needs: Needs) -> Picture:
    """Draw rules below those that they need. An edge that others imply is left out.

    Args:
        needs: for each rule the rules whose outputs it reads. It may have cycles: rules need each other in turns.
    """
    edges = reduced(without_cycles(needs))
    layer = _layers(edges)
    chains = [_chain(before, rule, layer) for rule, found in edges.items() for before in sorted(found)]
    rows: list[list[_Node]] = [[] for _ in range(max(layer.values(), default=-1) + 1)]
    for node in sorted({(rule, "", at) for rule, at in layer.items()} | {n for chain in chains for n in chain[1:-1]}):
        rows[node[2]].append(node)
    _order(rows, chains)
    widths = [sum(map(_width, row)) + _GAP * (len(row) - 1) for row in rows]
    whole, centre = max(widths, default=0), {}
    for row, width in zip(rows, widths, strict=True):
        left = (whole - width) / 2
        for node in row:
            centre[node] = left + _width(node) / 2
            left += _width(node) + _GAP
    boxes = {node[0]: (centre[node] - BOX_WIDTH / 2, float(node[2] * _ROW)) for node in centre if not node[1]}
    paths = tuple(_path(chain, centre) for chain in chains)
    return Picture(whole, max(0, len(rows) * _ROW - (_ROW - BOX_HEIGHT)), boxes, paths)


def without_cycles(needs: Needs) -> dict[str, set[str]]:
    """The rules and their needs, but for those that close a cycle."""
    found = {rule: set(before) - {rule} for rule, before in needs.items()}
    for before in list(found.values()):
        for rule in before:
            found.setdefault(rule, set())
    while True:
        try:
            TopologicalSorter(found).prepare()
        except CycleError as error:
            first, second = error.args[1][:2]
            found[second].discard(first)
            continue
        return found


def reduced(needs: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The rules and their needs, but for those that others imply."""
    all_before: dict[str, set[str]] = {}
    for rule in TopologicalSorter(needs).static_order():
        all_before[rule] = needs[rule].union(*(all_before[before] for before in needs[rule]))
    return {
        rule: {one for one in before if not any(one in all_before[other] for other in before)}
        for rule, before in needs.items()
    }


def _layers(edges: Mapping[str, set[str]]) -> dict[str, int]:
    """The layer of each rule: right before the first rule that needs it, or earlier where that layer is full."""
    order = list(TopologicalSorter(edges).static_order())
    earliest: dict[str, int] = {}
    for rule in order:
        earliest[rule] = 1 + max((earliest[before] for before in edges[rule]), default=-1)
    last = max(earliest.values(), default=0)
    found: dict[str, int] = {}
    latest, sizes = dict.fromkeys(order, last), [0] * (last + 1)
    for rule in reversed(order):
        at = latest[rule]
        while sizes[at] >= _WIDEST and at > earliest[rule]:
            at -= 1
        found[rule] = at
        sizes[at] += 1
        for before in edges[rule]:
            latest[before] = min(latest[before], at - 1)
    return found


def _chain(before: str, rule: str, layer: Mapping[str, int]) -> list[_Node]:
    between = [(before, rule, at) for at in range(layer[before] + 1, layer[rule])]
    return [(before, "", layer[before]), *between, (rule, "", layer[rule])]


def _order(rows: list[list[_Node]], chains: list[list[_Node]]) -> None:
    """Sort each row by the middle of its neighbours, downwards and upwards in turns: fewer edges cross."""
    up: dict[_Node, list[_Node]] = {}
    down: dict[_Node, list[_Node]] = {}
    for chain in chains:
        for above, below in itertools.pairwise(chain):
            up.setdefault(below, []).append(above)
            down.setdefault(above, []).append(below)
    for sweep in range(_SWEEPS):
        near, order = (up, rows) if sweep % 2 == 0 else (down, rows[::-1])
        for known, row in itertools.pairwise(order):
            place = {node: number / max(1, len(known) - 1) for number, node in enumerate(known)}
            own = {node: number / max(1, len(row) - 1) for number, node in enumerate(row)}
            middle = {n: mean([place[m] for m in near.get(n, ())] or [own[n]]) for n in row}
            row.sort(key=lambda node: (middle[node], node))


def _width(node: _Node) -> int:
    return _THIN if node[1] else BOX_WIDTH


def _path(chain: list[_Node], centre: Mapping[_Node, float]) -> str:
    text = f"M{centre[chain[0]]:g} {chain[0][2] * _ROW + BOX_HEIGHT}"
    for above, below in itertools.pairwise(chain):
        begin, end, bend = above[2] * _ROW + BOX_HEIGHT, below[2] * _ROW, (_ROW - BOX_HEIGHT) // 2
        text += f"V{begin}C{centre[above]:g} {begin + bend} {centre[below]:g} {end - bend} {centre[below]:g} {end}"
    return text
