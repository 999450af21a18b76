"""Limits by cgroup v2, by cgroup v1, or by polling; and the ladder of places where they can be had."""
