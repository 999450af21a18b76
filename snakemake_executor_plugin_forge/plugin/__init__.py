"""The code that touches Snakemake. Runs in Snakemake's process."""
