"""Print which Python and Linux run this script, inside its virtual machine."""

import platform
import sys

print(f"Hello from Python {platform.python_version()} on Linux {platform.release()}")
if sys.argv[1:]:
    print("arguments:", *sys.argv[1:])
