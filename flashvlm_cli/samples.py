"""`flashvlm samples`: where the sample clips are."""

from __future__ import annotations

from flashvlm_cli import output


def samples() -> None:
    """Print the folder of the sample clips and their questions."""
    from flashvlm.samples import samples_dir

    output.print_text(str(samples_dir()))
