"""The entry point of `flashvlm` and `python -m flashvlm_cli`."""

import signal
import sys

TERMINATED = 128 + signal.SIGTERM


def main() -> int:
    """Run the command line, and handle an interrupt during its import too.

    A signal to terminate ends it as an exit does: the cursor comes back, and no temporary file stays.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(TERMINATED))
    try:
        from flashvlm_cli import app
    except KeyboardInterrupt:
        print("flashvlm: Interrupted.", file=sys.stderr)
        return 130
    return app.main()


if __name__ == "__main__":
    sys.exit(main())
