"""The entry point of `flashvlm` and `python -m flashvlm_cli`."""

import os
import signal
import sys
import threading
from types import FrameType

# A closed terminal sends the second one, but not on Windows.
ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
# Threads and processes that are at work may not end by themselves: after so many seconds they are left to themselves.
PATIENCE = 2.0


def terminate(number: int, frame: FrameType | None) -> None:
    """End as an exit does, so that the cursor comes back and no temporary file stays; soon, in any case."""
    for other in ENDING:
        # A second signal would end the first one's clean-up.
        signal.signal(other, signal.SIG_IGN)
    last = threading.Timer(PATIENCE, os._exit, (128 + number,))
    last.daemon = True
    last.start()
    sys.exit(128 + number)


def main() -> int:
    """Run the command line, and handle an interrupt during its import too."""
    for number in ENDING:
        # What was started to be left alone, by nohup for instance, is left alone.
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, terminate)
    try:
        from flashvlm_cli import app
    except KeyboardInterrupt:
        print("flashvlm: Interrupted.", file=sys.stderr)
        return 130
    return app.main()


if __name__ == "__main__":
    sys.exit(main())
