"""A node: runs hostile guests and holds no project's data but what it has leased."""
