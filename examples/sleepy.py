"""Run for ever: the time limit ends the job, first with SIGTERM, then with SIGKILL.

belljar run examples/sleepy.py --timeout 3
"""

import time

started = time.monotonic()
while True:
    print(f"{time.monotonic() - started:.0f} s, still here", flush=True)
    time.sleep(1)
