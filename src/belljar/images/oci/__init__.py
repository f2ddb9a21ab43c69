"""Import container images: fetch, verify and unpack them into a root filesystem. Their content is never trusted."""
