"""What Prometheus is told at `/metrics`."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from demur.server.engine import Engine
from demur.server.offer import Offer

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counts of one server; each has its own, so that two in one process do not meet."""

    def __init__(self, engine: Engine, offer: Offer) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "demur_requests", "Requests, by route and status.", ["route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "demur_request_seconds",
            "Time of a request, to its last byte.",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.first = Histogram(
            "demur_first_text_seconds",
            "Time until the first text of an answer (of one that is not streamed: all of it).",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.answers = Counter(
            "demur_answers", "Choices written, and what became of them.",
            ["policy", "level", "open", "finish"], registry=self.registry,
        )  # fmt: skip
        self.registry.register(Engines(engine, offer))

    def text(self) -> bytes:
        """In Prometheus's format."""
        return generate_latest(self.registry)


class Engines(Collector):
    """What engine and offer count themselves."""

    def __init__(self, engine: Engine, offer: Offer) -> None:
        self.engine, self.offer = engine, offer

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """As it is now."""
        yield GaugeMetricFamily("demur_rows", "Choices that are being written.", value=len(self.engine.rows))
        yield GaugeMetricFamily("demur_waiting", "Choices that wait for a row.", value=len(self.engine.waiting))
        for name, value in self.engine.counts.items():
            yield CounterMetricFamily(f"demur_engine_{name}", f"The engine's {name.replace('_', ' ')}.", value=value)
        for name, value in self.offer.reloads.items():
            yield CounterMetricFamily(f"demur_policies_{name}", f"Changed policy files that were {name}.", value=value)
