"""flashvlm: ask a video a question, with only the visual tokens that matter for it.

from flashvlm import VideoQA
VideoQA.from_pretrained("demo").ask("clip.mp4", "What happens?", keep=0.1)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
# The modules among them are imported when they are first named.
__all__ = [
    "AskOptions",
    "Frames",
    "VideoQA",
    "__version__",
    "errors",
    "options",
    "overlay",
    "page",
    "report",
    "samples",
    "selection",
]

if TYPE_CHECKING:
    from flashvlm import errors, options, overlay, page, report, samples, selection
    from flashvlm.options import AskOptions
    from flashvlm.pipeline import VideoQA
    from flashvlm.video import Frames
else:

    def __getattr__(name: str) -> Any:
        # VideoQA imports torch; the command line's help and errors must not wait for that.
        if name == "VideoQA":
            from flashvlm.libraries import hide_unfit_torchvision

            hide_unfit_torchvision()
            from flashvlm.pipeline import VideoQA

            return VideoQA
        if name == "AskOptions":
            from flashvlm.options import AskOptions

            return AskOptions
        if name == "Frames":
            from flashvlm.video import Frames

            return Frames
        if name in __all__:
            return import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
