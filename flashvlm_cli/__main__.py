"""What `flashvlm` and `python -m flashvlm_cli` start."""

import sys


def main() -> int:
    """Run the command line; an interrupt while it is still being imported is one, too."""
    try:
        from flashvlm_cli import app
    except KeyboardInterrupt:
        print("flashvlm: Interrupted.", file=sys.stderr)
        return 130
    return app.main()


if __name__ == "__main__":
    sys.exit(main())
