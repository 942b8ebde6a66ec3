"""README and docs/: in step with the code, links that lead somewhere, nothing that belongs to one machine."""

from __future__ import annotations

import ast
import json
import re
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from agent_executor import app, definition, metrics, model_options, scripted
from agent_executor.settings import Settings
from tier3.image import options
from tier3.vault.fields import SECRETS

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "services/agent_executor").rglob("*.py"))
NAMES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
PAGES = [*(ROOT / name for name in NAMES), *sorted((ROOT / "docs").glob("*.md"))]
PARTS: tuple[type[BaseModel], ...] = (
    *(definition.Definition, definition.Node, definition.NodeConfig, definition.ToolDefinition, definition.ModelChoice),
    *(definition.StateField, definition.Approval, scripted.ScriptedChatModel, model_options.Reply),
)
OF_OTHERS = {name for name in scripted.ScriptedChatModel.model_fields if name != "replies"}


def page(name: str) -> str:
    return (ROOT / name).read_text()


def section(text: str, heading: str) -> str:
    """What stands below `heading`, up to the next one of its level or above."""
    level = len(heading) - len(heading.lstrip("#"))
    _, found, rest = text.partition(f"\n{heading}\n")
    assert found, f"no heading {heading!r}"
    return re.split(rf"(?m)^#{{1,{level}}} ", rest)[0]


def table(text: str) -> dict[str, list[str]]:
    """The rows of all tables in `text`: name in the first cell, without code marks -> the other cells."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {row[0].strip("`"): row[1:] for row in rows if row[0].startswith("`")}


def shown(default: Any) -> str:
    return "none" if default is None else f"`{default}`"


def test_every_setting_is_in_the_table_and_nothing_else() -> None:
    rows = table(section(page("docs/settings.md"), "## The service"))
    assert list(rows) == [name.upper() for name in Settings.model_fields]
    for name, field in Settings.model_fields.items():
        default, meaning = rows[name.upper()]
        assert default == ("required" if field.is_required() else shown(field.default)), name
        assert field.description is not None
        assert meaning == field.description or meaning.startswith(f"{field.description}. "), name


def test_every_session_is_in_the_readme_and_nothing_else() -> None:
    module = ast.parse(page("noxfile.py"))
    functions = [node for node in module.body if isinstance(node, ast.FunctionDef)]
    sessions = {each.name for each in functions if any("session" in ast.unparse(d) for d in each.decorator_list)}
    assert "run" in sessions
    assert set(table(section(page("README.md"), "## Sessions"))) == sessions


def test_every_part_of_the_bench_is_in_the_table_and_nothing_else() -> None:
    [parts] = [
        node
        for node in ast.walk(ast.parse(page("tests/bench/__main__.py")))
        if isinstance(node, ast.FunctionDef) and node.name == "_parts"
    ]
    [found] = [node for node in ast.walk(parts) if isinstance(node, ast.Dict)]
    names = [key.value for key in found.keys if isinstance(key, ast.Constant)]
    assert "throughput" in names
    assert list(table(section(page("docs/performance.md"), "## Measuring"))) == names


def test_every_variable_of_a_build_is_in_the_table_and_nothing_else() -> None:
    rows = table(section(page("docs/image.md"), "## Options"))
    assert set(rows) == set(options.KNOWN)
    for name, default in options.DEFAULTS.items():
        assert rows[name][0] == f"`{default}`", name
    assert rows["BASE_IMAGE"][0].strip("`") in page("Dockerfile").splitlines()[2]


def test_every_event_type_is_described_and_nothing_else() -> None:
    calls = re.compile(r'(?:emit|_send|_synthetic)\(\s*"(\w+)"')
    emitted = {name for source in SOURCES for name in calls.findall(source.read_text())}
    assert {"on_state_update", "warning", "error", "end"} <= emitted
    described = re.findall(r"(?m)^### `(\w+)`$", section(page("docs/events.md"), "## Event types"))
    assert sorted(described) == sorted(emitted)


def test_every_route_is_described_with_its_answers(settings: Settings) -> None:
    text = page("docs/api.md")
    paths = app.create(settings).openapi()["paths"]
    routes = {f"{method.upper()} {path}": each for path, found in paths.items() for method, each in found.items()}
    assert sorted(re.findall(r"(?m)^## `([A-Z]+ .+)`$", text)) == sorted(routes)
    for route, operation in routes.items():
        described = section(text, f"## `{route}`")
        assert [code for code in operation["responses"] if f"**{code}**" not in described] == [], route
        names = [parameter["name"] for parameter in operation.get("parameters", [])]
        assert [name for name in names if name not in f"{route}{described}"] == [], route


@pytest.mark.parametrize("part", PARTS)
def test_every_key_of_a_definition_is_described(part: type[BaseModel]) -> None:
    text = page("docs/definition.md")
    keys = set(part.model_fields) - (OF_OTHERS if part is scripted.ScriptedChatModel else set())
    assert keys
    assert [key for key in sorted(keys) if f"`{key}`" not in text and f"`runtime.{key}`" not in text] == []


def test_the_published_schema_is_the_definitions() -> None:
    """Written anew by: python -m tests.unit.test_docs"""
    assert json.loads(page("docs/definition.schema.json")) == definition.schema()


def test_every_provider_is_described() -> None:
    from agent_executor.models import PROVIDERS

    assert set(PROVIDERS) <= set(table(section(page("docs/definition.md"), "## Model")))


def test_every_metric_is_in_the_table_and_nothing_else() -> None:
    families = {
        f"{family.name}_total" if family.type == "counter" else family.name for family in metrics.registry.collect()
    }
    assert set(table(section(page("docs/operations.md"), "## Metrics"))) == families


def test_every_log_event_is_in_the_table() -> None:
    calls = re.compile(r'\blog\.(?:info|warning|error|exception)\(\s*"(\w+)"')
    logged = {name for source in SOURCES for name in calls.findall(source.read_text())}
    assert {"serving", "job_accepted", "cannot_start"} <= logged
    rows = [line for line in section(page("docs/operations.md"), "## Logs").splitlines() if line[:1] == "|"]
    described = {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert logged - described == set()


def test_every_table_of_the_database_is_described() -> None:
    migrations = "".join(path.read_text() for path in (ROOT / "migrations").glob("*.up.sql"))
    tables = set(re.findall(r"create (?:unlogged )?table (?:if not exists )?(\w+)", migrations))
    assert "jobs" in tables
    text = section(page("docs/operations.md"), "## Database")
    assert [name for name in sorted(tables) if f"`{name}`" not in text] == []


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads(page("pyproject.toml"))
    groups = project["dependency-groups"].values()
    wanted = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    wanted += [each for group in groups for each in group if isinstance(each, str)]
    names = {re.split(r"[^\w-]", each)[0] for each in wanted}
    assert set(table(section(page("CONTRIBUTING.md"), "## Dependencies"))) == names


def test_every_field_of_a_secret_is_in_the_table_with_its_variable() -> None:
    text = section(page("docs/vault.md"), "## Where the secrets are")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line[:3] == "| `" or line[:3] == "| |"
    ]
    found, path = [], ""
    for first, field, _, variable in rows:
        path = first.strip("`") or path
        found.append((path, field.strip("[]`"), field.startswith("["), variable.strip("`")))
    assert found == [
        (path, field.name, field.optional, field.variable) for path, fields in SECRETS.items() for field in fields
    ]


def test_the_example_of_the_environment_names_only_what_is_read() -> None:
    names = re.findall(r"(?m)^#? ?([A-Z_]+)=", page(".env.example"))
    assert "PORT" in names
    known = {name.upper() for name in Settings.model_fields} | {"PORT"}
    assert [name for name in names if name not in known and not re.search("_(API_KEY|BASE_URL)$", name)] == []


def anchors(text: str) -> set[str]:
    """The fragments that a page's headings can be reached by, as code hosts make them."""
    headings = re.findall(r"(?m)^#+ (.+)$", re.sub(r"(?ms)^```.*?^```", "", text))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target, fragment in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", path.read_text()):
        if target.startswith("https://"):
            continue
        found = (path.parent / target).resolve() if target else path
        assert found.exists(), target
        assert found.is_relative_to(ROOT), target
        assert not fragment or fragment in anchors(found.read_text()), f"{target}#{fragment}"


def test_every_page_of_docs_is_in_the_readme() -> None:
    assert [path.name for path in (ROOT / "docs").glob("*.md") if f"](docs/{path.name})" not in page("README.md")] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_headings_go_down_one_level_at_a_time(path: Path) -> None:
    text = re.sub(r"(?ms)^```.*?^```", "", path.read_text())
    levels = [len(marks) for marks in re.findall(r"(?m)^(#+) ", text)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(deeper <= level + 1 for level, deeper in pairwise(levels))


if __name__ == "__main__":
    schema = json.dumps(definition.schema(), indent=2)
    (ROOT / "docs/definition.schema.json").write_text(f"{schema}\n")
