"""The slots of a pool as a winner tree of four branches: who is free first, and which free one is the oldest.

Node i has the children 4i .. 4i + 3, the root is node 1, slot s is leaf ``leaves + s``, ``leaves`` a power of four.
"""

from __future__ import annotations

from selfserve.simulator.jit import ints, kernel
from selfserve.simulator.state import NEVER


@kernel
def root(pool):
    """Return the time the first slot of a pool is free (``NEVER`` without a ready machine)."""
    return ints(pool.tree_at)[1]


@kernel
def free(pool, now):
    """Return whether a slot is free now, counting the finishes that have happened (``lag``: those of now have not)."""
    return root(pool) + pool.lag <= now


@kernel
def oldest_free(pool, now):
    """Return the first slot, in order of machine age, that is free now, or -1: walk down, left where possible."""
    tree, leaves, i = ints(pool.tree_at), pool.leaves, 1
    if tree[1] > now:
        return -1
    while i < leaves:
        i <<= 2
        one = tree[i] > now  # without branches: half of them would be mispredicted
        two = one & (tree[i + 1] > now)
        i += one + two + (two & (tree[i + 2] > now))
    return i - leaves


@kernel
def occupy(pool, slot, until):
    """Set the time until which a slot is busy and carry the minimum up to the root."""
    tree, i = ints(pool.tree_at), pool.leaves + slot
    tree[i] = until
    while i > 1:
        until = min(min(tree[i ^ 1], until), min(tree[i ^ 2], tree[i ^ 3]))
        i >>= 2
        tree[i] = until


@kernel
def busy_until(pool, slot):
    """Return the time until which a slot is busy."""
    return ints(pool.tree_at)[pool.leaves + slot]


@kernel
def clear_from(pool, slot):
    """Mark all slots from ``slot`` on as never free, and recompute all inner nodes from the leaves."""
    tree, n = ints(pool.tree_at), pool.leaves
    for i in range(n + slot, 2 * n):
        tree[i] = NEVER
    while n > 1:
        n >>= 2
        for i in range(n, 2 * n):
            c = 4 * i
            tree[i] = min(min(tree[c], tree[c + 1]), min(tree[c + 2], tree[c + 3]))
