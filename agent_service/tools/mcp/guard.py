"""Becomes a program that the system ends when this process's parent dies, however that dies (Linux).

Run as a script by a fresh interpreter: `guard.py PARENT_PID PROGRAM NAME ARGUMENT...`. The parent cannot ask for this
itself, since nothing of its own may run between fork and exec while it has threads.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Never returns."""
    parent, program, *arguments = sys.argv[1:]
    # Not SIGKILL: launchers such as npx or docker pass a SIGTERM on to what they run.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):
        sys.exit("the service has ended already")
    # The interpreter ignores these, and the program would inherit that.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    os.execv(program, arguments)


if __name__ == "__main__":
    main()
