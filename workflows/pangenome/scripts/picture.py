"""Draw the tree from the point where its branches meet, and beside it the gene families of each genome."""

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl

mpl.use("agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake  # noqa: TC004  (Snakemake puts it there at run time)

INK = "#222222"
Node = tuple[str, float, list]  # name or support, length of its branch, children


def read_newick(text: str) -> Node:
    """The tree in a Newick string."""
    words = re.findall(r"[(),;]|[^(),;]+", text.strip())

    def node() -> Node:
        children = []
        if words[0] == "(":
            while words.pop(0) in "(,":
                children.append(node())
        label = words.pop(0) if words[0] not in "(),;" else ""
        name, _, length = label.partition(":")
        return name, float(length or 0), children

    return node()


def leaves(tree: Node) -> list[str]:
    """The names at the tips, in the order of the tree."""
    return [name for child in tree[2] for name in leaves(child)] if tree[2] else [tree[0]]


def draw(axes: Axes, tree: Node, start: float, rows: dict[str, int]) -> float:
    """Draw a node to the right of the start of its branch; return its height."""
    name, length, children = tree
    heights = [draw(axes, child, start + length, rows) for child in children] or [rows[name]]
    height = sum(heights) / len(heights)
    axes.plot([start, start + length], [height, height], color=INK, linewidth=1.4)
    if children:
        axes.plot([start + length] * 2, [min(heights), max(heights)], color=INK, linewidth=1.4)
    return height


def main(tree: str, table: str, output: str, types: dict[str, str]) -> None:
    """Write the picture."""
    root = read_newick(Path(tree).read_text())
    order = leaves(root)
    rows = {name: row for row, name in enumerate(order)}
    header, *lines = (line.split("\t") for line in Path(table).read_text().splitlines())
    columns = {name: header.index(name) for name in order}
    patterns = [tuple(int(line[columns[name]]) > 0 for name in order) for line in lines]
    often = Counter(patterns)
    patterns.sort(key=lambda pattern: (-sum(pattern), -often[pattern], pattern))
    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(10, 3.2), width_ratios=(1, 2.2), layout="constrained", sharey=True
    )
    draw(left, root, 0, rows)
    left.set_yticks(range(len(order)), [f"{name}\n{types[name]}" for name in order])
    left.locator_params(axis="x", nbins=4)
    left.set_xlabel("substitutions per site")
    left.set_title("Tree of the core genes", loc="left")
    left.spines[["top", "right", "left"]].set_visible(False)
    right.imshow(
        list(zip(*patterns, strict=True)),
        aspect="auto",
        interpolation="nearest",
        cmap=ListedColormap(["#EEEEEE", "#0072B2"]),
    )
    core = often[(True,) * len(order)]
    right.set_title(f"{len(patterns)} gene families, {core} in all four", loc="left")
    right.set_xlabel("gene families, those in most genomes first")
    right.spines[["top", "right", "left"]].set_visible(False)
    figure.savefig(output, dpi=120, metadata={"Software": None})


main(
    tree=snakemake.input.tree,
    table=snakemake.input.table,
    output=snakemake.output[0],
    types=dict(snakemake.params.types),
)
