"""`belljar` and `python -m belljar`. What belljar is made of takes a while to load; ^C meanwhile ends it in silence."""

from __future__ import annotations

import signal


def main() -> None:
    """Load the command line and run it."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from belljar.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
