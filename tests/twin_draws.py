"""What the twin draws: rules 2, 3 and 8.1 of the physics page, in plain Python integers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

from selfserve.protocol import Decision
from selfserve.scenario import NS, Scenario, Storm, to_ns
from selfserve.workload import Workload

REQUEST, CLOSING, BOOT, LIFE, REFUSAL, UNSURE = 1, 2, 3, 4, 5, 6  # 2.2
MASK, GOLDEN = (1 << 64) - 1, 0x9E3779B97F4A7C15


# ------------------------------------------------------------------------------------------------ 2 randomness
def fin(z: int) -> int:
    """Rule 2.1."""
    z ^= z >> 30
    z = z * 0xBF58476D1CE4E5B9 & MASK
    z ^= z >> 27
    z = z * 0x94D049BB133111EB & MASK
    return z ^ z >> 31


def draw(seed: int, kind: int, ident: int) -> int:
    """Rule 2.2."""
    base = fin((fin((seed + GOLDEN) & MASK) + kind * GOLDEN) & MASK)
    return fin((base + (ident + 1) * GOLDEN) & MASK)


def bits(number: int, high: int, low: int) -> int:
    """Bits high..low of a 64-bit number."""
    return number >> low & (1 << high - low + 1) - 1


@lru_cache
def lognormal_table(variation: float) -> list[int]:
    """Rule 2.3: 4096 factors in units of 1/65536."""
    if variation == 0.0:
        return [65536] * 4096
    s2 = math.log(1.0 + variation**2)
    normal = NormalDist()
    x = [math.exp(math.sqrt(s2) * normal.inv_cdf((i + 0.5) / 4096) - s2 / 2) for i in range(4096)]
    mean = math.fsum(x) / 4096
    return [round(value / mean * 65536) for value in x]


def spread(mean_ns: int, variation: float, quantile: int) -> int:
    """Rule 2.3: a lognormal factor on a mean."""
    return max(1, mean_ns * lognormal_table(variation)[quantile] >> 16)


@lru_cache
def exponential_table() -> list[int]:
    """Rule 2.4: 4097 values in units of 2^-24."""
    return [round(-math.log(1 - k / 4096) * 2**24) for k in range(4096)] + [round((math.log(4096) + 2) * 2**24)]


def exponential(u: int) -> int:
    """Rule 2.4: the exponential of a 24-bit number, in units of 2^-24."""
    table, k, f = exponential_table(), u >> 12, u & 4095
    return table[k] + ((table[k + 1] - table[k]) * f >> 12)


# -------------------------------------------------------------------------------------------------- 3 arrivals
@dataclass
class Request:
    """A request and what became of it."""

    id: int
    arrival: int
    klass: int
    deadline: int
    quantile: int
    route_bits: int
    route: int = -1
    pool: int = -1
    model: int = -1
    start: int = -1
    finish: int = -1
    cold: bool = False
    accuracy: float = math.nan
    rejected: bool = False


def arrivals(scenario: Scenario, workload: Workload, seed: int) -> list[Request]:
    """Rules 3.1 to 3.4."""
    if workload.times_ns is not None:
        times = [int(t) for t in workload.times_ns]
    else:
        times = []
        for second, n in enumerate(int(c) for c in workload.counts):  # 3.2
            gaps = [exponential(bits(draw(seed, REQUEST, len(times) + i), 63, 40)) for i in range(n)]
            total = sum(gaps) + exponential(bits(draw(seed, CLOSING, second), 63, 40))
            for i in range(n):
                inside = int(float(sum(gaps[: i + 1])) / float(total) * 1e9)
                times.append(min(second * NS + inside, second * NS + NS - 1))
    requests = []
    for ident, time in enumerate(times):
        h = draw(seed, REQUEST, ident)
        row = workload.thresholds[min(time // (60 * NS), len(workload.thresholds) - 1)]
        klass = sum(int(threshold) <= bits(h, 39, 24) for threshold in row[:-1])  # 3.3
        deadline = time + to_ns(scenario.classes[klass].slo_s)  # 3.4
        requests.append(Request(ident, time, klass, deadline, bits(h, 23, 12), bits(h, 11, 0)))
    return requests


def route_of(decision: Decision, request: Request) -> int:
    """Rule 3.5."""
    total, cumulative = 0.0, []
    for route in decision.routes[request.klass]:
        total += route.weight
        cumulative.append(total)
    return sum(round(c / total * 4096) <= request.route_bits for c in cumulative[:-1])


# ------------------------------------------------------------------------------------------------------ 8 spot
def storm_at(scenario: Scenario, time: int) -> Storm | None:
    """The storm of that time."""
    for storm in scenario.spot.storms:
        if to_ns(storm.start_s) <= time < to_ns(storm.start_s) + to_ns(storm.length_s):
            return storm
    return None


def notice_time(scenario: Scenario, seed: int, running: int, ident: int) -> int | None:
    """Rule 8.1; storms do not overlap."""
    left = exponential(bits(draw(seed, LIFE, ident), 63, 40)) / 2**24 * 3600e9
    usual, segments, a = scenario.spot.interruptions_per_hour, [], float(running)
    for storm in sorted(scenario.spot.storms, key=lambda s: s.start_s):
        start, stop = to_ns(storm.start_s), to_ns(storm.start_s) + to_ns(storm.length_s)
        if stop <= a:
            continue
        if a < start:
            segments.append((a, float(start), usual))
        segments.append((max(a, float(start)), float(stop), storm.interruptions_per_hour))
        a = float(stop)
    segments.append((a, math.inf, usual))
    for a, b, rate in segments:
        if rate > 0:
            if left <= (b - a) * rate:
                return int(a + left / rate)
            left -= (b - a) * rate
    return None
