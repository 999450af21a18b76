"""Runtimes: what a named software environment is made of, how it is built, whether it is sound, how jobs get it."""
