"""The RO-Crate: whole, the same every time, and accepted by the public validator."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from rocrate.rocrate import ROCrate
from validator import NOT_KNOWN, validated

from fitspace.audit import crate
from fitspace.core.errors import UserError
from fitspace.core.files import sha256
from fitspace.results import lineage as lineages


@pytest.fixture(scope="module")
def lineage(origin):
    return lineages.read(origin / "reports/two")


@pytest.fixture(scope="module")
def written(origin, lineage, tmp_path_factory):
    """A crate of the study. Do not write to it."""
    target = tmp_path_factory.mktemp("crate") / "crate"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(origin.folder)
        crate.write(Path("params/two.yaml"), lineage, Path("reports/two"), target)
    return target


@pytest.fixture
def entities(written):
    return _entities(written)


@pytest.fixture
def project(origin, tmp_path, monkeypatch):
    """The part of the project that a crate is made of, to be changed; the working folder."""
    folder = tmp_path / "project"
    for name in ("params/two.yaml", "reports/two", "workflow"):
        source, copy = origin / name, folder / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, copy)
    monkeypatch.chdir(folder)
    return folder


def _entities(folder):
    graph = json.loads((folder / "ro-crate-metadata.json").read_text())["@graph"]
    found = {entity["@id"]: entity for entity in graph}
    assert len(found) == len(graph)
    return found


def _list(value):
    return value if isinstance(value, list) else [value]


def _refs(value):
    return [item["@id"] for item in _list(value) if isinstance(item, dict)]


def _make(lineage, target=Path("crate"), study=Path("params/two.yaml")):
    return crate.write(study, lineage, Path("reports/two"), target)


def _files(folder):
    found = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in found}


def test_the_public_validator_accepts_it(written, tmp_path, monkeypatch):
    found = validated(written, tmp_path, monkeypatch)
    assert found["REQUIRED"] == set()
    assert found["RECOMMENDED"] <= NOT_KNOWN


def test_the_public_validator_refuses_a_broken_one(written, tmp_path, monkeypatch):
    broken = tmp_path / "broken"
    shutil.copytree(written, broken)
    (broken / "reports/two/report.html").unlink()
    found = _entities(broken)
    del found["./"]["license"]
    del found["#run/study"]["instrument"]
    found["./"]["conformsTo"] = found["./"]["conformsTo"][:2]
    found["workflow/Snakefile"]["hasPart"] = {"@id": "params/two.yaml"}
    found["#run/report"]["purpose of it"] = "a term that no context has"
    path = broken / "ro-crate-metadata.json"
    content = json.loads(path.read_text()) | {"@graph": list(found.values())}
    path.write_text(json.dumps(content))
    messages = "\n".join(validated(broken, tmp_path, monkeypatch)["REQUIRED"])
    for expected in (
        "does not include the Data Entity 'reports/two/report.html'",
        "must specify a license",
        "MUST have an instrument",
        "permalink of the Provenance Run Crate profile",
        "MUST refer to orchestrated tools via hasPart",
        "purpose of it",
    ):
        assert expected in messages


def test_what_is_in_it(origin, written, entities):
    files = _files(written)
    listed = set(_refs(entities["./"]["hasPart"]))
    assert listed == set(files) - {"ro-crate-metadata.json"}
    assert {
        "Snakefile", "workflow/Snakefile", "workflow/rules/train.smk", "constraints.txt",
        "profiles/default/profile.yaml", "pyproject.toml", "LICENSE", "params/two.yaml",
        "reports/two/report.html", "reports/two/report.md", "reports/two/provenance.json",
        "reports/two/design.json", "reports/two/runs.csv", "reports/two/figures/omega2.svg",
        "reports/two/gallery/mine/best.png",
    } <= listed  # fmt: skip
    for name in listed - {"README.md"}:
        assert files[name] == (origin / name).read_bytes()
        assert entities[name]["sha256"] == sha256(origin / name)
        assert entities[name]["contentSize"] == str(len(files[name]))


def test_every_stage_is_an_execution_with_its_files_settings_and_times(lineage, entities):
    for record in lineage.records.values():
        action = entities[f"#run/{record.stage}/{record.key}"]
        assert (action["startTime"], action["endTime"]) == (record.started, record.finished)
        (made,) = _refs(action["result"])
        for name, value in {f"{record.stage}.json": record.sidecar, **record.outputs}.items():
            assert entities[f"#{record.folder}/{name}"]["sha256"] == value
            assert f"#{record.folder}/{name}" in _refs(entities[made]["hasPart"])
        (tool,) = _refs(action["instrument"])
        assert entities[tool]["name"] == f"fitspace {record.stage}"
    record = next(r for r in lineage.records.values() if r.stage == "train")
    read = [entities[i] for i in _refs(entities[f"#run/train/{record.key}"]["object"])]
    told = {e["name"]: e["value"] for e in read if e["@type"] == "PropertyValue"}
    assert told["seed"] == 0 and told["train.lr"] == 0.001
    assert told["settings.output"] == record.material["settings"]["output"]


def test_the_report_leads_back_to_models_and_images(lineage, entities):
    made_by = {}
    actions = [e for e in entities.values() if e["@type"] == "CreateAction"]
    for action in actions:
        if action["@id"] != "#run/study":  # which stands for all the others
            made_by |= dict.fromkeys(_refs(action["result"]), action["@id"])
    reached, waiting = set(), ["reports/two/anova.csv"]
    while waiting:
        name = waiting.pop()
        if name in made_by and name not in reached:
            waiting += _refs(entities[made_by[name]]["object"])
        reached.add(name)
    assert {f"#{r.folder}/" for r in lineage.records.values()} <= reached
    assert {"#models/emoji-unet/", "#models/emoji-clip/", "params/two.yaml"} <= reached
    assert any(name.startswith("#source/") for name in reached)
    assert {a["@id"] for a in actions} == set(_refs(entities["./"]["mentions"]))


def test_every_reference_is_to_something_in_it(entities):
    links = {
        (entity["@id"], link)
        for entity in entities.values()
        for value in entity.values()
        for link in _refs(value)
        if link not in entities
    }
    # What rocrate says of Snakemake, and the profile itself.
    outside = ("https://doi.org/", "https://snakemake.readthedocs.io", "https://w3id.org/")
    assert [link for link in links if not link[1].startswith(outside)] == []


def test_software_is_the_environment_with_its_pins_and_hardware(lineage, entities):
    environment = lineage.environments["e1"]
    found = entities["#environment/e1"]
    facts = {entities[i]["name"]: entities[i]["value"] for i in _refs(found["additionalProperty"])}
    assert facts["git.commit"] == environment["git"]["commit"]
    assert facts["source_sha256"] == environment["source_sha256"]
    assert facts["cpu.model name"] == environment["cpu"]["model name"]
    packages = [entities[i] for i in _refs(found["softwareRequirements"])]
    assert {p["name"]: p["softwareVersion"] for p in packages} == environment["packages"]
    (language,) = _refs(entities["workflow/Snakefile"]["programmingLanguage"])
    assert entities[language]["version"] == environment["packages"]["snakemake"]


def test_other_tools_open_it(written):
    opened = ROCrate(written)
    assert opened.mainEntity.id == "workflow/Snakefile" and opened.name == "Two points"
    assert [step["name"] for step in opened.mainEntity["step"]] == [
        "prepare", "reference", "train", "sample", "evaluate", "report",
    ]  # fmt: skip


def test_twice_the_same_bytes_and_nothing_of_now(lineage, project):
    files = _make(lineage, Path("first/deep"))
    for hidden in ("workflow/.editor.swp", "reports/two/.runs.tmp", "workflow/__pycache__/a.pyc"):
        Path(hidden).parent.mkdir(exist_ok=True)
        Path(hidden).touch()
    _make(lineage, Path("second"))
    assert _files(Path("first/deep")) == _files(Path("second")) and len(files) > 30
    assert files == sorted(p for p in Path("first/deep").rglob("*") if p.is_file())
    found = _entities(Path("second"))
    finished = max(record.finished for record in lineage.records.values())
    assert found["./"]["datePublished"] == found["#run/study"]["endTime"] == finished


def test_an_empty_folder_is_filled_and_a_study_from_elsewhere_is_taken_in(lineage, project):
    Path("empty").mkdir()
    Path("params/two.yaml").rename(project.parent / "other.yaml")
    _make(lineage, Path("empty"), project.parent / "other.yaml")
    assert Path("empty/params/other.yaml").read_text().startswith("name: two")
    assert sorted(p.name for p in project.iterdir() if p.name.startswith(".")) == []


def _in_use(project):
    (project / "crate").mkdir()
    (project / "crate/mine.txt").write_text("kept")


def _a_file(project):
    (project / "crate").write_text("kept")


REFUSED = {
    "a folder in use": (_in_use, "crate", ["--crate: ", "'", "a new or an empty folder"]),
    "a file": (_a_file, "crate", ["--crate: ", "a new or an empty folder"]),
    "in the report": (None, "reports/two/crate", ["--crate: ", "lies in reports/two"]),
    "in the workflow": (None, "workflow/rules/crate", ["--crate: ", "lies in workflow"]),
    "no report": (
        lambda project: (project / "reports/two/report.html").unlink(),
        "crate",
        ["reports/two/report.html: missing"],
    ),
    "no study and no workflow": (
        lambda p: [(p / name).unlink() for name in ("params/two.yaml", "workflow/Snakefile")],
        "crate",
        ["params/two.yaml: missing", "workflow/Snakefile: missing"],
    ),
    "a broken gallery": (
        lambda project: (project / "reports/two/gallery.json").write_text("["),
        "crate",
        ["reports/two/gallery.json: not what a report is made of"],
    ),
    "images without a licence": (
        lambda project: _rewrite(project / "reports/two/gallery.json", _no_attribution),
        "crate",
        ["reports/two/gallery.json: not what a report is made of ([0].attribution: None"],
    ),
    "a gallery of words": (
        lambda project: _rewrite(project / "reports/two/gallery.json", lambda _: ["a strip"]),
        "crate",
        ["reports/two/gallery.json: not what a report is made of ([0]: 'a strip'"],
    ),
    "a design that is no study": (
        lambda project: _rewrite(project / "reports/two/design.json", lambda _: {"study": "two"}),
        "crate",
        ["reports/two/design.json: not what a report is made of (study: 'two'"],
    ),
}


def _rewrite(path: Path, change) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def _no_attribution(strips: list) -> list:
    return [strips[0] | {"attribution": None}, *strips[1:]]


@pytest.mark.parametrize("case", REFUSED)
def test_refused_and_nothing_is_touched(lineage, project, case):
    spoil, target, expected = REFUSED[case]
    if spoil:
        spoil(project)
    before = _files(project)
    with pytest.raises(UserError) as error:
        _make(lineage, Path(target))
    text = "\n".join(error.value.problems)
    assert all(part in text for part in expected)
    assert _files(project) == before and [*project.glob(".*")] == []


def test_a_crate_that_breaks_off_leaves_nothing(lineage, project, monkeypatch):
    def full(self, path):
        (Path(path) / "ro-crate-metadata.json").write_text("{")
        raise OSError("No space left on device")

    monkeypatch.setattr("rocrate.model.Metadata.write", full)
    before = _files(project)
    with pytest.raises(OSError, match="No space left"):
        _make(lineage)
    assert _files(project) == before and not Path("crate").exists()


def test_a_lineage_without_times_is_refused(lineage, project):
    records = {
        link: dataclasses.replace(record, started=None, finished=None)
        for link, record in lineage.records.items()
    }
    with pytest.raises(UserError, match="no stage that says when it finished"):
        _make(dataclasses.replace(lineage, records=records))


@pytest.mark.parametrize(
    "attribution, strip, page",
    [
        ("All emojis designed by OpenMoji. License: CC BY-SA 4.0", crate.CC_BY_SA, crate.CC_BY_SA),
        ("", "Not stated", None),
        ("By a friend", "By a friend", "By a friend"),
    ],
    ids=["OpenMoji", "none", "another"],
)
def test_images_keep_the_licence_that_they_ask_for(lineage, project, attribution, strip, page):
    path = Path("reports/two/gallery.json")
    strips = [entry | {"attribution": attribution} for entry in json.loads(path.read_text())]
    path.write_text(json.dumps(strips))
    _make(lineage)
    found = _entities(Path("crate"))

    def licences(name):
        stated = _list(found[name]["license"])
        return [item["@id"] if isinstance(item, dict) else item for item in stated]

    (stated,) = licences("reports/two/gallery/mine/best.png")
    assert stated.startswith(strip)
    assert licences("reports/two/report.html") == [crate.APACHE, *([page] if page else [])]
    assert _refs(found["./"]["license"]) == [crate.APACHE]


def test_names_with_anything_in_them(origin, project, tmp_path):
    text = (origin / "reports/two/provenance.json").read_text()
    changed = text.replace("mine~", "größe #1 50%~")
    Path("reports/two/provenance.json").write_text(changed)
    Path("reports/two/gallery/mine").rename("reports/two/gallery/größe #1 50%")
    gallery = Path("reports/two/gallery.json")
    gallery.write_text(gallery.read_text().replace("gallery/mine/", "gallery/größe #1 50%/"))
    lineage = lineages.read(Path("reports/two"))
    _make(lineage)
    found = _entities(Path("crate"))
    assert Path("crate/reports/two/gallery/größe #1 50%/best.png").is_file()
    opened = ROCrate(Path("crate"))
    assert all(Path(e.source).is_file() for e in opened.data_entities)
    names = {e["name"] for e in found.values() if e["@type"] == "Dataset" and "name" in e}
    assert {record.folder for record in lineage.records.values()} <= names
    assert all(name.isascii() and " " not in name for name in found)


def test_two_environments_and_an_unknown_one_are_three_tools(lineage, project):
    runs = [record for record in lineage.records.values() if record.stage == "evaluate"]
    changed = {
        runs[1].key: dataclasses.replace(runs[1], environment="e2"),
        runs[2].key: dataclasses.replace(runs[2], environment=None),
    }
    elsewhere = lineage.environments["e1"] | {"device": "NVIDIA H200"}
    lineage = dataclasses.replace(
        lineage,
        environments=lineage.environments | {"e2": elsewhere},
        records={link: changed.get(r.key, r) for link, r in lineage.records.items()},
    )
    _make(lineage)
    found = _entities(Path("crate"))
    tools = [_refs(found[f"#run/evaluate/{r.key}"]["instrument"])[0] for r in runs[:3]]
    assert tools == [f"#environment/{name}/evaluate" for name in ("e1", "e2", "unknown")]
    assert set(_refs(found["#step/evaluate"]["workExample"])) == set(tools)
    assert set(tools) <= set(_refs(found["workflow/Snakefile"]["hasPart"]))
