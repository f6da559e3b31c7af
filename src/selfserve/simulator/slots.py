"""The slots of a pool as a winner tree: who is free first, and which free one is the oldest, in log(slots)."""

from __future__ import annotations

import numpy as np

from selfserve.simulator.jit import kernel
from selfserve.simulator.state import LEAVES, NEVER

_0, _1 = np.uint64(0), np.uint64(1)


@kernel
def root(w, p):
    """Return the time the first slot of a pool is free (``NEVER`` without a ready machine)."""
    return w.tree[p, 1]


@kernel
def oldest_free(w, p, now):
    """Return the first slot, in order of machine age, that is free now, or -1: walk down, left where possible."""
    tree = w.tree[p]
    if tree[_1] > now:
        return np.int64(-1)
    leaves = np.uint64(w.pool[p, LEAVES])
    i = _1
    while i < leaves:
        i = i << _1
        i += np.uint64(tree[i] > now)
    return np.int64(i - leaves)


@kernel
def occupy(w, p, slot, until):
    """Set the time until which a slot is busy and carry the minimum up to the root."""
    tree = w.tree[p]
    i = np.uint64(w.pool[p, LEAVES]) + np.uint64(slot)
    tree[i] = until
    while i > _1:
        other = tree[i ^ _1]
        until = other if other < until else until
        i = i >> _1
        tree[i] = until


@kernel
def busy_until(w, p, slot):
    """Return the time until which a slot is busy."""
    return w.tree[p, w.pool[p, LEAVES] + slot]


@kernel
def rebuild(w, p):
    """Recompute all inner nodes from the leaves."""
    for i in range(w.pool[p, LEAVES] - 1, 0, -1):
        w.tree[p, i] = min(w.tree[p, 2 * i], w.tree[p, 2 * i + 1])


@kernel
def clear_from(w, p, slot):
    """Mark all slots from ``slot`` on as never free."""
    for i in range(w.pool[p, LEAVES] + slot, 2 * w.pool[p, LEAVES]):
        w.tree[p, i] = NEVER
