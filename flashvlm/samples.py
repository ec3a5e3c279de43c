"""Where the sample clips are: beside the package in a checkout, inside it in an installation."""

from __future__ import annotations

from pathlib import Path

from flashvlm.errors import FlashVLMError


def samples_dir() -> Path:
    """The folder of the sample clips and of their `questions.jsonl`.

    Raises:
        FlashVLMError: this installation has none.
    """
    package = Path(__file__).parent
    for folder in (package / "samples", package.parent / "samples"):
        if (folder / "questions.jsonl").is_file():
            return folder
    raise FlashVLMError("The sample clips are not part of this installation; install flashvlm again.")
