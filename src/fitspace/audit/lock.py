"""The files that dvc.lock records."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field

from fitspace.audit.findings import Anew, Finding
from fitspace.core.errors import UserError
from fitspace.core.files import parse_json, write_bytes
from fitspace.core.reading import checked, read_yaml

LOCK = Path("dvc.lock")
LISTINGS = Path(".dvc/listings")  # in git: the files of each recorded folder


class _Out(BaseModel):
    path: str
    md5: Annotated[str, Field(pattern=r"^[0-9a-f]{32}(\.dir)?$")]


class _Stage(BaseModel):
    outs: list[_Out] = []


class _Content(BaseModel):
    stages: dict[str, _Stage]


class Lock:
    """The outputs in dvc.lock; a listing, in DVC's cache or in git, names a folder's files.

    Raises UserError if dvc.lock cannot be read.
    """

    def __init__(self, path: Path = LOCK):
        self.outs: dict[str, str] = {}
        if not path.exists():
            return
        content = checked(read_yaml(path, "a dvc.lock"), _Content, path, "a dvc.lock")
        for stage in content.stages.values():
            self.outs |= {out.path: out.md5 for out in stage.outs}

    def md5(self, name: str) -> str | None:
        """The recorded MD5 (hex) of a file; None if unknown."""
        if name in self.outs:
            return self.outs[name]
        for out, md5 in self.outs.items():
            if name.startswith(f"{out}/") and md5.endswith(".dir"):
                return (self.listing(out) or {}).get(name.removeprefix(f"{out}/"))
        return None

    def report(self, folder: Path, anew: Anew) -> list[Finding]:
        """A report's files that are not as recorded, and results that cannot be compared.

        Results cannot be compared if their listing is neither in the cache nor in git. If all
        results of a folder were made anew, there is nothing to compare.
        """
        findings = []
        kind, recorded_what = ("anew", " of another making") if anew.recorded else ("changed", "")
        for path in sorted(folder.rglob("*")):
            recorded = self.md5(path.as_posix()) if path.is_file() else None
            if recorded is not None and (found := _md5(path.read_bytes())) != recorded:
                message = f"MD5 is {found}; dvc.lock recorded {recorded}{recorded_what}"
                findings.append(Finding(kind, path.as_posix(), message))
        return findings + [
            Finding("absent", out, f"its listing {md5} of dvc.lock is unknown here")
            for out, md5 in self.outs.items()
            if md5.endswith(".dir") and Path(out).is_dir() and out in anew.rooms
            if self.listing(out) is None
        ]

    def listing(self, out: str) -> dict[str, str] | None:
        """The MD5 of each file of a folder that dvc.lock names; None where its list is unknown."""
        if out not in self._listings:
            md5 = self.outs.get(out, "")
            self._listings[out] = self._read(out, md5) if md5.endswith(".dir") else None
        return self._listings[out]

    def listings(self, outs: Iterable[str]) -> dict[str, Path]:
        """The files that list these folders, by their path in a cache of DVC."""
        kept = {out: self.outs[out] for out in outs if self.outs.get(out, "").endswith(".dir")}
        found = {_in_cache(md5): self._place(out, md5) for out, md5 in sorted(kept.items())}
        return {name: path for name, path in found.items() if path}

    def keep(self, listing: Path) -> None:
        """Put a listing into DVC's cache, if dvc.lock names its content and the cache lacks it."""
        content = listing.read_bytes()
        md5 = f"{_md5(content)}.dir"
        if md5 in self.outs.values() and not (path := self._cache / _in_cache(md5)).exists():
            write_bytes(path, content)

    def put(self, rows: Mapping[str, str]) -> str:
        """Write a list of files (path -> MD5) into DVC's cache; returns its own MD5."""
        listed = [{"md5": rows[name], "relpath": name} for name in sorted(rows)]
        content = json.dumps(listed).encode()  # DVC's bytes
        md5 = f"{_md5(content)}.dir"
        write_bytes(self._cache / _in_cache(md5), content)
        return md5

    def publish(self, outs: Iterable[str]) -> None:
        """Write the lists of these folders for git."""
        for out in outs:
            if path := self._place(out, self.outs[out]):
                write_bytes(_in_git(out), path.read_bytes())

    def _place(self, out: str, md5: str) -> Path | None:
        """Where a folder's listing is found: in DVC's cache, else in git."""
        cached, published = self._cache / _in_cache(md5), _in_git(out)
        if cached.is_file():
            return cached
        known = published.is_file() and f"{_md5(published.read_bytes())}.dir" == md5
        return published if known else None

    @cached_property
    def _listings(self) -> dict[str, dict[str, str] | None]:
        return {}

    def _read(self, out: str, md5: str) -> dict[str, str] | None:
        if not (path := self._place(out, md5)):
            return None
        content = path.read_bytes()
        if _md5(content) != md5.removesuffix(".dir"):
            raise UserError(f"{path}: not the listing that dvc.lock recorded; delete it, dvc fetch")
        rows = parse_json(content, path, list, what="a listing of DVC")
        try:
            return {row["relpath"]: row["md5"] for row in rows}
        except (KeyError, TypeError) as error:
            raise UserError(f"{path}: not a listing of DVC ({error!r})") from None

    @cached_property
    def _cache(self) -> Path:
        command = [sys.executable, "-m", "dvc", "cache", "dir"]
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode != 0:
            raise UserError(f"dvc cache dir: {done.stderr.strip()}")
        return Path(done.stdout.strip())


def _in_cache(md5: str) -> str:
    return f"files/md5/{md5[:2]}/{md5[2:]}"


def _in_git(out: str) -> Path:
    return LISTINGS / f"{Path(out).name}.json"


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
