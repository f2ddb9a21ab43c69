"""Kernels: programs that run in a sandbox and keep variables between pieces of code. One for each language."""
