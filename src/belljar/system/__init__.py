"""What every package needs of the operating system: locks, files, temporary folders, disk space, threads, tasks."""
