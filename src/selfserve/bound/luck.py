"""How far luck with random service and boot times can take a run below its expectation.

The relaxation counts mean service and boot times; a run whose draws are short pays less, so the bound gives way a
little. Let a run pay ``a min(x, A)`` for a draw x (mean 1) and be credited ``a c`` if ``x <= A``. A is any limit that
is set before the draw shows: a deadline, the end of a spot machine, the moment at which a policy gives up a booting
machine. If ``E exp(-theta a (min(x, A) - c [x <= A])) <= 1`` for every A, the product of these exponentials over all
draws of a run is a supermartingale, since a policy does not know a draw before it shows. By Markov's inequality the
payments sum to at least the credits less ``ln(1/RISK) / theta``, with probability ``1 - RISK`` over the draws.
``credit`` is the largest c.

In the relaxation's terms: a batch led by a request with draw x works x times as long as in the mean. Prices value
each of its requests at no more than that work (``certificate``), so what it pays for is x times their worth, and the
bound counts c times: hence all requests, limits of waiting and accuracy rows are scaled by c, and x by x the argument
above applies. A request answered too late is credited nothing; an interrupted batch that starts again has its old
draw, which is then known to be long, which only raises what it pays. The later stages of a combination have draws that
are known from its first one: they are not credited by the mean at all (``options.stage_options``).
"""

from __future__ import annotations

from math import log

import numpy as np

RISK = 1e-9  #: probability, over the draws of a seed, that some run goes below the certificate


def credit(factors: np.ndarray, stake: float) -> float:
    """Return the largest credit c per draw of mean 1.

    Args:
        factors: the equally likely values of a draw, sorted.
        stake: theta times the largest payment a; 0 gives the limit, the least ``E min(x, A) / P(x <= A)``.
    """
    n = len(factors)
    done = np.arange(1, n + 1) / n
    if factors[0] == factors[-1]:
        return float(factors[0])
    if stake == 0.0:
        return float(np.min((np.cumsum(factors) / n + factors * (1 - done)) / done))
    # A between two values pays more than A at the lower one, for the same credit: the values themselves suffice.
    # Both terms are over exp(-stake * least factor), which may underflow.
    paid = np.cumsum(np.exp(-stake * (factors - factors[0]))) / n
    kept = np.log1p(-(1 - done) * np.exp(-stake * factors))
    return float(factors[0] + np.min(kept - np.log(paid)) / stake)


def margin(theta: float) -> float:
    """Return the dollars to take off the bound at a given theta (1/dollars)."""
    return log(1 / RISK) / theta


def best_theta(
    total_usd: float, batch_usd: float, service: np.ndarray, launch_usd: float, launches: float, boot: np.ndarray
) -> float:
    """Return a theta that costs little for a bill of ``total_usd`` made of draws of these sizes."""

    def loss(theta: float) -> float:
        boots = (1 - credit(boot, theta * launch_usd)) * launch_usd * launches
        return margin(theta) + (1 - credit(service, theta * batch_usd)) * total_usd + boots

    return float(min(log(1 / RISK) / (total_usd * np.geomspace(1e-5, 0.3, 60)), key=loss)) if total_usd > 0 else 0.0
