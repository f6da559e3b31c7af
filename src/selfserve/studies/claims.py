"""The published claims and what became of them; ``claims.csv`` states each with source and confirming band."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

VERDICTS = ("reproduced", "partly", "not reproduced")


def load_claims() -> pd.DataFrame:
    """Return all claims, indexed by id: ``claim``, ``source``, ``band``, ``read_as`` (as text or digitised figure)."""
    return pd.read_csv(Path(__file__).with_name("claims.csv"), dtype=str, keep_default_na=False).set_index("id")


def judge(claim_id: str, measured: str, parts: Mapping[str, bool], why: str = "") -> dict[str, str]:
    """Return a claim's row: reproduced if all of its parts hold, partly if some do, not reproduced if none does.

    Args:
        claim_id: for instance ``C01``.
        measured: what this study measured, as text.
        parts: each condition of the band, in words, and whether the measurement meets it.
        why: what explains a deviation; the conditions that failed are named in any case.

    Raises:
        KeyError: for an unknown id.
        ValueError: without any part.
    """
    if not parts:
        raise ValueError(f"{claim_id}: a verdict needs at least one condition")
    claim = load_claims().loc[claim_id]
    failed = [name for name, holds in parts.items() if not holds]
    verdict = VERDICTS[0] if not failed else VERDICTS[2] if len(failed) == len(parts) else VERDICTS[1]
    reasons = [f"not met: {', '.join(failed)}"] if failed else []
    return {
        "id": claim_id,
        "claim": claim["claim"],
        "source": claim["source"],
        "band": claim["band"],
        "measured": measured,
        "verdict": verdict,
        "why": "; ".join([*reasons, why] if why else reasons),
    }


def verdict_table(rows: Iterable[Mapping[str, str]]) -> pd.DataFrame:
    """Return the rows of :func:`judge` as a table in the order of their ids."""
    return pd.DataFrame(list(rows)).sort_values("id", ignore_index=True)


def as_markdown(verdicts: pd.DataFrame) -> str:
    """Return the verdicts as Markdown, a paragraph a claim, for a notebook to show."""
    paragraphs = []
    for row in verdicts.to_dict("records"):
        why = f" *Why:* {row['why']}." if row["why"] else ""
        paragraphs.append(
            f"**{row['id']} {row['verdict']}.** {row['claim']} ({row['source']}).\n"
            f"*Band:* {row['band']}. *Measured:* {row['measured']}.{why}"
        )
    return "\n\n".join(paragraphs)
