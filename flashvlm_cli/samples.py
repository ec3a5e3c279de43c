"""`flashvlm samples`: where the sample clips are."""

from __future__ import annotations


def samples() -> None:
    """Print the folder of the sample clips and their questions."""
    from flashvlm.samples import samples_dir

    print(samples_dir())
