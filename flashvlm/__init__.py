"""flashvlm: ask a video a question, with only the visual tokens that matter for it."""

__version__ = "0.1.0"
