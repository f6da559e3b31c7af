"""Hand-built scenarios and observations for the tests of planner and policies."""

from __future__ import annotations

import cases
import numpy as np

from selfserve.protocol import BOOT_AGE_BINS, Observation
from selfserve.scenario import FunctionPhysics, Model, RequestClass, Scenario, ServicePhysics, VmPhysics, to_ns

MODELS = (Model("small", 70.0), Model("middle", 76.0), Model("large", 82.0), Model("huge", 85.0))
SERVICE_S = (0.02, 0.05, 0.2, 0.4)
STRICT = RequestClass("strict", 0.5, 0.5, 75.0)
MEAN = RequestClass("accurate", 0.3, 2.0, 75.0, 80.0)
RELAXED = RequestClass("relaxed", 0.2, 20.0, 81.0)


def make_pool(name, market="on_demand", *, services=SERVICE_S, slots=2, usd=0.1, memory_mb=4096.0, believed=1.0, **kw):
    """Return a pool whose model m takes ``services[m]`` seconds a request (None: not resident), batch 1 and 2."""
    truth = np.zeros((len(MODELS), 3), dtype=np.int64)
    for m, seconds in enumerate(services):
        if seconds is not None:
            truth[m, 1:] = to_ns(seconds), to_ns(1.8 * seconds)
    fields = dict(resource=name, memory_mb=memory_mb, max_machines=2000, usd_per_hour=usd)
    if market == "function":
        fields |= dict(usd_per_busy_hour=usd, usd_per_busy_hour_provisioned=usd / 2)
    else:
        fields |= dict(slots=slots)
    return cases.make_pool(name, market, truth, believed, **(fields | kw))


def make_scenario(pools=None, classes=(STRICT, MEAN, RELAXED), spread=0.1, boot_s=83.0):
    """Return a scenario: one VM pool and one function pool unless others are given."""
    if pools is None:
        pools = (make_pool("vm"), make_pool("fn", "function", usd=0.2, memory_mb=1769.0))
    return Scenario(
        name="test",
        classes=tuple(classes),
        pools=tuple(pools),
        models=MODELS,
        load_machines=20,
        vm=VmPhysics(boot_s=boot_s),
        function=FunctionPhysics(),
        service=ServicePhysics(spread=spread),
    )


def observe(scenario, time_s, interval_s=1.0, arrivals=0.0, ready=None, busy=None, queued=None):
    """Return an observation; ``arrivals`` are requests/s per class or in all (split by share)."""
    p, m, k = len(scenario.pools), len(scenario.models), len(scenario.classes)
    shares = np.array([c.share for c in scenario.classes])
    rate = np.asarray(arrivals, dtype=float) * (shares if np.ndim(arrivals) == 0 else 1.0)
    seconds = int(np.ceil(interval_s))
    zeros = np.zeros(p)
    return Observation(
        time_s=time_s,
        interval_s=interval_s,
        arrivals=np.tile(rate, (seconds, 1)) * (interval_s / seconds if time_s > 0 else 0.0),
        ready=np.array(ready if ready is not None else [0] * p),
        booting=np.zeros((p, BOOT_AGE_BINS), dtype=np.int64),
        busy_slot_s=np.array(busy if busy is not None else [0.0] * p),
        queued=np.array(queued if queued is not None else [[0] * k] * p),
        queued_request_s=np.zeros((p, k)),
        head_age_s=np.zeros((p, k)),
        served=np.zeros((p, m, k), dtype=np.int64),
        late=np.zeros(k, dtype=np.int64),
        accuracy_sum=np.zeros(k),
        cold_starts=zeros.astype(np.int64),
        lost=zeros.astype(np.int64),
        refused=zeros.astype(np.int64),
        batch_mean=zeros,
        spend_usd=zeros,
    )


def machines_over_time(policy, scenario, loads, interval_s=1.0, history=()):
    """Return the decided machines of pool 0 while ``loads`` (requests/s) arrive, one interval each."""
    policy.reset(scenario, np.asarray(history, dtype=float))
    out = [policy.decide(observe(scenario, 0.0, interval_s)).machines[0]]
    for i, load in enumerate(loads, start=1):
        out.append(policy.decide(observe(scenario, i * interval_s, interval_s, load)).machines[0])
    return out
