#!/usr/bin/env python3
"""Check the biology in the results of this pipeline: `check.py RESULTS_DIR`. The exit code is 1 if anything is wrong.

The data have labels that 10x Genomics took from purified cells; the pipeline keeps them and never uses them. The clusters must
agree with them, and the textbook's genes must be highest, in the counts themselves, in the cells with the matching label.
"""

import csv
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

PNG = (b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82")
LABELS = {  # label → the kind that the pipeline must name, and a gene of the textbook
    "CD19+ B": ("B cells", "CD79A"),
    "CD14+ Monocyte": ("monocytes", "FCN1"),
    "CD56+ NK": ("NK and cytotoxic cells", "GNLY"),
    "Dendritic": ("dendritic cells", "FCER1A"),
}
Row = dict[str, str]


def read_table(path: Path) -> list[Row]:
    """The rows of a table with a header."""
    with path.open(newline="") as table:
        return list(csv.DictReader(table, delimiter="\t"))


def check_labels(cells: list[Row], clusters: dict[str, Row]) -> Iterator[str]:
    """Yield the clusters that disagree with the labels."""
    members: dict[str, Counter[str]] = defaultdict(Counter)
    for cell in cells:
        members[cell["cluster"]][cell["label"]] += 1
    if {number: str(found.total()) for number, found in members.items()} != {
        n: row["cells"] for n, row in clusters.items()
    }:
        yield "clusters.tsv: not the clusters of cells.tsv, or not their sizes"
        return
    pure = sum(found.most_common(1)[0][1] for found in members.values()) / len(cells)
    if pure < 0.6:
        yield f"cells.tsv: only {pure:.0%} of the cells have the label that is the commonest in their cluster"
    for label, (kind, _) in LABELS.items():
        home = max(members, key=lambda number: members[number][label])
        share = members[home][label] / sum(found[label] for found in members.values())
        if share < 0.6:
            yield f"cells.tsv: only {share:.0%} of the cells labelled {label} are in one cluster"
        elif clusters[home]["kind"] != kind:
            yield f"clusters.tsv: cluster {home} holds the cells labelled {label}, and is named {clusters[home]['kind']}"


def check_counts(results: Path, cells: list[Row]) -> Iterator[str]:
    """Yield the genes that are not highest where they should be; whole numbers, by the cell's own label."""
    label = {cell["cell"]: cell["label"] for cell in cells}
    sums: dict[str, Counter[str]] = defaultdict(Counter)
    sizes = Counter(label.values())
    for row in read_table(results / "counts.tsv"):
        for _, gene in LABELS.values():
            sums[gene][label.get(row["cell"], "")] += int(row[gene])
    for name, (_, gene) in LABELS.items():
        means = {other: sums[gene][other] / sizes[other] for other in LABELS}
        if max(means, key=lambda other: means[other]) != name:
            yield f"counts.tsv: {gene} is not highest in cells labelled {name}: {means}"


def problems(results: Path) -> Iterator[str]:
    """Yield everything that is wrong."""
    clusters = {row["cluster"]: row for row in read_table(results / "clusters.tsv")}
    cells = read_table(results / "cells.tsv")
    for path in (results / "umap.png", results / "quality.png", *(results / "markers" / f"{n}.png" for n in clusters)):
        content = path.read_bytes()
        if not content.startswith(PNG[0]) or not content.endswith(PNG[1]):
            yield f"{path.name}: not a whole picture"
    yield from check_labels(cells, clusters)
    yield from check_counts(results, cells)
    for path in (results / "bootstrap").glob("*.tsv"):
        if float(path.read_text().split("\t")[1]) < 0.4:
            yield f"bootstrap/{path.name}: the clusters do not last when a fifth of the cells is left out"


def main() -> int:
    """Print what is wrong, or what was found."""
    results = Path(sys.argv[1])
    found = list(problems(results))
    for problem in found:
        print(f"check: {problem}", file=sys.stderr)
    if not found:
        kinds = Counter(row["kind"] for row in read_table(results / "clusters.tsv"))
        print(
            "check: clusters agree with the labels of purified cells: "
            + ", ".join(f"{n} of {k}" for k, n in sorted(kinds.items()))
        )
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
