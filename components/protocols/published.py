"""What arXiv 2604.11626 prints in Table 1, and what is known of how each cell was counted.

The table cannot be a target as it stands: its columns mix protocols (reward-models.md 2.4, the warnings of paper.md 5.1). So every cell
carries a mark, and numbers of one's own stand beside it under the protocol that they were counted by.
"""

from __future__ import annotations

from collections.abc import Sequence

from .results import Result, percent

COLUMNS: dict[str, tuple[str, tuple[str, ...]]] = {
    "MMRB2 T2I": ("mmrb2", ("t2i/test",)),
    "MMRB2 Edit": ("mmrb2", ("edit/test",)),
    "EditReward-Bench": ("erbench-tiger/K2", ("2pair/train",)),
    "GenAI T2I": ("genai-tiger", ("image_generation/test_v1",)),
    "GenAI Edit": ("genai-tiger", ("image_edition/test_v1",)),
}
"""Column to the beginning of the protocols and to the rows that belong into it."""

MARKS = {
    "a": "`mmrb2/both-orders`, `of_answered`: equals MMRB2's own board, which counts both orders of 1,000 pairs",
    "b": "MMRB2 in one order (the released script asks once), failures not counted; so not `mmrb2/both-orders`",
    "c": "as printed by EditReward, on the edits with a single source picture only",
    "d": "equals EditReward's K = 2 column: `erbench-tiger/K2/3way` up to failures (its scalar models by a looser rule, with a threshold "
    "fitted on the test rows)",
    "e": "K = 2 as far as digits tell; of the 133 items that the paper states; which rows is unknown, failures not counted",
    "f": "equals EditReward's own table, where ties count: `genai-tiger/test_v1/4way`",
    "g": "equals EditReward's own table: three-way with a threshold fitted on the test rows; of its MiMo-VL model, not the one of mark d",
    "h": "apparently without ties, as `genai-tiger/test_v1/decided`, one order, failures not counted; inferred from digits: "
    "Gemini 2.5 Flash has 73.0 in the last column here and 57.01 in EditReward's table",
    "i": "counted by whom and how is unknown",
}
"""What is known of a cell."""

Cell = tuple[float, str] | None
_BOARD, _OWN = "aaehh", "bbehh"


def _row(values: Sequence[float | None], marks: str) -> tuple[Cell, ...]:
    return tuple(None if value is None else (value, mark) for value, mark in zip(values, marks, strict=True))


TABLE: dict[str, tuple[Cell, ...]] = {
    "Qwen2.5-VL-7B": _row((50.4, 57.1, 52.69, None, 40.48), "aad-f"),
    "Qwen2.5-VL-72B": _row((59.1, 64.6, 63.9, 66.6, 74.3), _BOARD),
    "Qwen3-VL-8B": _row((59.4, 61.7, 51.9, 55.1, 50.1), _BOARD),
    "Qwen3-VL-32B": _row((64.1, 67.3, 64.2, 66.9, 76.3), _BOARD),
    "EditReward-7B": _row((None, 67.2, 56.99, None, 65.72), "-cd-g"),
    "UnifiedReward-7B": _row((59.8, None, None, 67.9, None), "a--i-"),
    "RationalRewards (Qwen2.5-VL-7B)": _row((62.3, 68.5, 63.6, 66.4, 75.7), _OWN),
    "RationalRewards (Qwen3-VL-8B)": _row((64.2, 70.3, 66.2, 69.8, 80.1), _OWN),
    "Direct distillation from Qwen3-VL-32B, no anchor": _row((57.4, 65.6, 56.8, 59.3, 62.8), _OWN),
    "GPT-4.1": _row((65.8, 68.2, 58.3, 60.5, 69.3), _BOARD),
    "Gemini 2.5 Flash": _row((63.1, 66.5, 58.6, 65.8, 73.0), "aadhh"),
    "Gemini 2.5 Pro": _row((70.5, 71.3, 71.3, 66.2, 78.9), _BOARD),
    "Gemini 3 Pro": _row((74.4, 74.9, 72.2, 73.1, 80.5), _BOARD),
}
"""Judge to its cells, in the order of :data:`COLUMNS`: per cent as printed, and a mark."""


def published_table(results: Sequence[Result] = ()) -> str:
    """The printed table with its marks as Markdown, and result rows of one's own below it.

    Args:
        results: Rows that belong into one of the columns; others are named below the table.
    """
    lines = ["| judge | " + " | ".join(COLUMNS) + " |", "|---|" + "---:|" * len(COLUMNS)]
    for judge, cells in TABLE.items():
        shown = ["-" if cell is None else f"{cell[0]} ({cell[1]})" for cell in cells]
        lines.append(f"| {judge} | " + " | ".join(shown) + " |")
    ours: dict[tuple[str, str], list[list[str]]] = {}
    elsewhere = []
    for one in results:
        place = [index for index, (start, rows) in enumerate(COLUMNS.values()) if _belongs(one, start, rows)]
        if not place:
            elsewhere.append(one)
            continue
        found = ours.setdefault((one.judge.name, one.mode), [[] for _ in COLUMNS])
        of = f"; of answered {percent(one.of_answered)}" if one.of_answered != one.value else ""
        found[place[0]].append(f"**{percent(one.value, one.interval)}** (`{one.protocol}`, n {one.n}{of})")
    for (name, mode), columns in ours.items():
        lines.append(f"| **{name}, {mode}** | " + " | ".join("<br>".join(cell) or "-" for cell in columns) + " |")
    lines += ["", "Accuracy in %. Printed cells are as in arXiv 2604.11626, Table 1, without intervals, seeds or failure rates."]
    lines += [f"- ({mark}) {known}." for mark, known in MARKS.items()]
    if results:
        lines.append(
            "- **Bold**: counted here, every failure as wrong, with 95 % intervals; the protocol stands beside the number."
        )
    for one in elsewhere:
        lines.append(
            f"- Not in the table: {one.judge.name}, {one.mode}, `{one.protocol}` {percent(one.value, one.interval)} (n {one.n})."
        )
    return "\n".join(lines) + "\n"


def _belongs(result: Result, protocol: str, rows: Sequence[str]) -> bool:
    return result.protocol.startswith(protocol) and any(result.rows.endswith(f" {name}") for name in rows)
