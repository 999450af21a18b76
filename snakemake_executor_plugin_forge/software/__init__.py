"""Named runtimes: venv, conda, container; their store and their health."""
