"""This host: admission, GPUs, adoption. Runs in Snakemake's process, in threads of its own."""
