"""How the demo checkpoints in `flashvlm/demo` and the sample clips were made; run from the repository's root."""
