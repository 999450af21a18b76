"""The genes that tell one cluster from all other cells, and a picture of the cells that express the first four."""

from typing import TYPE_CHECKING

import anndata
import matplotlib as mpl
import pandas
import scanpy

mpl.use("agg")
from matplotlib import pyplot

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake  # noqa: TC004  (Snakemake puts it there at run time)

cluster = snakemake.wildcards.cluster
data = anndata.read_h5ad(snakemake.input.data)
cells = pandas.read_csv(snakemake.input.cells, sep="\t", index_col="cell", dtype={"cluster": str})
inside = cells["cluster"].loc[data.obs_names] == cluster
data.obs["side"] = pandas.Categorical(inside.map({True: "in", False: "out"}))
data.X = data.layers["expression"]
scanpy.tl.rank_genes_groups(data, "side", groups=["in"], reference="out", method="wilcoxon", pts=True)
found = scanpy.get.rank_genes_groups_df(data, group="in").rename(
    columns={"names": "gene", "pct_nz_group": "share_of_cells"}
)
found = found[["gene", "scores", "logfoldchanges", "pvals_adj", "share_of_cells"]].head(snakemake.params.most)
found.to_csv(snakemake.output.table, sep="\t", index=False, float_format="%.6g", lineterminator="\n")
figure, places = pyplot.subplots(1, 4, figsize=(13, 3.4), layout="constrained")
for axes, gene in zip(places, found["gene"], strict=False):
    values = data[:, gene].X.ravel()
    order = values.argsort(kind="stable")
    points = data.obsm["X_umap"][order]
    drawn = axes.scatter(points[:, 0], points[:, 1], c=values[order], s=7, cmap="cividis", linewidths=0)
    axes.set_title(gene, loc="left")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    figure.colorbar(drawn, ax=axes, shrink=0.7)
figure.suptitle(
    f"Cluster {cluster}: {inside.sum()} cells, its four first markers (log of normalised counts)", x=0.01, ha="left"
)
figure.savefig(snakemake.output.picture, dpi=100, metadata={"Software": None})
