"""Whether a statement does the same when it is run again. Outside a transaction it may have to be."""

from __future__ import annotations

import re

_ALWAYS = "ANALYZE|CLUSTER|COMMENT|DELETE|GRANT|REFRESH|REINDEX|RESET|REVOKE|SECURITY|SET|TRUNCATE|VACUUM|ALTER SYSTEM"
_YES = re.compile(
    rf"^ (({_ALWAYS}) "
    r"|CREATE OR REPLACE |CREATE (\w+ ){1,4}IF NOT EXISTS |DROP (\w+ ){1,3}IF EXISTS |INSERT .* ON CONFLICT )",
)
_ALTER = re.compile(r"^ ALTER (TABLE|TYPE|INDEX|SEQUENCE|MATERIALIZED VIEW|VIEW|FOREIGN TABLE) ")
_ONCE = re.compile(
    r" (RENAME|ATTACH|DETACH|ADD(?! ((COLUMN|VALUE) )?IF NOT EXISTS )"
    r"|DROP(?! ((COLUMN|CONSTRAINT|ATTRIBUTE) )?IF EXISTS | (NOT NULL|DEFAULT|EXPRESSION IF|IDENTITY IF) )) "
)


def repeatable(sentence: str) -> bool:
    """Whether a statement, as Statement.sentence, is known to be safe to repeat."""
    return bool(_YES.search(sentence)) or bool(_ALTER.search(sentence) and not _ONCE.search(sentence))
