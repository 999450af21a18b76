"""Draw the effect of each gene against the evidence for it."""

from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy
import pandas

mpl.use("agg")
from matplotlib import pyplot

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake  # noqa: TC004  (Snakemake puts it there at run time)

UP, DOWN, REST, INK = "#D55E00", "#0072B2", "#BDBDBD", "#222222"
NAMED = 15


def main(genes: str, output: str, alpha: float, fold: float) -> None:
    """Write the picture."""
    table = pandas.read_csv(genes, sep="\t", keep_default_na=False, na_values=["NA"]).dropna(subset="padj")
    effect, evidence = table["log2FoldChange"], -numpy.log10(table["padj"].clip(lower=1e-300))
    sure = table["padj"] < alpha
    groups = (
        (~sure | (effect.abs() < fold), REST, "others"),
        (sure & (effect >= fold), UP, "higher with dexamethasone"),
        (sure & (effect <= -fold), DOWN, "lower with dexamethasone"),
    )
    figure, axes = pyplot.subplots(figsize=(8, 6), layout="constrained")
    for chosen, colour, label in groups:
        axes.scatter(
            effect[chosen], evidence[chosen], s=9, color=colour, label=f"{label} ({chosen.sum()})", linewidths=0
        )
    named: list[tuple[float, float]] = []
    for side in (groups[1][0], groups[2][0]):
        for index in table.index[side][:NAMED]:
            place, right = (effect[index], evidence[index]), effect[index] > 0
            if any(abs(place[0] - x) < 0.9 and abs(place[1] - y) < evidence.max() / 40 for x, y in named):
                continue  # its name would lie over another one
            named.append(place)
            axes.annotate(
                table["name"][index] or table["gene"][index], place, fontsize=7, color=INK,
                xytext=(4 if right else -4, 2), textcoords="offset points", ha="left" if right else "right",
            )  # fmt: skip
    axes.axhline(-numpy.log10(alpha), color=INK, linewidth=0.6, linestyle=":")
    axes.margins(x=0.1)
    axes.set_xlabel("fold change with dexamethasone (log2)")
    axes.set_ylabel("adjusted p-value (-log10)")
    axes.set_title(f"Airway smooth muscle, 4 donors: {len(table)} genes tested", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", frameon=False)
    figure.savefig(output, dpi=120, metadata={"Software": None})


main(
    genes=snakemake.input[0],
    output=snakemake.output[0],
    alpha=snakemake.params.alpha,
    fold=snakemake.params.fold,
)
