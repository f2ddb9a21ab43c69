"""Scripts of projects: their records, their blobs, and the disks that machines get."""
