"""docs/methods.md says what the code does."""

import re
from pathlib import Path

import pytest
import yaml

from fitspace import methods
from fitspace.methods import tuners
from fitspace.methods.attachment import PartialSettings
from fitspace.methods.peft import Tuned
from fitspace.plan.counting import count

PAGE = (Path(__file__).parents[2] / "docs/methods.md").read_text(encoding="utf-8")


def _rows(header: str) -> list[list[str]]:
    """The cells of the table whose header starts so, without markup."""
    lines = PAGE[PAGE.index(header) :].splitlines()[2:]
    table = lines[: next(i for i, line in enumerate(lines) if not line.startswith("|"))]
    return [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in table]


def test_every_method_is_on_the_page():
    assert [row[0] for row in _rows("| method |")] == list(methods.METHODS)


def shared(setting, field):
    """Whether a setting is one that methods have in common, described above the table."""
    common = PartialSettings.model_fields.get(setting)
    return common is not None and common.description == field.description


def test_every_setting_is_on_the_page_with_its_default():
    listed = {(row[0], row[1]): row[2] for row in _rows("| method | setting |")}
    actual = {
        (name, setting): "required" if field.is_required() else yaml.safe_dump(field.default)
        for name, module in methods.METHODS.items()
        for setting, field in module.Settings.model_fields.items()
        if not shared(setting, field) and (name != "peft" or setting in Tuned.model_fields)
    }
    assert listed == {key: text.removesuffix("...\n").strip() for key, text in actual.items()}


def test_every_tuner_of_peft_is_on_the_page_with_its_settings():
    listed = {row[0]: row[1].replace("`", "") for row in _rows("| peft_type | settings |")}
    assert listed == {n: ", ".join(tuners.fields(n)) or "none" for n in tuners.TUNERS}
    refused = " ".join(row[0] for row in _rows("| peft_type | why |"))
    assert all(name in refused for name in tuners.REFUSED)


@pytest.mark.parametrize("row", _rows("| base |"), ids=lambda row: "-".join(row[:3]))
def test_counts_on_the_page(row):
    base, method, settings, trainable, published = row
    given = dict(pair.split("=") for pair in settings.split())
    found = count(base, method, {k: yaml.safe_load(v) for k, v in given.items()})
    assert found["trainable"] == int(trainable.replace(",", ""))
    if millions := re.fullmatch(r"([\d.]+) M", published):
        assert found["trainable"] / 1e6 == pytest.approx(float(millions[1]), rel=0.015)
    elif published:
        assert found["percent"] == pytest.approx(float(published.rstrip("%")), abs=0.006)
