"""How the demo checkpoints in `flashvlm/demo` were trained and evaluated; run from the repository's root."""
