"""The entry point of `flashvlm` and `python -m flashvlm_cli`."""

import os
import signal
import sys
import threading
from types import FrameType

TERMINATED = 128 + signal.SIGTERM
# Threads and processes that are at work may not end by themselves: after so many seconds they are left to themselves.
PATIENCE = 2.0


def terminate(number: int, frame: FrameType | None) -> None:
    """End as an exit does, so that the cursor comes back and no temporary file stays; soon, in any case."""
    last = threading.Timer(PATIENCE, os._exit, (TERMINATED,))
    last.daemon = True
    last.start()
    sys.exit(TERMINATED)


def main() -> int:
    """Run the command line, and handle an interrupt during its import too."""
    signal.signal(signal.SIGTERM, terminate)
    try:
        from flashvlm_cli import app
    except KeyboardInterrupt:
        print("flashvlm: Interrupted.", file=sys.stderr)
        return 130
    return app.main()


if __name__ == "__main__":
    sys.exit(main())
