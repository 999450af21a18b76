"""Name the clusters by their markers, and draw them in the plane."""

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
import pandas

mpl.use("agg")
from matplotlib import pyplot

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake  # noqa: TC004  (Snakemake puts it there at run time)

KINDS = {  # textbook markers of the kinds of blood cells, of those genes that the data hold
    "B cells": {"CD79A", "CD79B", "MS4A1", "CD37"},
    "T cells": {"CD3D", "CD3E", "IL7R", "CD8B", "LTB", "IL32"},
    "NK and cytotoxic cells": {"NKG7", "GNLY", "GZMB", "PRF1", "CST7", "GZMA", "CTSW"},
    "monocytes": {"FCN1", "LYZ", "S100A8", "CD14", "FCGR3A", "LST1"},
    "dendritic cells": {"FCER1A", "HLA-DQA1", "HLA-DPB1", "CLEC10A", "CST3", "HLA-DRA"},
    "plasma cells": {"MZB1", "IGJ", "TNFRSF17", "IGLL5", "FKBP11"},
    "plasmacytoid dendritic cells": {"IRF7", "IRF8", "TCF4", "LILRA4", "PLD4", "CCDC50"},
    "progenitors": {"CD34", "SPINK2", "SOX4", "PRSS57"},
}
COLOURS = mpl.colormaps["tab20"]

cells = pandas.read_csv(snakemake.input.cells, sep="\t", index_col="cell")
rows = []
for path in map(Path, snakemake.input.markers):
    genes = list(pandas.read_csv(path, sep="\t")["gene"])
    score = {kind: sum(1 / (1 + genes.index(gene)) for gene in known & set(genes)) for kind, known in KINDS.items()}
    kind = max(KINDS, key=lambda kind: score[kind]) if any(score.values()) else "unknown"
    rows.append((int(path.stem), int((cells["cluster"] == int(path.stem)).sum()), kind, ",".join(genes[:8])))
alike = [float(Path(path).read_text().split("\t")[1]) for path in snakemake.input.bootstraps]
lines = ["cluster\tcells\tkind\tmarkers", *("\t".join(map(str, row)) for row in sorted(rows))]
Path(snakemake.output.table).write_text("".join(f"{line}\n" for line in lines))
figure, axes = pyplot.subplots(figsize=(8, 5.5), layout="constrained")
for number, size, kind, _ in sorted(rows):
    part = cells[cells["cluster"] == number]
    colour = COLOURS(number % 20)
    axes.scatter(part["umap1"], part["umap2"], s=12, color=colour, linewidths=0, label=f"{number}: {kind} ({size})")
    axes.annotate(
        str(number), (part["umap1"].median(), part["umap2"].median()), weight="bold", fontsize=11, ha="center"
    )
axes.set_title(f"{len(cells)} blood cells in {len(rows)} clusters (UMAP)", loc="left")
axes.set_xlabel(
    f"clusters of four fifths of the cells: {sum(alike) / len(alike):.0%} alike (Rand index)", loc="left", fontsize=9
)
axes.set_xticks([])
axes.set_yticks([])
axes.spines[:].set_visible(False)
axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
figure.savefig(snakemake.output.picture, dpi=120, metadata={"Software": None})
