"""Packages that scripts declare as dependencies: parse the declarations, and cache the layers of installed packages."""
