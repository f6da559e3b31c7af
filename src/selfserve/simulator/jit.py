"""The one decorator of every compiled kernel, and the two numba facts that it hides.

numba counts references to arrays even where nothing is allocated; in a loop of nanoseconds that costs up to 200 ns a
request once queues form. Kernels allocate nothing, so the counting is switched off (``_nrt=False``), which is why every
array is made in Python (``state.py``). Index arithmetic inside trees is unsigned: numba checks signed indices for
wrap-around.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

kernel: Callable[..., Any] = njit(cache=True, _nrt=False, forceinline=True, error_model="numpy")

U32 = np.uint32
"""Type of an index inside kernels: unsigned, so that it is not checked for wrap-around, and narrow, so that arithmetic
with int64 stays int64 (uint64 with int64 gives float64)."""
