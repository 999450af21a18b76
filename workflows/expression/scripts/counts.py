"""Keep the genes that are expressed; of these, the most expressed ones. Totals are those of all genes."""

from typing import TYPE_CHECKING

import pandas

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake  # noqa: TC004  (Snakemake puts it there at run time)

table = pandas.read_csv(snakemake.input.table, sep="\t", keep_default_na=False).set_index(["gene", "name"])
samples = pandas.read_csv(snakemake.input.samples, sep="\t")
if list(table.columns) != list(samples["sample"]):
    raise ValueError(f"{snakemake.input.table} and {snakemake.input.samples} name other samples")
table.sum().rename("reads").rename_axis("sample").to_csv(snakemake.output.totals, sep="\t", lineterminator="\n")
table = table[table.sum(axis=1) >= snakemake.params.least]
if snakemake.params.genes:
    most = table.sum(axis=1).sort_values(ascending=False, kind="stable").index[: snakemake.params.genes]
    table = table[table.index.isin(most)]
table.to_csv(snakemake.output.counts, sep="\t", lineterminator="\n")
