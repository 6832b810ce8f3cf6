"""Study files: every problem at once, each with key, value and what is allowed."""

import copy
import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fitspace.cli import main
from fitspace.core.errors import UserError
from fitspace.plan import load_study
from fitspace.study import Study
from fitspace.study.schema import schema

ROOT = Path(__file__).parents[2]
GOOD = yaml.safe_load((ROOT / "tests/data/positions.yaml").read_text())


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Write a changed copy of the default study; returns the problems found in it."""
    monkeypatch.chdir(ROOT)

    def problems(change):
        content = copy.deepcopy(GOOD)
        change(content)
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(content))
        try:
            load_study(path)
        except UserError as error:
            return [p.removeprefix(f"{path}: ") for p in error.problems]
        return []

    return problems


def _set(path, value):
    def change(content):
        *parents, last = path
        for key in parents:
            content = content[key]
        content[last] = value

    return change


def _all(*changes):
    return lambda content: [change(content) for change in changes]


def _delete(key):
    return lambda content: content.pop(key)


ADAPTER = ("arms", 0)
CASES = {
    "unknown key": (_set(["trian"], 1), ["trian: unknown key (did you mean 'train'?)"]),
    "unknown nested key": (_set(["train", "step"], 1), ["train.step: unknown key", "'steps'"]),
    "missing key": (_delete("base"), ["base: missing"]),
    "text for a whole number": (
        _set(["train", "steps"], "100"),
        ["train.steps: '100'", "write 100)"],
    ),
    "text for a number": (_set(["train", "lr"], "1e-3"), ["train.lr: '1e-3'", "write 0.001"]),
    "wrong type": (_set(["train", "steps"], 1.5), ["train.steps: 1.5"]),
    "out of range": (_set(["sample", "guidance"], 0.5), ["sample.guidance: 0.5", "1"]),
    "unknown style": (_set(["tasks", 0, "style"], "oil"), ["tasks[0].style: 'oil'", "blueprint"]),
    "style without openmoji": (_set(["tasks", 0, "source"], "folder"), ["tasks[0]", "'path'"]),
    "negative seed": (_set(["seeds"], [0, -1]), ["seeds[1]: -1"]),
    "seed twice": (_set(["seeds"], [3, 3]), ["seeds: 3 stands more than once"]),
    "unknown method": (_set(["arms", 1, "method"], "loar"), ["arms[1].method: 'loar'", "full"]),
    "impossible level": (
        _set([*ADAPTER, "factors", "input"], ["CA_out", "CA_uot"]),
        ["arms[0].factors.input[1]: 'CA_uot'", "CA_out"],
    ),
    "level twice": (
        _set([*ADAPTER, "factors", "output"], ["FFN_in", "FFN_in"]),
        ["arms[0].factors.output[1]: 'FFN_in' stands more than once"],
    ),
    "no level": (_set([*ADAPTER, "factors", "output"], []), ["arms[0].factors.output: []"]),
    "illegal cell": (
        _set([*ADAPTER, "illegal_cells"], "error"),
        ["arms[0].factors (input=SA_out, output=SA_in)", "precedes", "allowed outputs"],
    ),
    "setting of another family": (
        _set([*ADAPTER, "settings", "class_embedding"], True),
        ["arms[0].factors: every cell is illegal", "class_embedding: has no meaning", "'unet'"],
    ),
    "setting and factor": (
        _set([*ADAPTER, "settings", "input"], "CA_in"),
        ["arms[0].settings.input: is also a factor"],
    ),
    "unknown setting": (
        _set([*ADAPTER, "settings", "widht"], 3),
        ["arms[0].settings.widht: unknown; allowed: activation"],
    ),
    "wrong setting": (
        _set([*ADAPTER, "settings", "width"], 0),
        ["arms[0].settings.width: 0", "greater than or equal to 1"],
    ),
    "nested setting": (_set([*ADAPTER, "settings", "width"], [3]), ["[3] is not a single value"]),
    "missing setting": (_set([*ADAPTER, "factors"], {}), ["settings.input: missing"]),
    "training factor": (
        _set([*ADAPTER, "factors", "train.lr"], [1.0, -1.0]),
        ["arms[0].factors.train.lr[1]: -1.0"],
    ),
    "unknown metric": (
        _set(["analysis"], {"factors": ["input"], "responses": ["fad"]}),
        ["analysis.responses: 'fad' is no metric", "fd_effnet"],
    ),
    "FID without its weights": (
        _set(["analysis"], {"factors": ["input"], "responses": ["fid"]}),
        ["analysis.responses: 'fid': needs the key 'inception'"],
    ),
    "pickled weights of Inception-v3": (
        _set(["inception"], "weights-inception-2015-12-05-6726825d.pth"),
        ["inception: 'weights-", "allowed: a .safetensors file"],
    ),
    "unknown factor": (
        _set(["analysis", "factors"], ["inptu"]),
        ["analysis.factors[0]: 'inptu'", "input"],
    ),
    "missing base": (_set(["base"], "models/none"), ["base: ", "models/none"]),
    "a typing error is no hub id": (
        _set(["base"], "models/emoji-nuet"),
        ["'models/emoji-nuet' is no folder"],
    ),
    "an endless name": (_set(["base"], "x" * 399), ["is no folder"]),
    "missing judge": (_set(["judge"], "models/none"), ["judge: 'models/none'"]),
    "missing images": (
        _set(["tasks", 0], {"name": "a", "source": "folder", "path": "nowhere"}),
        ["tasks[0]: ", "nowhere"],
    ),
    "hub task without a data set": (
        _set(["tasks", 0], {"name": "a", "source": "hub"}),
        ["tasks[0]: source: hub needs the key 'dataset'"],
    ),
    "no hub id": (
        _set(["tasks", 0], {"name": "a", "source": "hub", "dataset": "images"}),
        ["tasks[0].dataset: 'images'"],
    ),
    "folder outside the data set": (
        _set(["tasks", 0], {"name": "a", "source": "hub", "dataset": "a/b", "folder": "../c"}),
        ["tasks[0]: folder: '../c'; allowed: a plain path inside the data set"],
    ),
    "folder of no data set": (
        _set(["tasks", 0, "folder"], "a"),
        ["tasks[0]: source: openmoji does not take the key 'folder'"],
    ),
    "judge that is no hub id": (_set(["judge"], "hf-hub:x"), ["judge: 'hf-hub:x'", "org/name"]),
    "unknown base on the hub": (
        _set(["base"], "org/name"),
        ["base: 'org/name' is not on this machine", "known without a copy: CompVis/"],
    ),
    "budget and width": (
        _set([*ADAPTER, "match_trainable"], 10_000),
        ["arms[0].settings.width: match_trainable sets it; keep one of the two"],
    ),
    "budget and width as a factor": (
        _set(
            ["arms", 1],
            {"method": "lora", "match_trainable": 10_000, "factors": {"rank": [1, 2]}},
        ),
        ["arms[1].factors.rank: match_trainable sets it"],
    ),
    "budget of a method without a width": (
        _set(["arms", 1, "match_trainable"], 10_000),
        ["arms[1].match_trainable: method 'full' has no width; allowed with: adapter, "],
    ),
    "budget that cannot be met": (
        _set(
            ["arms", 1],
            {
                "method": "adapter",
                "match_trainable": 1,
                "settings": {"input": "CA_out"},
                "factors": {"output": ["FFN_in"]},
            },
        ),
        ["arms[1].factors (output=FFN_in): match_trainable: 1: the nearest are ", " (width 1);"],
    ),
    "budget of nothing": (_set(["arms", 1, "match_trainable"], 0), ["arms[1].match_trainable: 0"]),
    "key named like a type": (_set(["int"], 1), ["int: unknown key"]),
    "key with brackets": (_set(["train", "a[b]"], 1), ["train.a[b]: unknown key"]),
    "infinite": (_set(["train", "grad_clip"], float("inf")), ["train.grad_clip: inf"]),
    "too few prompts": (_set(["sample", "prompts"], 3), ["sample.prompts: 3", "4"]),
    "training of what trains nothing": (
        _set(["arms", 2, "train"], {"lr": 0.1}),
        ["arms[2].train: method 'none' trains nothing"],
    ),
    "setting and factor of training": (
        _set(["arms", 1], {"method": "full", "train": {"lr": 0.1}, "factors": {"train.lr": [0.1]}}),
        ["arms[1].train.lr: is also a factor"],
    ),
    "warm-up longer than training": (_set(["train", "warmup_steps"], 999), ["warmup_steps: 999"]),
    "margin of nothing": (
        _set(["analysis", "margins"], {"recall": 0.1}),
        ["analysis.margins: 'recall' is not among analysis.responses"],
    ),
    "margin of nothing less": (
        _set(["analysis", "margins"], {"clip_i": 0}),
        ["analysis.margins.clip_i: 0", "a number above 0"],
    ),
    "a share without a base": (
        _all(_set(["analysis", "margins"], {"clip_i": "10%"}), _set(["arms", 2, "method"], "ia3")),
        ["analysis.margins.clip_i: a share", "an arm of method none"],
    ),
    "a share beyond all": (
        _set(["analysis", "margins"], {"clip_i": "150%"}),
        ["analysis.margins.clip_i: '150%'", "as '10%'"],
    ),
    "a contrast of two factors": (
        _set(["analysis", "contrasts"], {"a": {"input": {"x": 1, "y": -1}, "output": {}}}),
        ["analysis.contrasts.a: 2 keys; needed: one"],
    ),
    "a contrast of one level": (
        _set(["analysis", "contrasts"], {"a": {"input": {"CA_in": 1, "SA_in": 0}}}),
        ["analysis.contrasts.a: input: needed: at least two levels"],
    ),
    "a contrast that sums to something": (
        _set(["analysis", "contrasts"], {"a": {"input": {"CA_in": 1, "SA_in": -0.5}}}),
        ["analysis.contrasts.a: input: the coefficients sum to 0.5; needed: 0"],
    ),
    "a contrast with no number": (
        _set(["analysis", "contrasts"], {"a": {"input": {"CA_in": "1/0", "SA_in": -1}}}),
        ["analysis.contrasts.a.input.CA_in: '1/0'"],
    ),
    "a contrast of what is not analysed": (
        _set(["analysis", "contrasts"], {"a": {"input:width": {"x:1": 1, "y:1": -1}}}),
        ["analysis.contrasts: 'a': 'width' is not among analysis.factors"],
    ),
    "a choice of what is not analysed": (
        _set(["analysis", "choose"], ["width"]),
        ["analysis.choose: 'width' is not among analysis.factors"],
    ),
    "a choice of everything": (
        _set(["analysis"], {"factors": ["arm"], "choose": ["arm"], "responses": ["psnr"]}),
        ["analysis.choose: names every factor"],
    ),
    "a scale of what is not analysed": (
        _set(["analysis", "scales"], {"width": "log2"}),
        ["analysis.scales: 'width' is not among analysis.factors"],
    ),
    "margin against nobody": (
        _set(["arms", 1, "method"], "bitfit"),
        ["analysis.margins", "one arm of method full", "0 of them"],
    ),
    "transform of nothing": (
        _set(["analysis", "transform"], {"recall": "logit"}),
        ["analysis.transform: 'recall'"],
    ),
    "name of the report's": (_set(["arms", 1, "name"], "best"), ["arms[1].name: 'best'"]),
    "path with a newline": (_set(["base"], "models\nx"), ["base: 'models\\nx'"]),
}


@pytest.mark.parametrize("change, expected", CASES.values(), ids=CASES)
def test_problem_names_key_value_and_what_is_allowed(study, change, expected):
    problems = study(change)
    assert problems
    for text in expected:
        assert any(text in problem for problem in problems), problems


def test_good_study_has_no_problem(study):
    assert study(lambda content: None) == []


def test_all_problems_at_once(study, capsys):
    def change(content):
        content["trian"] = 1
        content["train"]["lr"] = "x"
        content["arms"][0]["factors"]["input"] = ["nowhere"]
        content["arms"][1]["method"] = "loar"

    problems = "\n".join(study(change))
    for key in ("trian", "train.lr", "arms[0].factors.input[0]", "arms[1].method"):
        assert key in problems


FILES = {
    "no file": (None, "no such file"),
    "empty": (b"", "holds nothing"),
    "a list": (b"- 1\n", "holds a list"),
    "broken": (b"a: [1\n", "not valid YAML"),
    "a key twice": (b"name: a\nname: b\n", "the key 'name' stands twice"),
    "not text": (b"\xff\xfe\x00", "cannot be read as UTF-8"),
    "a Python object": (b"name: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
}


@pytest.mark.parametrize("content, expected", FILES.values(), ids=FILES)
def test_unreadable_file(tmp_path, capsys, content, expected):
    path = tmp_path / "study.yaml"
    if content is not None:
        path.write_bytes(content)
    assert main(["check", str(path)]) == 2
    error = capsys.readouterr().err
    assert expected in error and str(path) in error and "Traceback" not in error


def test_a_number_too_long_to_print_is_still_a_message(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(GOOD | {"seeds": "SEED"}).replace("SEED", f"[0x{'f' * 6000}]"))
    assert main(["check", str(path)]) == 2
    assert "seeds[0]" in capsys.readouterr().err


def test_check_accepts_every_shipped_study(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    for path in sorted((ROOT / "params").glob("*.yaml")):
        assert main(["check", str(path)]) == 0, capsys.readouterr().err


def test_schema_is_the_generated_one():
    committed = json.loads((ROOT / "workflow/schemas/study.schema.json").read_text())
    assert committed == schema(), "run: python -m fitspace.study.schema > workflow/schemas/..."


def test_schema_accepts_and_refuses_what_the_models_do():
    import jsonschema

    validator = jsonschema.Draft202012Validator(schema())
    assert validator.is_valid(GOOD)
    assert not validator.is_valid(GOOD | {"trian": 1})


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(key=st.sampled_from(list(GOOD)) | st.text(max_size=12), value=_values)
def test_any_value_anywhere_gives_messages_not_tracebacks(study, key, value):
    problems = study(_set([key], value))
    assert all(isinstance(p, str) and p for p in problems)


def test_coefficients_of_a_contrast_may_be_ratios():
    asked = {"CA_in": 1, "CA_out": "-1/3", "SA_in": "-1 / 3", "SA_out": "-2/6"}
    content = copy.deepcopy(GOOD)
    content["analysis"]["contrasts"] = {"a": {"input": asked}}
    found = Study.model_validate(content).analysis.contrasts["a"]["input"]
    assert list(found.values()) == [1, -1 / 3, -1 / 3, -1 / 3]
    jsonschema.validate(content, schema())  # as an editor does
