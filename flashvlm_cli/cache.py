"""`flashvlm cache`: show or clear the feature cache."""

from __future__ import annotations

from typing import Annotated

import typer

from flashvlm import units
from flashvlm.errors import FlashVLMError
from flashvlm_cli import output


def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Remove everything in it.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object instead of text.")] = False,
) -> None:
    """Show or clear the feature cache, which stores the encoder's output for videos, and downloaded videos."""
    from flashvlm.cache import FeatureCache
    from flashvlm.web import Downloads

    kept, downloads = FeatureCache.of_user(), Downloads.of_user()
    try:
        removed = kept.clear() if clear else []
        gone = downloads.clear() if clear else []
    except OSError as error:
        raise FlashVLMError(f"The feature cache {kept.folder} cannot be cleared: {error.strerror}.") from error
    sizes = [size for _, size, _ in kept.entries()]
    there = [size for _, size, _ in downloads.entries()]
    if as_json:
        content = {"folder": str(kept.folder), "videos": len(sizes), "bytes": sum(sizes), "limit": kept.limit}
        content |= {"downloads": {"folder": str(downloads.folder), "videos": len(there), "bytes": sum(there)}}
        output.print_json(content | ({"removed": len(removed), "removed_bytes": sum(removed)} if clear else {}))
        return
    if clear:
        print(f"removed  {units.plural(len(removed), 'video')}, {units.scaled(sum(removed), 'B')}")
        if gone:
            print(f"         {units.plural(len(gone), 'download')}, {units.scaled(sum(gone), 'B')}")
    output.print_text(f"folder   {kept.folder}")
    print(f"videos   {units.count(len(sizes))}")
    print(f"size     {units.scaled(sum(sizes), 'B')} of {units.scaled(kept.limit, 'B')}")
    if there:
        size = f"{units.scaled(sum(there), 'B')} of {units.scaled(downloads.limit, 'B')}"
        output.print_text(f"web      {units.plural(len(there), 'download')}, {size}, in {downloads.folder}")
