"""The published claims and what became of them.

``claims.csv`` states each with source and confirming band, fixed before anything was measured, and a remark: what is
known to set this study's measurement apart from the paper's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

VERDICTS = ("reproduced", "partly", "not reproduced")


def judge(claim_id: str, measured: str, parts: Mapping[str, object], why: str | None = None) -> dict[str, str]:
    """Return a claim's row: reproduced if all of its parts hold, partly if some do, not reproduced if none does.

    Args:
        claim_id: for instance ``C01``.
        measured: what this study measured, as text.
        parts: each condition of the band, in words, and whether the measurement meets it.
        why: what explains a deviation, the remark by default; the conditions that failed are named in any case.

    Raises:
        KeyError: for an unknown id.
        ValueError: without any part.
    """
    if not parts:
        raise ValueError(f"{claim_id}: a verdict needs at least one condition")
    known = pd.read_csv(Path(__file__).with_name("claims.csv"), dtype=str, keep_default_na=False).set_index("id")
    claim = known.loc[claim_id]
    failed = [name for name, holds in parts.items() if not holds]
    verdict = VERDICTS[0] if not failed else VERDICTS[2] if len(failed) == len(parts) else VERDICTS[1]
    reasons = [f"not met: {', '.join(failed)}"] if failed else []
    reasons += [why] if why else [claim["remark"]] if why is None and claim["remark"] else []
    row = {"id": claim_id, "claim": claim["claim"], "source": claim["source"], "band": claim["band"]}
    return row | {"measured": measured, "verdict": verdict, "why": "; ".join(reasons)}


def verdict_table(rows: Iterable[Mapping[str, str]]) -> pd.DataFrame:
    """Return the rows of :func:`judge` as a table in the order of their ids."""
    return pd.DataFrame(list(rows)).sort_values("id", ignore_index=True)


def span(values: pd.Series, digits: int = 2, between: str = " to ") -> str:
    """Return the least and the greatest value in words: ``0.98 to 1.02``."""
    return f"{values.min():.{digits}f}{between}{values.max():.{digits}f}"
