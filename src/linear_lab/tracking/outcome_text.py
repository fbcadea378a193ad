"""What the Text page shows of a run's end."""

from typing import Any

from linear_lab.terminal.layout import markdown_table, number
from linear_lab.terminal.report import line, measures, outcomes


def outcome_text(record: dict[str, Any]) -> str:
    """Write a run's record as Markdown: how it ended, what it learned, and its losses."""
    found = outcomes(record)
    parts = [f"**{record['error'] or record['status']}**"]
    if "weight" in record["parameters"]:
        formulas = [[name, f"`{line(values, record['columns'])}`"] for name, values in found.items()]
        parts.append(markdown_table(["", "learned"], formulas))
    rows = [
        [name.replace("_", " "), *(number(values.get(name)) for values in found.values())] for name in measures(record)
    ]
    parts.append(markdown_table(["", *found], rows))
    if record["loss_unit"]:
        parts.append(f"unit of the losses: `{record['loss_unit']}`")
    return "\n\n".join(parts)
