"""What a job sees of the file system: mounts, overlays, scratch, disk usage."""
