"""Runs rocrate-validator without a network, in a Python that has it: python -P validate_crate.py CRATE PROFILE SEVERITY.

Without -P, tests/packaging would hide the library of that name.

This file supplies the two JSON-LD contexts that a crate refers to: RO-Crate's comes with the rocrate library (0.13); of the
Workflow Run terms, only those that Forge uses are defined.
"""

from __future__ import annotations

import email.message
import io
import json
import sys
import urllib.request
import urllib.response
from importlib import resources
from typing import Any

import requests
from rocrate_validator import models, services

CONTEXTS = {
    "https://w3id.org/ro/crate/1.1/context": (resources.files("rocrate") / "data" / "ro-crate.jsonld").read_text("utf-8"),
    "https://w3id.org/ro/terms/workflow-run/context": json.dumps(
        {"@context": {term: f"https://w3id.org/ro/terms/workflow-run#{term}" for term in ("resourceUsage", "sha256")}}),
}


class _Local(urllib.request.HTTPSHandler):
    """Loads contexts for rdflib."""

    def https_open(self, request: Any) -> Any:
        head = email.message.Message()
        head["Content-Type"] = "application/ld+json"
        return urllib.response.addinfourl(io.BytesIO(CONTEXTS[request.full_url].encode()), head, request.full_url, 200)


def _send(_: object, request: Any, **__: object) -> requests.Response:
    """Answer requests for contexts."""
    answer = requests.Response()
    answer.status_code = 200 if request.url in CONTEXTS else 404
    answer.url, answer.request = request.url, request
    answer.raw = io.BytesIO(CONTEXTS.get(request.url, "").encode())
    answer.headers["Content-Type"] = "application/ld+json"
    return answer


def main() -> int:
    crate, profile, severity = sys.argv[1:]
    urllib.request.install_opener(urllib.request.build_opener(_Local))
    setattr(requests.adapters.HTTPAdapter, "send", _send)  # noqa: B010 (mypy)
    settings = services.ValidationSettings(
        rocrate_uri=crate, profile_identifier=profile, requirement_severity=getattr(models.Severity, severity), no_cache=True)
    result = services.validate(settings)
    issues = [f"{issue.severity.name} {issue.check.identifier} {issue.message}" for issue in result.get_issues()]
    print(json.dumps({"checks": len(result.executed_checks), "issues": issues}))
    return 1 if issues else 0


if __name__ == "__main__":
    sys.exit(main())
