"""Verify scanpy's copy of the data, and take the counts out of its logarithms.

The copy holds log(1 + 10,000 × count ÷ all reads of the cell), to four digits, and the cell's reads; this gives the counts
back. The job fails if a count is more than a tenth of a read off a whole number.
"""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import anndata
import numpy
import pandas
import scanpy

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake  # noqa: TC004  (Snakemake puts it there at run time)

path = Path(scanpy.__file__).parent / "datasets" / "10x_pbmc68k_reduced.h5ad"
if (found := hashlib.sha256(path.read_bytes()).hexdigest()) != snakemake.params.sha256:
    raise ValueError(f"{path}: sha256 is {found}, the configuration says {snakemake.params.sha256}")
data = anndata.read_h5ad(path)
exact = numpy.expm1(data.raw.X.toarray().astype(float)) * data.obs["n_counts"].to_numpy()[:, None] / 10_000
counts = numpy.rint(exact).astype(int)
off = float(numpy.abs(exact - counts).max())
Path(snakemake.log[0]).write_text(f"{path}: as recorded; counts are off whole numbers by {off:.4f} at most\n")
if off > 0.1:
    raise ValueError(f"{path}: what should be counts is off whole numbers by {off:.4f}")
table = pandas.DataFrame(counts, index=data.obs_names, columns=data.raw.var_names).rename_axis("cell")
table.to_csv(snakemake.output.counts, sep="\t", lineterminator="\n")
cells = data.obs[["n_counts", "n_genes", "percent_mito", "bulk_labels"]].rename_axis("cell")
cells.to_csv(snakemake.output.cells, sep="\t", float_format="%.6g", lineterminator="\n")
