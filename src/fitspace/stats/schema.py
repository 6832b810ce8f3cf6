"""JSON Schema of the rows that ``fitspace anova --json`` prints."""

from __future__ import annotations

from fitspace.stats.columns import COLUMNS, columns

SHARES = [name for name in COLUMNS if name.startswith(("p", "eta2", "omega2", "mde"))]


def schema() -> dict:
    """JSON Schema of the rows that ``fitspace anova --json`` prints."""
    kinds: dict[str, dict] = {name: {"type": ["number", "null"], "minimum": 0} for name in COLUMNS}
    for name in SHARES:
        kinds[name]["maximum"] = 1
    kinds |= {name: {"type": "string", "minLength": 1} for name in ("stratum", "source")}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Rows of fitspace anova --json",
        "type": "array",
        "minItems": 1,
        "items": {
            "type": "object",
            "properties": {
                name: {"description": text, **kinds[name]} for name, text in COLUMNS.items()
            },
            "required": columns(),
            "additionalProperties": False,
        },
    }


if __name__ == "__main__":  # writes workflow/schemas/anova.schema.json
    import json

    print(json.dumps(schema(), indent=2))
