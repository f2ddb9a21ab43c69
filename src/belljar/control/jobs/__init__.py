"""Submitting, listing, cancelling and waiting for jobs. No I/O of its own."""
