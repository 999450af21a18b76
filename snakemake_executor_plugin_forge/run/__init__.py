"""The controller of a run: engine, retries, resume, garbage. Runs in Snakemake's process."""
