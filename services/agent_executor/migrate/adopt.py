"""A database that another tool made from the same files, and that has no ledger: which of the files are in it?

The files run in a scratch schema of the same name, in a transaction that is rolled back, and after each the catalog is
compared with the database's. Nothing is recorded that does not match.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from .errors import Refused
from .explain import explain
from .files import Migration
from .ledger import SCHEMA
from .server import RETRIED, Connection, ServerError, run
from .statements import split

Catalog = Mapping[str, str]
_ASIDE = f"{SCHEMA}_aside"
_CONCURRENTLY = re.compile(r"\bconcurrently\b", re.IGNORECASE)


def catalog(connection: Connection) -> Catalog:
    """What the schema holds, "kind name" to definition; empty where there is no schema. What counts: catalog.sql."""
    query = Path(__file__).with_name("catalog.sql").read_bytes()
    return dict(connection.execute(query, {"schema": SCHEMA}).fetchall())


def present(connection: Connection, migrations: Sequence[Migration], hide: Callable[[str], str]) -> list[Migration]:
    """The migrations whose files are in the database already: none for an empty schema, else the first ones.

    Raises:
        Refused: the schema holds something else, naming the difference, or it cannot be told.
    """
    exists = connection.execute("select 1 from pg_namespace where nspname = %s", [SCHEMA]).fetchone()
    if not exists or not (there := catalog(connection)):  # the catalog takes as long as ten files
        return []
    run(connection, f"begin; alter schema {SCHEMA} rename to {_ASIDE}; create schema {SCHEMA}")
    try:
        made = [(migration, _after(connection, migration, hide)) for migration in migrations]
    finally:
        run(connection, "rollback; reset all")
    fitting = [migration.version for migration, each in made if each == there]
    if len(fitting) == 1:
        return list(migrations[: fitting[0]])
    if fitting:
        raise Refused(
            f"adopt: no ledger, and the schema is the same after"
            f" {' and '.join(migrations[version - 1].up.name for version in fitting)}: say which was the last to run"
            " with baseline VERSION"
        )
    nearest, wanted = min(made, key=lambda pair: len(difference(pair[1], there)))
    told = "".join(f"\n  {line}" for line in difference(wanted, there))
    raise Refused(
        f"adopt: {SCHEMA} has tables but no ledger, and does not match the files; nearest is {nearest.up.name}:{told}"
        "\nHINT: make them match, or record what is there with baseline VERSION"
    )


def difference(wanted: Catalog, there: Catalog) -> list[str]:
    """What the database lacks, has besides, and has otherwise than the files make it; one line each."""
    lines = [f"missing: {name}: {wanted[name]}" for name in sorted(wanted.keys() - there.keys())]
    lines += [f"not from the files: {name}: {there[name]}" for name in sorted(there.keys() - wanted.keys())]
    return lines + [
        f"different: {name}: the files make {wanted[name]!r}, there is {there[name]!r}"
        for name in sorted(wanted.keys() & there.keys())
        if wanted[name] != there[name]
    ]


def _after(connection: Connection, migration: Migration, hide: Callable[[str], str]) -> Catalog:
    """The catalog after this file; of one that cannot be in a transaction, what can be."""
    queries = [migration.up.text]
    if not migration.up.transactional:
        queries = [
            _CONCURRENTLY.sub(" ", statement.text, count=1)
            for statement in split(migration.up.text).statements
            if statement.words[0] not in ("VACUUM", "REINDEX") and statement.words[:2] != ["ALTER", "SYSTEM"]
        ]
    try:
        for query in queries:
            run(connection, query)
    except ServerError as error:
        if error.sqlstate in RETRIED:
            raise
        error.position = None
        raise Refused(
            f"adopt: {SCHEMA} has tables but no ledger, and what the files make cannot be found out beside it:\n"
            f"{explain(migration.up, error, hide)}\nHINT: record what is there with baseline VERSION"
        ) from None
    run(connection, "reset session authorization; reset role; reset all")
    return catalog(connection)
