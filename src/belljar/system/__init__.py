"""What every package needs of the operating system: locks, temporary folders, disk space, background tasks."""
