"""Images: recipes, the kernel, the initramfs, root filesystems and the manifest that names every part by its digest."""
