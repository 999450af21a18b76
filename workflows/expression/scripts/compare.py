"""The accuracy of each model with the true labels, and the number of false labellings that do as well."""

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
import pandas

mpl.use("agg")
from matplotlib import pyplot

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake  # noqa: TC004  (Snakemake puts it there at run time)

TRUE, FALSE = "#D55E00", "#0072B2"
HEADER = ("model", "features", "samples", "accuracy", "false_labellings", "best_false_accuracy", "as_good", "p_value")


def accuracies(paths: list[str]) -> dict[tuple[str, int], dict[str, float]]:
    """Model and number of genes → labelling → share of the samples that were predicted right."""
    found: dict[tuple[str, int], dict[str, float]] = defaultdict(dict)
    for path in map(Path, paths):
        table = pandas.read_csv(path, sep="\t")
        found[path.parts[-3], int(path.parts[-2])][path.stem] = float((table["label"] == table["predicted"]).mean())
    return found


def is_true(path: str) -> bool:
    """Whether a false labelling is the true one or its reverse; such a labelling is left out."""
    tables = pandas.read_csv(path, sep="\t")
    truth = pandas.read_csv(Path(path).with_name("true.tsv"), sep="\t")
    return bool((tables["label"] == truth["label"]).all() or (tables["label"] != truth["label"]).all())


def main(paths: list[str], output: str, picture: str) -> None:
    """Write the table and draw it."""
    found = accuracies([path for path in paths if path.endswith("/true.tsv") or not is_true(path)])
    figure, axes = pyplot.subplots(figsize=(7, 1.2 + 0.7 * len(found)), layout="constrained")
    lines = ["\t".join(HEADER)]
    for place, ((model, features), labellings) in enumerate(sorted(found.items())):
        truth = labellings.pop("true")
        false = sorted(labellings.values())
        good = sum(other >= truth for other in false)
        row = (
            model,
            features,
            8,
            f"{truth:.3f}",
            len(false),
            f"{max(false):.3f}",
            good,
            f"{(good + 1) / (len(false) + 1):.3f}",
        )
        lines.append("\t".join(map(str, row)))
        spread = [place + 0.25 * (n % 5 - 2) / 2 for n in range(len(false))]
        axes.scatter(false, spread, s=22, color=FALSE, alpha=0.6, linewidths=0, label="" if place else "false labels")
        axes.scatter([truth], [place], s=120, marker="D", color=TRUE, label="" if place else "true labels", zorder=3)
    Path(output).write_text("".join(f"{line}\n" for line in lines))
    axes.set_yticks(range(len(found)), [f"{model}, {features} genes" for model, features in sorted(found)])
    axes.axvline(0.5, color="#222222", linewidth=0.6, linestyle=":")
    axes.set_xlim(-0.05, 1.08)
    axes.set_ylim(-0.6, len(found) - 0.4)
    axes.set_xlabel("samples of an unseen donor that were predicted right (share)")
    axes.set_title("Dexamethasone or not, one donor left out", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.savefig(picture, dpi=120, metadata={"Software": None})


main(paths=list(snakemake.input), output=snakemake.output.table, picture=snakemake.output.picture)
