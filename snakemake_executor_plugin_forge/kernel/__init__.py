"""The one door to the kernel: system calls, files of /proc and of cgroups, process trees."""
