"""What no policy can beat on a known trace, and the plan behind it.

A linear relaxation of everything a run can do (``relaxation``), solved by HiGHS (``solver``), proven by its prices
(``certificate``) up to the luck of the draws (``luck``). ``plan`` makes of it what the clairvoyant policy executes.
"""

from selfserve.bound.offline import Bound, bound, oracle_for

__all__ = ["Bound", "bound", "oracle_for"]
