"""Test every gene for an effect of dexamethasone with the donor as covariate, as DESeq2 does."""

import contextlib
from typing import TYPE_CHECKING

import pandas
from pydeseq2.dds import DeseqDataSet
from pydeseq2.default_inference import DefaultInference
from pydeseq2.ds import DeseqStats

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake  # noqa: TC004  (Snakemake puts it there at run time)


def main(counts: str, samples: str, output: str, log: str, cpus: int, alpha: float) -> None:
    """Write a row for each gene, the surest first."""
    table = pandas.read_csv(counts, sep="\t", keep_default_na=False)
    names = table.set_index("gene")["name"]
    design = pandas.read_csv(samples, sep="\t", index_col="sample")[["donor", "dexamethasone"]]
    inference = DefaultInference(n_cpus=cpus)
    with open(log, "w") as said, contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        data = DeseqDataSet(
            counts=table.set_index("gene").drop(columns="name").T,
            metadata=design,
            design="~donor + dexamethasone",
            inference=inference,
        )
        data.deseq2()
        tested = DeseqStats(data, contrast=["dexamethasone", "trt", "untrt"], alpha=alpha, inference=inference)
        tested.summary()
    found = tested.results_df.rename_axis("gene")
    found.insert(0, "name", names)
    found = found.sort_values(["pvalue", "baseMean"], ascending=[True, False], kind="stable")
    found.to_csv(output, sep="\t", float_format="%.6g", na_rep="NA", lineterminator="\n")


main(
    counts=snakemake.input.counts,
    samples=snakemake.input.samples,
    output=snakemake.output[0],
    log=snakemake.log[0],
    cpus=snakemake.threads,
    alpha=snakemake.params.alpha,
)
