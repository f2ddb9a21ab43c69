"""Scripts of projects: records, blobs, and the disks for machines."""
