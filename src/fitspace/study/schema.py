"""The JSON Schema of a study file: ``python -m fitspace.study.schema`` prints it."""

from __future__ import annotations

from typing import Any

from fitspace.study.models import (
    Study,
)


def schema() -> dict[str, Any]:
    """JSON Schema of a study file."""
    document = Study.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **document}


if __name__ == "__main__":  # writes workflow/schemas/study.schema.json
    import json

    print(json.dumps(schema(), indent=2))
