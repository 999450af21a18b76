"""Leave out empty droplets and dying cells, and draw the thresholds."""

from typing import TYPE_CHECKING

import matplotlib as mpl
import pandas

mpl.use("agg")
from matplotlib import pyplot

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake  # noqa: TC004  (Snakemake puts it there at run time)

KEPT, LEFT_OUT, INK = "#0072B2", "#D55E00", "#222222"

cells = pandas.read_csv(snakemake.input[0], sep="\t", index_col="cell")
least, most = snakemake.params.least_genes, snakemake.params.most_mitochondrial
good = (cells["n_genes"] >= least) & (cells["percent_mito"] <= most)
cells[good].to_csv(snakemake.output.kept, sep="\t", lineterminator="\n")
figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
for chosen, colour, label in ((good, KEPT, "kept"), (~good, LEFT_OUT, "left out")):
    part = cells[chosen]
    axes.scatter(part["n_genes"], part["percent_mito"], s=8, color=colour, linewidths=0, label=f"{label} ({len(part)})")
axes.axvline(least, color=INK, linewidth=0.6, linestyle=":")
axes.axhline(most, color=INK, linewidth=0.6, linestyle=":")
axes.set_xlabel("genes seen in the cell")
axes.set_ylabel("share of mitochondrial reads")
axes.set_title("Quality of the cells", loc="left")
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False)
figure.savefig(snakemake.output.picture, dpi=120, metadata={"Software": None})
