"""What flashvlm_samples.yaml names: where the clips are, and when an answer is right, as `bench accuracy` has it."""

from typing import Any

from flashvlm.bench import scoring
from flashvlm.bench.data import Asked
from flashvlm.samples import samples_dir


def visual(doc: dict[str, Any]) -> list[dict[str, str]]:
    # lmms-eval takes a bare path that ends with .webm for sound.
    return [{"type": "video", "url": str(samples_dir() / doc["video"])}]


def score(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    return {"right": float(scoring.right(Asked(doc["question"], doc["answer"], doc["family"]), results[0]))}
