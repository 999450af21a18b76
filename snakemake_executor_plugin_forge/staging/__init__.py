"""The files that a job wrote: collected, checked, published, and recovered after a crash."""
