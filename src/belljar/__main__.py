"""`python -m belljar`."""

from belljar.cli.main import main

main()
