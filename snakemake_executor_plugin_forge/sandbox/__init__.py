"""The sandbox around a job: namespaces, Landlock, seccomp, privileges."""
