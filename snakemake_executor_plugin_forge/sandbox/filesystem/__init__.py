"""The file system that a job sees: mounts, overlays, scratch, disk usage."""
