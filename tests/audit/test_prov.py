"""W3C PROV: a document that other tools read, whole from a number to its sources."""

import dataclasses
import warnings
from datetime import datetime

import pytest
from prov.model import (
    ProvActivity,
    ProvAgent,
    ProvAssociation,
    ProvDerivation,
    ProvDocument,
    ProvEntity,
    ProvGeneration,
    ProvMembership,
    ProvUsage,
)

from fitspace.audit import prov
from fitspace.results import lineage as lineages

VALUE = {
    "table": "anova.csv",
    "row": 1,
    "column": "p",
    "text": "0.25",
    "cells": {"source": "output", "p": "0.25", "note": ""},
}


@pytest.fixture(scope="module")
def lineage(origin):
    return lineages.read(origin / "reports/two")


@pytest.fixture(scope="module")
def document(lineage):
    """Of the whole study, with a number of it."""
    return prov.document(lineage, _evaluations(lineage), VALUE)


def _evaluations(lineage):
    return [record for record in lineage.records.values() if record.stage == "evaluate"]


def _pairs(document, kind):
    """What the relations of a kind hold between, as qualified names."""
    return [tuple(str(value) for value in r.args[:2]) for r in document.get_records(kind)]


def _facts(record):
    return {str(name): value for name, value in record.extra_attributes}


def _reached(document, start, *kinds):
    """Everything that relations of some kinds lead to."""
    found, waiting = set(), [start]
    edges = [pair for kind in kinds for pair in _pairs(document, kind)]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += [after for before, after in edges if before == name]
    return found


@pytest.mark.parametrize("form", ["json", "provn"])
def test_another_reader_reads_the_same_document(document, form):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = prov.text(document) if form == "json" else document.get_provn()
        assert ProvDocument.deserialize(content=text, format=form) == document
        document.unified()  # raises where PROV-CONSTRAINTS forbid to merge


def test_the_text_depends_on_the_lineage_alone(lineage, document):
    every = list(lineage.records.values())
    assert prov.text(prov.document(lineage, reversed(every), VALUE)) == prov.text(document)


def test_every_file_of_a_stage_has_its_hash_and_comes_from_that_stage_alone(lineage, document):
    made = _pairs(document, ProvGeneration)
    assert len({entity for entity, _ in made}) == len(made)
    entities = {str(e.identifier): e for e in document.get_records(ProvEntity)}
    members = _pairs(document, ProvMembership)
    for record in lineage.records.values():
        folder = f"fitspace:{record.folder}"
        stage = f"fitspace:{record.stage}/{record.key}"
        assert (folder, stage) in made
        for file, value in {f"{record.stage}.json": record.sidecar, **record.outputs}.items():
            assert _facts(entities[f"{folder}/{file}"])["fitspace:sha256"] == value
            assert (f"{folder}/{file}", stage) in made and (folder, f"{folder}/{file}") in members


def test_the_number_leads_to_metrics_samples_adapter_task_models_and_images(lineage, document):
    for kinds in ((ProvDerivation,), (ProvGeneration, ProvUsage)):
        reached = _reached(document, "fitspace:reports/two/anova.csv#1/p", *kinds)
        assert {f"fitspace:{record.folder}" for record in lineage.records.values()} <= reached
        assert {"fitspace:models/emoji-unet", "fitspace:models/emoji-clip"} <= reached
        assert {name.partition("/")[0] for name in reached} >= {
            "fitspace:source",
            "fitspace:extractor",
        }
    (number,) = document.get_record("fitspace:reports/two/anova.csv#1/p")
    (row,) = document.get_record("fitspace:reports/two/anova.csv#1")
    assert number.value == {"0.25"}
    assert _facts(row)["fitspace:source"] == "output" and "fitspace:note" not in _facts(row)


def test_a_model_is_its_files(lineage, document):
    for model in lineage.models.values():
        for file, value in model["files"].items():
            (entity,) = document.get_record(f"fitspace:{model['path']}/{file}")
            assert _facts(entity)["fitspace:sha256"] == value


def test_only_what_is_behind_is_there(lineage):
    run = _evaluations(lineage)[0]
    document = prov.document(lineage, [run])
    expected = {f"fitspace:{r.stage}/{r.key}" for r in lineage.behind(run)}
    assert {str(a.identifier) for a in document.get_records(ProvActivity)} == expected
    assert 4 <= len(expected) < len(lineage.records)


def test_times_are_the_sidecars_and_nothing_is_read_before_it_is_made(lineage, document):
    activities = {str(a.identifier): a for a in document.get_records(ProvActivity)}
    for record in lineage.records.values():
        activity = activities[f"fitspace:{record.stage}/{record.key}"]
        assert activity.get_startTime() == datetime.fromisoformat(record.started)
        assert activity.get_endTime() == datetime.fromisoformat(record.finished)
    made = dict(_pairs(document, ProvGeneration))
    used = [(a, made[e]) for a, e in _pairs(document, ProvUsage) if e in made]
    for reader, maker in used:
        if (start := activities[reader].get_startTime()) is not None:
            assert activities[maker].get_endTime() <= start
    assert len(used) > len(lineage.records)


def test_settings_seed_software_and_hardware(lineage, document):
    record = next(r for r in lineage.records.values() if r.stage == "train")
    facts = _facts(document.get_record(f"fitspace:train/{record.key}")[0])
    assert facts["fitspace:settings.output"] == record.material["settings"]["output"]
    assert facts["fitspace:train.lr"] == 0.001 and facts["fitspace:seed"] == 0
    assert "fitspace:task" not in facts and "fitspace:train.ema" not in facts
    (agent,) = document.get_records(ProvAgent)
    environment = lineage.environments[record.environment]
    facts = _facts(agent)
    assert facts["fitspace:git.commit"] == environment["git"]["commit"]
    assert facts["fitspace:source_sha256"] == environment["source_sha256"]
    assert facts["fitspace:packages.torch"] == environment["packages"]["torch"]
    assert facts["fitspace:cpu.model_name"] == environment["cpu"]["model name"]
    associated = _pairs(document, ProvAssociation)
    assert len(associated) == len(lineage.records)
    assert {a for _, a in associated} == {str(agent.identifier)}


def test_two_environments_are_two_agents_and_an_unknown_one_is_none(lineage):
    first, second, third = _evaluations(lineage)[:3]
    elsewhere = lineage.environments["e1"] | {"device": "NVIDIA H200"}
    changed = {
        second.key: dataclasses.replace(second, environment="e2"),
        third.key: dataclasses.replace(third, environment=None, started=None, finished=None),
    }
    lineage = dataclasses.replace(
        lineage,
        environments=lineage.environments | {"e2": elsewhere},
        records={link: changed.get(r.key, r) for link, r in lineage.records.items()},
    )
    document = prov.document(lineage, [first, second, third])
    devices = {str(a.identifier): _facts(a) for a in document.get_records(ProvAgent)}
    assert len(devices) == 2
    of = dict(_pairs(document, ProvAssociation))
    assert devices[of[f"fitspace:evaluate/{first.key}"]]["fitspace:device"] == "cpu"
    assert devices[of[f"fitspace:evaluate/{second.key}"]]["fitspace:device"] == "NVIDIA H200"
    assert f"fitspace:evaluate/{third.key}" not in of
    (unknown,) = document.get_record(f"fitspace:evaluate/{third.key}")
    assert unknown.get_startTime() is None and unknown.get_endTime() is None


@pytest.mark.parametrize("name", ["größe-猫", "a b, (c)", "50%", "-x.", "a=b'c\"d"])
def test_any_name_of_a_task_gives_names_that_can_be_written(origin, tmp_path, name):
    text = (origin / "reports/two/provenance.json").read_text()
    written = name.replace('"', '\\"')
    (tmp_path / "provenance.json").write_text(text.replace("mine~", f"{written}~"))
    lineage = lineages.read(tmp_path)
    document = prov.document(lineage, _evaluations(lineage)[:1], VALUE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for form in ("json", "provn"):
            text = document.serialize(format=form)
            assert ProvDocument.deserialize(content=text, format=form) == document
    labels = [
        label for e in document.get_records(ProvEntity) for label in e.get_attribute("prov:label")
    ]
    assert any(f"/{name}~" in label for label in labels)
