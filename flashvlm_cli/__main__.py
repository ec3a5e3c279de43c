"""The entry point of `flashvlm` and `python -m flashvlm_cli`."""

import sys


def main() -> int:
    """Run the command line, and handle an interrupt during its import too."""
    try:
        from flashvlm_cli import app
    except KeyboardInterrupt:
        print("flashvlm: Interrupted.", file=sys.stderr)
        return 130
    return app.main()


if __name__ == "__main__":
    sys.exit(main())
