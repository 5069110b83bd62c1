"""What the server measures of itself, in Prometheus' text and by vLLM's names, so that its dashboards work here.

Labels are bounded: the models that are served, the statuses there are, and the routes.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from cutaway.server.served import Figures

_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
            80.0, 160.0, 640.0)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)
_COUNTED = {"prompt_tokens": "vllm:prefix_cache_queries", "cached_tokens": "vllm:prefix_cache_hits",
            "preemptions": "vllm:num_preemptions"}


class Metrics:
    """Counters and histograms of one server."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        model = ["model_name"]

        def seconds(name: str, what: str) -> Histogram:
            return Histogram(name, what, model, registry=registry, buckets=_SECONDS)

        self.running = Gauge("vllm:num_requests_running", "Requests being written.", model, registry=registry)
        self.waiting = Gauge("vllm:num_requests_waiting", "Requests that wait.", model, registry=registry)
        self.cache_used = Gauge("vllm:kv_cache_usage_perc", "Pages in use, 1 is all.", model, registry=registry)
        self.prompt = Counter("vllm:prompt_tokens", "Tokens of prompts.", model, registry=registry)
        self.generated = Counter("vllm:generation_tokens", "Tokens written.", model, registry=registry)
        self.done = Counter("vllm:request_success", "Answers, by why they ended.", [*model, "finished_reason"],
                            registry=registry)
        self.first = seconds("vllm:time_to_first_token_seconds", "Until the first token.")
        self.between = seconds("vllm:inter_token_latency_seconds", "Between two tokens of an answer.")
        self.whole = seconds("vllm:e2e_request_latency_seconds", "Until the last token.")
        self.queue = seconds("vllm:request_queue_time_seconds", "Until it was begun.")
        self.prefill = seconds("vllm:request_prefill_time_seconds", "From there to the first token.")
        self.decode = seconds("vllm:request_decode_time_seconds", "From the first token to the last.")
        self.prompt_length = Histogram("vllm:request_prompt_tokens", "Tokens of a prompt.", model, registry=registry,
                                       buckets=_TOKENS)
        self.answer_length = Histogram("vllm:request_generation_tokens", "Tokens of an answer.", model,
                                       registry=registry, buckets=_TOKENS)
        self.http = Counter("cutaway_http_responses", "HTTP responses.", ["route", "status"], registry=registry)
        self.restarts = Gauge("cutaway_engine_restarts", "Times an engine failed.", model, registry=registry)
        self.plain = Gauge("cutaway_engine_plain", "1 where new requests are written without kernels.", model,
                           registry=registry)
        self._counts = {field: Counter(name, f"{field.replace('_', ' ')} of the engine.", model, registry=registry)
                        for field, name in _COUNTED.items()}
        self._seen: dict[tuple[str, str], int] = {}

    def note(self, model: str, figures: Figures | None, *, waiting: int, restarts: int, plain: bool) -> None:
        """Take over where an engine stands. What an engine counts begins anew when it is made again."""
        self.plain.labels(model).set(plain)
        self.restarts.labels(model).set(restarts)
        self.waiting.labels(model).set(waiting)
        if figures is None:
            return
        self.running.labels(model).set(figures.running)
        pages = figures.pages_used + figures.pages_cached + figures.pages_free
        self.cache_used.labels(model).set(figures.pages_used / pages if pages else 0.0)
        for field, counter in self._counts.items():
            now, before = int(getattr(figures, field)), self._seen.get((model, field), 0)
            counter.labels(model).inc(now - before if now >= before else now)
            self._seen[model, field] = now

    def closed(self, model: str) -> None:
        """The model's engine is gone; its counts begin at nothing when it comes back."""
        self.plain.labels(model).set(0)
        self.running.labels(model).set(0)
        self.waiting.labels(model).set(0)
        self.cache_used.labels(model).set(0)
        self._seen = {key: n for key, n in self._seen.items() if key[0] != model}

    def text(self) -> bytes:
        """All of it, in Prometheus' text format 0.0.4."""
        return generate_latest(self._registry)
