"""What a decision may say: it is checked whole before any of it is put in force."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any, cast

import numpy as np

from selfserve.correctness import stages
from selfserve.errors import InputError
from selfserve.protocol import Admit, Decision, Route, Step, Then
from selfserve.scenario import LONGEST_S, Scenario, to_ns
from selfserve.simulator import state as s


def check_orders(decision: Decision, scenario: Scenario, largest: Sequence[int]) -> tuple[np.ndarray, ...]:
    """Return a decision's machines, largest batches (at most ``largest``) and waits (ns), each int64 [P].

    Raises:
        InputError: saying which entry is wrong and what would be right.
    """
    if not isinstance(decision, Decision):
        raise InputError(f"decide() returned {_shown(decision)}: right is a Decision")
    pools = [pool.name for pool in scenario.pools]
    machines = _entries("machines", decision.machines, pools)
    sizes = _entries("batch_max", given(decision.batch_max, 1, len(pools)), pools)
    waits = _entries("batch_wait_s", given(decision.batch_wait_s, 0.0, len(pools)), pools)
    for name, target, size, wait_s, pool in zip(pools, machines, sizes, waits, scenario.pools, strict=True):
        _require(_whole(target) and 0 <= target < 2**31, f"Decision.machines of pool {name!r}", target, "0, 1, 2, ..")
        _require(_whole(size) and size >= 1, f"Decision.batch_max of pool {name!r}", size, "1, 2, 3, ..")
        _require(_within(wait_s, 0, LONGEST_S), f"Decision.batch_wait_s of pool {name!r}", wait_s, "0 or more seconds")
        if pool.is_function and target and len(pool.models) != 1:
            raise InputError(f"pool {name!r}: provisioned containers need a function pool with one model")
    batches = [min(int(size), most) for size, most in zip(sizes, largest, strict=True)]
    return np.array([int(n) for n in machines]), np.array(batches), np.array([to_ns(float(x)) for x in waits])


def given(entries: Any, default: float, n: int) -> Any:
    """Return a decision's entries, ``default`` n times where there are none."""
    return entries if np.size(entries) and entries is not None else (default,) * n


def check_routes(routes: object, scenario: Scenario) -> tuple[tuple[Route, ...], ...]:
    """Return a decision's routes, themselves if nobody can edit them in place, else a copy.

    Raises:
        InputError: naming the class and what is wrong with its routes.
    """
    names = [c.name for c in scenario.classes]
    found = []
    for name, mine in zip(names, _entries("routes", routes, names, "classes"), strict=True):
        if not isinstance(mine, list | tuple) or any(not isinstance(r, Route) for r in mine):
            raise InputError(f"class {name!r}: its routes are {_shown(mine)}: right is a tuple of Route")
        steps = [r.steps for r in mine]
        if not 1 <= len(mine) <= s.ROUTES or any(not isinstance(x, tuple) or not 1 <= len(x) <= s.STEPS for x in steps):
            raise InputError(
                f"class {name!r}: 1 to {s.ROUTES} routes of 1 to {s.STEPS} steps each are possible (tuples)"
            )
        if any(not _within(r.weight, 0, 1e300) for r in mine) or not sum(r.weight for r in mine) > 0:
            raise InputError(f"class {name!r}: route weights must be at least 0 and not all 0")
        for step in (x for part in steps for x in part):
            _check_step(step, name, scenario)
        for route in mine:
            _check_stages(route, name)
        found.append(mine)
    fixed = isinstance(routes, tuple) and all(isinstance(mine, tuple) for mine in found)
    return cast(tuple[tuple[Route, ...], ...], routes) if fixed else tuple(tuple(mine) for mine in found)


def _check_step(step: Step, name: str, scenario: Scenario) -> None:
    where = f"class {name!r}: Step"
    if not isinstance(step, Step):
        raise InputError(f"class {name!r}: {_shown(step)} in a route: right is a Step")
    pools = len(scenario.pools)
    _require(_whole(step.pool) and 0 <= step.pool < pools, f"{where}.pool", step.pool, f"0 to {pools - 1}")
    pool = scenario.pools[int(step.pool)]
    for m in (step.model, step.late_model):
        if m is not None and m not in pool.models:
            raise InputError(f"class {name!r}: model {_shown(m)} is not resident in pool {pool.name!r}")
    for kind, value in ((Admit, step.admit), (Then, step.then)):
        right = ", ".join(f"{x.name} ({x.value})" for x in kind)
        _require(value in tuple(kind), f"{where}.{kind.__name__.lower()}", value, f"one of {right}")
    slack = step.leave_slack_s
    _require(
        slack == -np.inf or _within(slack, -LONGEST_S, np.inf), f"{where}.leave_slack_s", slack, "seconds, or -inf"
    )
    _require(_within(step.late_slack_s, 0, LONGEST_S), f"{where}.late_slack_s", step.late_slack_s, "0 or more seconds")
    _require(_within(step.unsure_share, 0, 1), f"{where}.unsure_share", step.unsure_share, "between 0 and 1")


def _check_stages(route: Route, name: str) -> None:
    """Raise an InputError that names what is wrong with a route's stages (rule 10.2)."""
    parts = stages(route)
    kinds = {step.then for step in route.steps[:-1] if step.then}
    if route.steps[-1].then:
        raise InputError(f"class {name!r}: the last step of a route cannot say then={Then(route.steps[-1].then).name}")
    if len(kinds) > 1:
        raise InputError(f"class {name!r}: a route's stages are all IF_UNSURE or all ALSO, not both")
    if len(parts) > 1 and any(len({step.model for step in part}) > 1 for part in parts):
        raise InputError(f"class {name!r}: all steps of a stage must name one model")
    if len(parts) > 1 and any(step.late_model is not None for step in route.steps):
        raise InputError(f"class {name!r}: a route of several stages cannot have a late model")


def _entries(field: str, values: object, names: Sequence[str], of: str = "pools") -> Any:
    if not isinstance(values, list | tuple) and not (isinstance(values, np.ndarray) and values.ndim):
        raise InputError(f"Decision.{field} is {_shown(values)}: right is one entry for each of {', '.join(names)}")
    if len(values) != len(names):
        raise InputError(f"Decision.{field} has {len(values)} entries: one for each of {len(names)} {of}")
    return values


def _whole(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        return False
    return isfinite(value) and float(value).is_integer()


def _within(value: object, low: float, high: float) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and low <= float(value) <= high


def _require(holds: bool, what: str, value: object, right: str) -> None:
    if not holds:
        raise InputError(f"{what} is {_shown(value)}: right is {right}")


def _shown(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}.."
