"""The script of the ``script`` case; Snakemake puts the ``snakemake`` object in front of it."""

with open(snakemake.output[0], "w") as stream:  # type: ignore[name-defined]  # noqa: F821
    stream.write(f"{snakemake.wildcards.i}\n")  # type: ignore[name-defined]  # noqa: F821
