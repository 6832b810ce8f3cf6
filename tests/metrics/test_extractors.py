"""A new extractor is a file and a row: all else that a study's weights go through follows."""

import json
import subprocess
import sys
from pathlib import Path

from fitspace.core.files import sha256

ROOT = Path(__file__).parents[2]
# The rows are added before anything reads the tables, as if they stood there.
PROGRAM = """
from fitspace.metrics import extractors, table
from fitspace.metrics.extractors import Extractor

row = Extractor(lambda images, weights: images.double().mean((1, 2)), "3", "Weights for `toys`.")
extractors.EXTRACTORS["toy"] = extractors.NAMED["toy"] = row
table.METRICS["toys"] = table.Metric("Toys", True, "", of=(table.HELD_OUT,), extractor="toy")

import json, sys
from pathlib import Path

import torch
import yaml
from fitspace import metrics
from fitspace.audit import prov, sources
from fitspace.core.errors import UserError
from fitspace.metrics.extractors import Extraction
from fitspace.plan import Models, build_plan
from fitspace.results import lineage
from fitspace.study import Study

content = yaml.safe_load(Path(sys.argv[1]).read_text())
content["analysis"] = {"factors": ["output"], "responses": ["toys"]}
try:
    Study.model_validate(content)
except ValueError as error:
    lacking = str(error)
content["toy"] = "toy.safetensors"
absent = Models(Study.model_validate(content)).absent
Path("toy.safetensors").write_bytes(b"toy")
study = Study.model_validate(content)
models = Models(study)
plan = build_plan(study, models)
run = plan.runs[0]
record = lineage.Record(
    "reference", run.reference.folder.as_posix(), run.reference.key, run.reference.material,
    "0" * 64, {}, None, None, None,
)
known = lineage.collect(plan)
known.records["reference", record.key] = record
Path("report").mkdir()
lineage.write(known, Path("report"))
known = lineage.read(Path("report"))
Path("toy.safetensors").write_bytes(b"another")
print(json.dumps({
    "lacking": lacking,
    "absent": absent,
    "pinned": models.held["toy_sha256"],
    "evaluator": run.reference.material["evaluator"]["toy"],
    "of prepare": "toy" in str(run.prepare.material),
    "lineage": known.models["toy"],
    "prov": prov.reads(known, record)[1],
    "audit": [finding.subject for finding in sources.check(study, known, [])],
    "measured": "toys" in metrics.measured(False, study.weights),
    "unmeasured": "toys" in metrics.measured(False),
    "features": list(Extraction("", study.weights).images("toy", torch.zeros(2, 8, 8, 3)).shape),
}))
"""


def test_all_that_follows_from_a_row(tmp_path):
    (tmp_path / "models").symlink_to(ROOT / "models")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(ROOT / "params/emoji.yaml")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    (tmp_path / "as_it_was").write_bytes(b"toy")
    digest = sha256(tmp_path / "as_it_was")
    assert "analysis.responses: 'toys': needs the key 'toy'" in found.pop("lacking")
    (absent,) = found.pop("absent")
    assert absent.startswith("toy: 'toy.safetensors' is not on this machine")
    assert found == {
        "pinned": digest,
        "evaluator": digest,
        "of prepare": False,
        "lineage": {"path": "toy.safetensors", "files": {"toy.safetensors": digest}},
        "prov": ["judge", "toy"],
        "audit": ["toy.safetensors/toy.safetensors"],
        "measured": True,
        "unmeasured": False,
        "features": [2, 3],
    }
