"""Packages that scripts declare as dependencies: what they ask for, and the layers that hold what was installed."""
