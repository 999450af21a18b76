"""What encloses a job: namespaces, Landlock, seccomp, privileges."""
