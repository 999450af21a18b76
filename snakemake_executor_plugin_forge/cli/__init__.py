"""The command ``snakemake-forge``."""
