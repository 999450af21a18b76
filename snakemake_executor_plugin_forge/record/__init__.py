"""The files of an attempt and of a run: written, read, indexed, kept and removed."""
