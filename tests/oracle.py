"""transformers' own processor of a checkpoint folder, to compare with: torchvision and num2words are needed."""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch

from flashvlm.backends.loading import no_progress_bars


def processor(folder: Path) -> Any:
    """`AutoProcessor` of a checkpoint folder; the test is skipped where its packages are not installed."""
    pytest.importorskip("torchvision")
    pytest.importorskip("num2words")
    from transformers import AutoProcessor

    with no_progress_bars():
        return AutoProcessor.from_pretrained(folder, local_files_only=True)


def conversation(
    question: str,
    parts: list[dict[str, str]],
    system: str | None = None,
    history: Sequence[tuple[str, str]] = (),
) -> list[dict[str, Any]]:
    """Messages in the form that chat templates take, with `parts` (videos or pictures) in the first question."""
    said = [*(text for turn in history for text in turn), question]
    messages: list[dict[str, Any]] = [
        {"role": role, "content": [{"type": "text", "text": text}]}
        for role, text in zip(cycle(["user", "assistant"]), said, strict=False)
    ]
    messages[0]["content"] = [*parts, *messages[0]["content"]]
    told = [] if system is None else [{"role": "system", "content": [{"type": "text", "text": system}]}]
    return told + messages


def inputs(
    processor: Any,
    messages: list[dict[str, Any]],
    *,
    videos: list[torch.Tensor] = (),  # type: ignore[assignment]
    times: list[list[float]] = (),  # type: ignore[assignment]
    durations: list[float] = (),  # type: ignore[assignment]
    images: list[torch.Tensor] = (),  # type: ignore[assignment]
    **settings: Any,
) -> dict[str, torch.Tensor]:
    """What `model.generate(**inputs)` takes for a conversation about these frames, all of which are used.

    Args:
        messages: a conversation in the form that chat templates take.
        videos: each (F, 3, H, W) uint8.
        times: for each video, the time of each frame in seconds, in whole milliseconds.
        durations: how long each video lasts, in seconds; if not given, until its last frame.
        images: each (3, H, W) uint8.
        settings: of the processor.
    """
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    given: dict[str, Any] = {"text": [text]}
    if videos:
        # transformers computes a time as index / fps.
        given["video_metadata"] = [
            {
                "total_num_frames": round(duration * 1000),
                "fps": 1000.0,
                "frames_indices": [round(time * 1000) for time in shown],
                "duration": duration,
            }
            for shown, duration in zip(times, durations or [shown[-1] + 0.001 for shown in times], strict=True)
        ]
        given |= {"videos": list(videos), "do_sample_frames": False}
    if images:
        given["images"] = list(images)
    return dict(processor(**given, **settings, return_tensors="pt"))
