"""Predict the treatment of each donor's samples from the other donors'.

Each donor is its own control: the donor's mean is subtracted from its samples, which needs no labels. The genes are
chosen from the training samples of each fold, never from the samples that are predicted.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy
import pandas
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_selection import SelectKBest, f_classif
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from threadpoolctl import threadpool_info

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake  # noqa: TC004  (Snakemake puts it there at run time)


def classifier(model: str, seed: int) -> object:
    """The model with its seed and one thread, which is also the job's limit."""
    if model == "logistic":
        return LogisticRegression(C=0.1, random_state=seed)
    if model == "forest":
        return RandomForestClassifier(n_estimators=100, n_jobs=1, random_state=seed)
    return SVC(kernel="linear", C=0.1, random_state=seed)


def levels(counts: str, totals: str, donors: pandas.Series) -> pandas.DataFrame:
    """The expression of each gene in each sample: log2 of reads in a million, minus the donor's mean."""
    table = pandas.read_csv(counts, sep="\t", keep_default_na=False).set_index("gene").drop(columns="name").T
    reads = pandas.read_csv(totals, sep="\t", index_col="sample")["reads"]
    million = numpy.log2(table.div(reads / 1e6, axis=0) + 1)
    return million - million.groupby(donors).transform("mean")


def main() -> None:
    """Write the true label and the predicted one of each sample."""
    samples = pandas.read_csv(snakemake.input.samples, sep="\t", index_col="sample")
    values = levels(snakemake.input.counts, snakemake.input.totals, samples["donor"])
    labels = (samples["dexamethasone"] == "trt").astype(int)
    if snakemake.params.labelled is not None:
        labels = pandas.Series([int(n in snakemake.params.labelled) for n in range(len(samples))], index=samples.index)
    model = make_pipeline(
        SelectKBest(f_classif, k=int(snakemake.wildcards.features)),
        StandardScaler(),
        classifier(snakemake.wildcards.model, snakemake.params.seed),
    )
    predicted = cross_val_predict(model, values, labels, groups=samples["donor"], cv=LeaveOneGroupOut(), n_jobs=1)
    result = pandas.DataFrame({"donor": samples["donor"], "label": labels, "predicted": predicted}).rename_axis(
        "sample"
    )
    result.to_csv(snakemake.output[0], sep="\t", lineterminator="\n")
    threads = {pool["internal_api"]: pool["num_threads"] for pool in threadpool_info()}
    Path(snakemake.log[0]).write_text(
        f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS')}, threads of libraries: {threads}\n"
    )


main()
