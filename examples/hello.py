"""Says where it runs: inside a virtual machine of its own."""

import platform
import sys

print(f"Hello from Python {platform.python_version()} on Linux {platform.release()}")
if sys.argv[1:]:
    print("arguments:", *sys.argv[1:])
