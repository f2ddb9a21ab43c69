"""Container images: fetched, checked, unpacked layer by layer into a root filesystem. Nothing in one is believed."""
