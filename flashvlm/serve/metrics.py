"""What the server counts, as Prometheus reads it."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from flashvlm.report import Answer
from flashvlm.serve.memory import Memory

# Of a stage or an answer, in seconds: from what a cached video takes with a small model to minutes.
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
STAGES = ("decode", "encode", "select", "prefill", "generate")
TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """Counters of one server."""

    def __init__(self, memory: Memory) -> None:
        every = self._every = CollectorRegistry()
        self.requests = Counter("flashvlm_requests", "Requests by path and status.", ["path", "status"], registry=every)
        self.abandoned = Counter("flashvlm_abandoned", "Requests whose client went away.", registry=every)
        self.waiting = Gauge("flashvlm_requests_now", "Requests that wait or are being answered.", registry=every)
        self._tokens = Counter("flashvlm_visual_tokens", "Visual tokens.", ["which"], registry=every)
        self._generated = Counter("flashvlm_generated_tokens", "Tokens of answers.", registry=every)
        self._cached = Counter("flashvlm_cached_answers", "Answers on videos looked at before.", registry=every)
        self._stages = Histogram(
            "flashvlm_stage_seconds", "Seconds of a stage.", ["stage"], registry=every, buckets=BUCKETS
        )
        self._first = Histogram(
            "flashvlm_first_token_seconds",
            "Seconds of work up to the first token, without waiting.",
            registry=every,
            buckets=BUCKETS,
        )
        size = Gauge("flashvlm_memory_bytes", "Bytes of videos in memory.", registry=every)
        size.set_function(lambda: memory.size)
        videos = Gauge("flashvlm_memory_videos", "Videos in memory.", registry=every)
        videos.set_function(lambda: len(memory))

    def answered(self, answer: Answer) -> None:
        """Count an answer."""
        self._tokens.labels("before").inc(answer.tokens.before)
        self._tokens.labels("after").inc(answer.tokens.after)
        self._generated.inc(answer.generated_tokens)
        self._cached.inc(answer.cached)
        for stage in STAGES:
            self._stages.labels(stage).observe(getattr(answer.seconds, stage))
        self._first.observe(answer.seconds.time_to_first_token)

    def text(self) -> bytes:
        """All of it in Prometheus's text format."""
        return generate_latest(self._every)
