"""Divide the graph of neighbours, and write a file for each cluster, the largest first."""

from pathlib import Path
from typing import TYPE_CHECKING

import anndata
import pandas
import scanpy

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake  # noqa: TC004  (Snakemake puts it there at run time)

data = anndata.read_h5ad(snakemake.input[0])
scanpy.tl.leiden(
    data,
    resolution=snakemake.params.resolution,
    random_state=snakemake.params.seed,
    flavor="igraph",
    n_iterations=-1,
    directed=False,
    adjacency=data.obsp["connectivities"],
)
folder = Path(snakemake.output.clusters)
folder.mkdir(parents=True, exist_ok=True)
for cluster, members in data.obs.groupby("leiden", observed=True):
    (folder / f"{cluster}.txt").write_text("".join(f"{cell}\n" for cell in members.index))
table = pandas.DataFrame(data.obsm["X_umap"], index=data.obs_names, columns=["umap1", "umap2"]).round(3)
table.insert(0, "cluster", data.obs["leiden"])
table["label"] = data.obs["bulk_labels"]
table.rename_axis("cell").to_csv(snakemake.output.cells, sep="\t", lineterminator="\n")
