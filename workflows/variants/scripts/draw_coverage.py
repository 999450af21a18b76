"""Draw the depth of each sample along the reference, with the regions called and the variants found."""

import csv
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake  # noqa: TC004  (Snakemake puts it there at run time)

Row = dict[str, str]
# Okabe and Ito: colours that colour-blind readers can tell apart
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
INK, FAINT, BAR = "#222222", "#767676", "#BDBDBD"
FILLS = {"none": "homozygous reference", "left": "heterozygous", "full": "homozygous alternative"}


def read_depth(path: str) -> list[int]:
    """The depth at each base of the reference."""
    return [int(line.split("\t")[2]) for line in Path(path).read_text().splitlines()]


def read_variants(path: str) -> list[Row]:
    """The rows of the table of variants."""
    with open(path, newline="") as table:
        return list(csv.DictReader(table, delimiter="\t"))


def read_regions(folder: str) -> list[tuple[int, int]]:
    """The regions called, as half-open spans."""
    lines = [path.read_text().split() for path in sorted(Path(folder).glob("*.bed"))]
    return [(int(start), int(end)) for _, start, end in lines]


def spread(places: list[float], gap: float) -> list[float]:
    """Move sorted places apart until neighbours are at least `gap` away, each as little as needed."""
    clusters: list[list[float]] = []
    for place in places:
        clusters.append([place])
        while len(clusters) > 1 and right_edge(clusters[-2], gap) > left_edge(clusters[-1], gap):
            clusters[-2:] = [clusters[-2] + clusters[-1]]
    return [left_edge(cluster, gap) + gap * (i + 0.5) for cluster in clusters for i in range(len(cluster))]


def left_edge(cluster: list[float], gap: float) -> float:
    """The begin of a cluster of labels, centred on its mean."""
    return sum(cluster) / len(cluster) - gap * len(cluster) / 2


def right_edge(cluster: list[float], gap: float) -> float:
    """The end of that cluster."""
    return left_edge(cluster, gap) + gap * len(cluster)


def draw_labels(axes: Axes, variants: list[Row], length: int) -> None:
    """Name each variant above the panels and lead a line from the name to its position."""
    positions = [float(row["POS"]) for row in variants]
    for row, position, place in zip(variants, positions, spread(positions, length / 45), strict=True):
        passed = row["FILTER"] == "PASS"
        axes.plot([position, position, place], [0, 0.12, 0.42], color=FAINT, linewidth=0.8)
        axes.text(
            place,
            0.48,
            f"{row['POS']} {row['REF']}>{row['ALT']}" + ("" if passed else " *"),
            rotation=60,
            rotation_mode="anchor",
            horizontalalignment="left",
            verticalalignment="center",
            color=INK if passed else FAINT,
            fontsize=9,
        )
    axes.set_ylim(0, 1)
    axes.axis("off")


def steps(depths: list[int]) -> tuple[list[int], list[float]]:
    """The depth as bars, each as long as the depth does not change, and the positions where the bars meet."""
    runs = [(depth, len(list(run))) for depth, run in itertools.groupby(depths)]
    ends = itertools.accumulate((length for _, length in runs), initial=0)
    return [depth for depth, _ in runs], [end + 0.5 for end in ends]


def draw_sample(axes: Axes, sample: str, depths: list[int], variants: list[Row], colour: str, top: int) -> None:
    """Draw one panel: the depth as an area, and each variant at the depth it was found with."""
    mean = sum(depths) / len(depths)
    heights, edges = steps(depths)
    axes.stairs(heights, edges, fill=True, color=colour, alpha=0.35, linewidth=0)
    axes.stairs(heights, edges, color=colour, linewidth=1)
    axes.axhline(mean, color=colour, linewidth=0.9, linestyle=(0, (5, 3)))
    put: dict[str, Any] = {"transform": axes.transAxes, "color": colour}
    axes.text(1.008, mean / top, f"mean\n{mean:.1f}×", va="center", fontsize=9, **put)
    axes.text(0.008, 0.93, sample, va="top", fontsize=11, fontweight="bold", **put)
    for row in variants:
        position = int(row["POS"])
        axes.axvline(position, color=FAINT, linewidth=0.8, zorder=0)
        alleles = set(row[f"{sample}.GT"].replace("|", "/").split("/"))
        if "." not in alleles:
            fill = "none" if alleles == {"0"} else "full" if len(alleles) == 1 else "left"
            axes.plot(position, depths[position - 1], **marker(fill))
    axes.set_ylim(0, top)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def marker(fill: str) -> dict[str, Any]:
    """The marker of a genotype: its fill shows the genotype, so that it can be read without colour."""
    return {
        "marker": "o",
        "markersize": 7.5,
        "linestyle": "none",
        "fillstyle": fill if fill != "none" else "full",
        "markerfacecolor": INK if fill != "none" else "white",
        "markerfacecoloralt": "white",
        "markeredgecolor": INK,
        "markeredgewidth": 1,
        "clip_on": False,
        "zorder": 5,
    }


def draw_regions(axes: Axes, regions: list[tuple[int, int]]) -> None:
    """Draw the regions that the checkpoint found as a track of bars."""
    for start, end in regions:
        axes.barh(0, end - start, left=start + 0.5, height=0.8, color=BAR, edgecolor="white")
        axes.text((start + end) / 2, 0, f"{start + 1}–{end}", ha="center", va="center", fontsize=8.5)
    axes.set_ylim(-0.5, 0.5)
    axes.set_yticks([0], ["called"])
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)


def main(
    samples: list[str],
    reference_name: str,
    depth_files: list[str],
    variant_file: str,
    region_folder: str,
    png: str,
    svg: str,
    log: str,
) -> None:
    """Compose the picture and save it without dates or versions, so that it is the same every time."""
    variants, regions = read_variants(variant_file), read_regions(region_folder)
    measured = [read_depth(path) for path in depth_files]
    length = len(measured[0])
    top = int(max(map(max, measured)) * 1.15) + 1

    count = len(samples)
    figure = Figure(figsize=(12, 3.1 + 1.75 * count))
    layout = {"height_ratios": [0.62, *[1] * count, 0.2], "hspace": 0.12}
    panels = figure.subplots(count + 2, 1, sharex=True, gridspec_kw=layout)
    figure.subplots_adjust(left=0.07, right=0.93, top=0.9, bottom=0.13)
    draw_labels(panels[0], variants, length)
    for place, (sample, depths) in enumerate(zip(samples, measured, strict=True)):
        draw_sample(panels[place + 1], sample, depths, variants, COLOURS[place % len(COLOURS)], top)
    panels[1 + count // 2].set_ylabel("depth (reads per base, without duplicates)")
    draw_regions(panels[-1], regions)
    panels[-1].set_xlim(0, length + 1)
    panels[-1].set_xlabel(f"position on {reference_name} (bp)")

    passed = sum(row["FILTER"] == "PASS" for row in variants)
    title = f"{len(variants)} variants called jointly in {count} samples; {passed} pass the quality filter"
    figure.suptitle(title, x=0.07, y=0.975, ha="left", fontsize=14, fontweight="bold", color=INK)
    handles: list[Line2D | Patch] = [
        *(Line2D([], [], label=text, **marker(fill)) for fill, text in FILLS.items()),
        Line2D([], [], color=INK, linewidth=0.9, linestyle=(0, (5, 3)), label="mean depth"),
        Patch(color=BAR, label="region called"),
    ]
    corner: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0.062, 0.005)}
    figure.legend(handles=handles, ncols=len(handles), frameon=False, fontsize=9, **corner)
    if passed < len(variants):
        figure.text(0.93, 0.022, "* marked LowQual", ha="right", color=FAINT, fontsize=9)

    figure.savefig(png, dpi=150, metadata={"Software": None})
    figure.savefig(svg, metadata={"Date": None, "Creator": None})
    Path(log).write_text(f"{len(variants)} variants, {len(regions)} regions, {length} bp\n")


matplotlib.rc("font", family="DejaVu Sans", size=10)
matplotlib.rc("svg", hashsalt="variants")  # without it, names in the file are random
main(
    samples=snakemake.params.samples,
    reference_name=snakemake.params.reference_name,
    depth_files=list(snakemake.input.depths),
    variant_file=snakemake.input.variants,
    region_folder=snakemake.input.regions,
    png=snakemake.output.png,
    svg=snakemake.output.svg,
    log=snakemake.log[0],
)
