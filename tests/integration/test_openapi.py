"""The running service is what its OpenAPI document says: requests made from the document, good ones and bad ones."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from urllib.parse import unquote

from starlette.routing import compile_path

from agent_executor import access
from tests.definitions import EXAMPLES, agent, tool
from tests.integration.fixtures.service import Service
from tests.integration.fixtures.tenants import Tenants

CHECKS = (
    *("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance"),
    *("response_schema_conformance", "unsupported_method", "allow_header_conformance", "negative_data_rejection"),
)
BROKEN = """
from langchain_core.tools import tool

@tool
def broken() -> str:
    "Fails."
    raise ValueError("no luck")
"""


def schemathesis(place: Path, service: Service, *settings: str, checks: tuple[str, ...]) -> list[tuple[str, str, int]]:
    """Run it with these settings; returns every request's method, path, and the status that it got."""
    report = place / "requests.har"
    (place / "schemathesis.toml").write_text("\n".join(settings))
    options = ["--generation-deterministic", "--max-examples=20", "--phases=examples,coverage,fuzzing", "--no-shrink"]
    options += ["--continue-on-failure", "--no-color", "--request-timeout=60", "--warnings=off"]
    options += [f"--checks={','.join(checks)}", "--report=har", f"--report-har-path={report}"]
    ran = subprocess.run(
        [Path(sys.executable).with_name("schemathesis"), "run", f"{service.http.base_url}/openapi.json", *options],
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-8000:] + ran.stderr[-2000:]
    assert f"Tested: {len(access.NEEDS)}\n" in ran.stdout
    entries = json.loads(report.read_text())["log"]["entries"]
    paths = [unquote(re.sub(r"^http://[^/]+|[?#].*", "", each["request"]["url"])) for each in entries]
    return [
        (each["request"]["method"], path, each["response"]["status"]) for each, path in zip(entries, paths, strict=True)
    ]


def jobs(tenants: Tenants) -> list[str]:
    """The ids of a completed, a failed and an interrupted job of the default tenant."""
    approval = json.loads((EXAMPLES / "approval.json").read_text())["agent_definition"]
    broken = agent([{"tool_calls": [{"name": "broken"}]}], tools=[tool("broken", BROKEN)])
    service = tenants.service
    for job_id, definition in (("done", agent([{"text": "done"}])), ("broken", broken), ("asks", approval)):
        assert service.submit(definition, job_id).status_code == 202
    assert service.ended("done")["status"] == "completed"
    assert service.ended("broken")["status"] == "failed"
    service.interrupted("asks")
    return ["done", "broken", "asks"]


def test_the_service_does_what_it_describes(tenants: Tenants, tmp_path: Path) -> None:
    settings = (
        f'headers = {{ Authorization = "{tenants.service.http.headers["authorization"]}" }}',
        f"dictionaries.jobs.values = {json.dumps(jobs(tenants))}",
        'parameters.job_id = { dictionary = "jobs", probability = 0.8 }',
    )
    answers = schemathesis(tmp_path, tenants.service, *settings, checks=(*CHECKS, "ignored_auth"))
    by_status: dict[int, set[str]] = defaultdict(set)
    for method, path, status in answers:
        by_status[status].add(f"{method} {path}")
    assert max(by_status) < 500
    assert {200, 202, 400, 401, 404, 405, 409} <= by_status.keys()
    assert {"POST /", "POST /v1/jobs"} <= by_status[202]


def test_every_closed_operation_is_401_without_a_credential(tenants: Tenants, tmp_path: Path) -> None:
    answers = schemathesis(tmp_path, tenants.service, checks=CHECKS[:4])
    for route, needed in access.NEEDS.items():
        method, _, path = route.partition(" ")
        pattern = compile_path(path)[0]
        found = [status for asked, path, status in answers if asked == method and pattern.fullmatch(path)]
        if needed != (access.OPEN,):
            assert len(found) > 5, route
            assert {*found} == {401}, route
    assert {status for *_, status in answers} <= {200, 401, 404, 405}
