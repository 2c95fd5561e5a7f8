"""Run a command and write what it took; `process` starts this, and imports nothing of it.

    python -I -S launch.py RESULT CPUS COMMAND...

It stands between the benchmark and the command because Linux starts the count of peak memory at what
the process held that forked: a large parent would be measured instead of a small child. That is also
why it imports next to nothing.
"""

import json
import os
import sys
import time

if __name__ == "__main__":
    result, cpus, *command = sys.argv[1:]
    if cpus:
        os.sched_setaffinity(0, {int(cpu) for cpu in cpus.split(",")})
    start = time.monotonic()
    pid = os.posix_spawnp(command[0], command, os.environ)
    _, status, usage = os.wait4(pid, 0)
    document = {
        "wall": time.monotonic() - start,
        "user": usage.ru_utime,
        "system": usage.ru_stime,
        "peak": usage.ru_maxrss * 1024,
    }
    with open(result, "w") as file:
        json.dump(document, file)
    sys.exit(os.waitstatus_to_exitcode(status) & 0xFF)
