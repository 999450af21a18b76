"""Readers of records: explain, advise, report, metrics, provenance. Nothing here is loaded where jobs are started."""
