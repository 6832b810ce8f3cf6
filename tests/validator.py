"""The public validator of RO-Crates, without any network."""

from __future__ import annotations

from pathlib import Path

import requests

# The terms that a crate uses, of https://w3id.org/ro/crate/1.1/context (CC0).
CONTEXT = Path(__file__).parent / "data/ro-crate-1.1-context.json"
# What the profiles recommend and nothing records: who ran it, where fitspace is published, when and
# with which version the report was made.
NOT_KNOWN = {
    "The Action SHOULD have an agent that is a Person or Organization",
    "The Action SHOULD have an endTime in ISO 8601 format",
    "The Application SHOULD have a url",
    "The SoftwareApplication SHOULD have a version or softwareVersion",
    "The SoftwareApplication id SHOULD be an absolute URI",
    "The Root Data Entity SHOULD have a link to a Contextual Entity representing the `author` of "
    "the RO-Crate",
    "The `publisher` property of a `Root Data Entity` SHOULD be an `Organization`",
}


def validated(folder, tmp_path, monkeypatch):
    """Messages of the validator, by severity; without any network."""
    from rocrate_validator import models, services
    from rocrate_validator.utils.http import HttpRequester

    def get(self, url, **_):
        response = requests.Response()
        response.url, response.status_code = url, 504
        if url == "https://w3id.org/ro/crate/1.1/context":
            response.status_code, response._content = 200, CONTEXT.read_bytes()
            response.headers["Content-Type"] = "application/ld+json"
        return response

    monkeypatch.setattr(HttpRequester, "get", get, raising=False)
    settings = models.ValidationSettings(
        rocrate_uri=str(folder),
        profile_identifier="provenance-run-crate",
        requirement_severity=models.Severity.RECOMMENDED,
        offline=True,
        cache_path=tmp_path / "http",
    )
    found = {"REQUIRED": set(), "RECOMMENDED": set()}
    for issue in services.validate(settings).get_issues():
        found[issue.severity.name].add(issue.message)
    return found
