"""Build and find images: recipes, kernel, initramfs, root filesystem, and the manifest with the digest of each part."""
