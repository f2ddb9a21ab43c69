"""Never ends by itself. Its time limit ends it: first SIGTERM, then, if that is not enough, SIGKILL.

belljar run examples/sleepy.py --timeout 3
"""

import time

started = time.monotonic()
while True:
    print(f"{time.monotonic() - started:.0f} s, still here", flush=True)
    time.sleep(1)
