"""Tables as programs write them: read, or refused with the true reason."""

import gzip
import json

import pytest

from fitspace.cli import main
from fitspace.core.errors import UserError
from fitspace.stats import anova_of_file, rows_for_json

ROWS = "y{0}a\n1{1}5{0}u\n2{1}5{0}v\n3{0}u\n1{1}0{0}v\n"
PLAIN = ROWS.format(",", ".").encode()
# File -> its bytes, and a note that it gives.
READ = {
    "points": (PLAIN, None),
    "semicolons and decimal commas": (ROWS.format(";", ",").encode(), "points in 'y'"),
    "tabs and decimal commas": (ROWS.format("\t", ",").encode(), "points in 'y'"),
    "the separator in the first line": (
        ("sep=;\n" + ROWS.format(";", ",")).replace("\n", "\r\n").encode(), "points in 'y'",
    ),
    "UTF-16": (PLAIN.decode().encode("utf-16"), None),
    "UTF-8 with its mark": (b"\xef\xbb\xbf" + PLAIN, None),
    "gzipped": (gzip.compress(PLAIN), None),
    "a line break in the header": (PLAIN.replace(b"a\n", b'a,"b\nc"\n', 1).replace(
        b"u\n", b"u,1\n").replace(b"v\n", b"v,1\n"), None),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_read(name, tmp_path):
    content, note = READ[name]
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    got = anova_of_file(path, formula="y ~ a")
    assert got["source"].tolist() == ["a", "residual"]
    assert got["ss"].tolist() == pytest.approx([0.25, 2.25])
    notes = got.attrs["notes"]
    assert (note in notes[0]) if note else notes == []


REFUSED = {
    "UTF-16 without its mark": (PLAIN.decode().encode("utf-16-le"), "NUL characters (UTF-16"),
    "half a gzip": (gzip.compress(PLAIN)[:-9], "ended before"),
    "Latin-1": ("y,a\n1,ü\n".encode("latin-1"), "can't decode byte 0xfc"),
    "an open quote in the header": (b'"y,a\n1,u\n', "a quote in its header is never closed"),
    "an open quote in a row": (b'y,a\n1,"u\n2,v\n', "not a readable CSV"),
    "only blank lines": (b"\n\n\n", "empty"),
    "a mark and no more": (b"\xef\xbb\xbf", "empty"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, tmp_path):
    content, why = REFUSED[name]
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        anova_of_file(path, formula="y ~ a")
    assert str(path) in str(error.value) and why in str(error.value)


NUMBERS = "y,x,seed,a\n1,1,0,u\n2.5,2,1,v\n3,3,2,u\n4.5,4,0,v\n5,{},1,u\n6.5,6,2,v\n"
# Options of the analysis -> degrees of freedom of its terms, and what its notes say.
FORMULAS = {
    "a column of numbers is a slope": ("5", {"formula": "y ~ x"}, {"x": 1}, "C(x) makes it"),
    "or a factor": ("5", {"formula": "y ~ C(x)"}, {"x": 5}, "no degrees of freedom"),
    "a seed is a name": ("5", {"formula": "y ~ seed"}, {"seed": 2}, None),
    "what is named a factor is one": ("5", {"response": "y", "factors": ["a"], "block": "seed"},
                                      {"seed": 2, "a": 1}, None),
    "NA is no number": ("NA", {"formula": "y ~ x"}, {"x": 1}, "cell(s) such as NA"),
    "a number with text": ("5?", {"formula": "y ~ x"}, {"x": 5}, "because 1 of 6"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMULAS)
def test_numbers(name, tmp_path):
    cell, options, df, note = FORMULAS[name]
    path = tmp_path / "table.csv"
    path.write_text(NUMBERS.format(cell))
    got = anova_of_file(path, **options)
    assert dict(zip(got["source"], got["df"], strict=True)).items() >= df.items()
    assert note is None or any(note in text for text in got.attrs["notes"])


LEVELS = {
    "missing in another program": (["NA", "v"], "has the level(s) 'NA'; if that means no value"),
    "a point": ([".", "v"], "has the level(s) '.'"),
    "case": (["Lora", "lora"], "'Lora' and 'lora' differ only in case"),
    "a no-break space": (["b c", "b\u00a0c"], r"'b c' and 'b\xa0c' differ only"),
    "forms of one character": (["caf\u00e9", "cafe\u0301"], r"'caf\xe9' and 'cafe\u0301' differ"),
}


@pytest.mark.parametrize("name", LEVELS)
def test_levels_that_look_alike_or_missing_are_named(name, tmp_path):
    levels, note = LEVELS[name]
    path = tmp_path / "table.csv"
    rows = [f"{value},{level}" for value, level in zip((1, 2, 4, 3), levels * 2, strict=True)]
    path.write_text("\n".join(["y,a", *rows]), encoding="utf-8")
    got = anova_of_file(path, formula="y ~ a")
    assert got["df"].tolist() == [1, 2]
    assert note in got.attrs["notes"][0]


@pytest.mark.parametrize("name", ["residual", "a:b"])
def test_names_that_a_table_of_tests_cannot_tell_apart_are_refused(name, tmp_path, capsys):
    path = tmp_path / "table.csv"
    path.write_text(f"y,{name}\n1,u\n2,v\n3,u\n")
    assert main(["anova", str(path), "--response", "y", "--factors", name]) == 2
    assert f"column {name!r}: a table of tests would mistake it" in capsys.readouterr().err


# Responses by level -> what a reader is told, whatever the last digits are.
NO_TEST = {
    "differences are rounding": ({"a": [0.1 + 0.2] * 2, "b": [0.3] * 2, "c": [0.3] * 2},
                                 "no variation"),
    "constant within cells": ({"a": [1.0] * 3, "b": [2.5] * 3}, "fits the response exactly"),
    "constant but for rounding": ({"a": [1000.1, 1000.1 + 1e-13], "b": [1000.3] * 2},
                                  "fits the response exactly"),
    "one run a level": ({"a": [1.0], "b": [2.0]}, "no degrees of freedom are left"),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_TEST)
def test_what_cannot_be_tested_has_no_f(name, tmp_path, capsys):
    groups, note = NO_TEST[name]
    path = tmp_path / "table.csv"
    rows = [f"{value!r},{level}" for level, values in groups.items() for value in values]
    path.write_text("\n".join(["y,a", *rows]))
    for robust in ([], ["--robust", "hc0"], ["--robust", "welch"], ["--robust", "welch-james"]):
        assert main(["anova", str(path), "--formula", "y ~ a", "--json", *robust]) == 0
        shown = capsys.readouterr()
        assert all(row["F"] is None and row["p"] is None for row in json.loads(shown.out))
        assert "inf" not in shown.out
        assert not robust or shown.err
    assert note in anova_of_file(path, formula="y ~ a").attrs["notes"][0]
    assert rows_for_json(anova_of_file(path, formula="y ~ a"))[0]["F"] is None
