"""Cluster four fifths of the cells again, and report how similar both clusterings are."""

from pathlib import Path
from typing import TYPE_CHECKING

import anndata
import numpy
import pandas
import scanpy
from sklearn.metrics import adjusted_rand_score

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake  # noqa: TC004  (Snakemake puts it there at run time)

seed = snakemake.params.seed
data = anndata.read_h5ad(snakemake.input.data)
cells = pandas.read_csv(snakemake.input.cells, sep="\t", index_col="cell", dtype={"cluster": str})
chosen = numpy.sort(numpy.random.default_rng(seed).choice(len(data), size=len(data) * 4 // 5, replace=False))
part = data[chosen].copy()
scanpy.pp.neighbors(part, n_neighbors=snakemake.params.neighbours, random_state=seed)
scanpy.tl.leiden(
    part,
    resolution=snakemake.params.resolution,
    random_state=seed,
    flavor="igraph",
    n_iterations=-1,
    directed=False,
    adjacency=part.obsp["connectivities"],
)
alike = adjusted_rand_score(cells["cluster"].loc[part.obs_names], part.obs["leiden"])
Path(snakemake.output[0]).write_text(f"{part.obs['leiden'].nunique()}\t{alike:.4f}\n")
