"""Normalise, reduce, find neighbours, lay out in the plane. Every random step has the seed."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import anndata
import numba
import numpy
import pandas
import scanpy

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake  # noqa: TC004  (Snakemake puts it there at run time)

counts = pandas.read_csv(snakemake.input.counts, sep="\t", index_col="cell")
cells = pandas.read_csv(snakemake.input.kept, sep="\t", index_col="cell")
data = anndata.AnnData(counts.loc[cells.index].astype("float32"), obs=cells)
# By all reads of the cell, not only those of the genes in the table.
data.X = numpy.log1p(data.X * (10_000 / cells["n_counts"].to_numpy()[:, None])).astype("float32")
data.layers["expression"] = data.X.copy()
scanpy.pp.scale(data, max_value=10)
scanpy.pp.pca(data, n_comps=snakemake.params.components, random_state=snakemake.params.seed)
scanpy.pp.neighbors(data, n_neighbors=snakemake.params.neighbours, random_state=snakemake.params.seed)
scanpy.tl.umap(data, random_state=snakemake.params.seed)
del data.uns
data.write_h5ad(snakemake.output[0])
said = f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS')}, threads of numba: {numba.get_num_threads()}\n"
Path(snakemake.log[0]).write_text(said)
