"""Tests on special hosts, which they build themselves."""
