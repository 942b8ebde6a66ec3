"""From what has to be in a Vault to what is: look everything up, then write what is missing or differs.

Owns the order: every right is checked, and everything refused that has to be, before anything is changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tier3.vault.client import Rights, Vault, lacking, may
from tier3.vault.command import show
from tier3.vault.errors import Denied, Failed, Refused
from tier3.vault.items import Item, Verdict

_COLUMNS = ("What", "Name", "State", "Detail")


@dataclass(frozen=True)
class Entry:
    """An item, and what was found of it."""

    item: Item
    verdict: Verdict
    found: Mapping[str, Any] | None

    @property
    def done(self) -> bool:
        """Whether nothing has to be written."""
        return self.verdict.there and not self.verdict.differences


def look(vault: Vault, wanted: Sequence[Item], more: Rights) -> list[Entry]:
    """Look everything up, changing nothing.

    Raises:
        Denied: naming every right that this takes, or that the changes would take, and that the token lacks.
        Refused: naming everything that is there and must be left alone.
    """
    paths = {*more, *(item.found_at for item in wanted), *(item.written_to for item in wanted)}
    rights = vault.rights(sorted(paths))
    entries, needed = [], {path: {*needs} for path, needs in more.items()}
    for item in wanted:
        needed.setdefault(item.found_at, set()).add("read")
        if may(rights, item.found_at, "read"):
            found = vault.read(item.found_at)
            entries.append(Entry(item, item.judge(found), found))
            missing = entries[-1].verdict
        else:
            missing = Verdict(there=False)
        if not missing.there or missing.differences:
            needed.setdefault(item.written_to, set()).update(item.to_change if missing.there else item.to_make)
    if problems := lacking(rights, needed):
        raise Denied(f"nothing was changed; the token lacks {'; '.join(problems)}")
    if refusals := [entry.verdict.refusal for entry in entries if entry.verdict.refusal]:
        raise Refused(f"nothing was changed; {'; '.join(refusals)}")
    return entries


def foretell(entries: Sequence[Entry]) -> None:
    """Print what `carry_out` would do."""
    show(_COLUMNS, [_row(entry, "would ") for entry in entries])


def carry_out(vault: Vault, entries: Sequence[Entry]) -> None:
    """Write what is missing or differs, and print the table, also of a run that fails in the middle."""
    rows: list[tuple[str, ...]] = []
    try:
        for entry in entries:
            rows.append(_apply(vault, entry))
    finally:
        if rows:
            show(_COLUMNS, rows)
    changed = sum(row[2] != "found" for row in rows)
    print(f"vault_init: {changed} made or changed" if changed else "vault_init: everything was there, nothing changed")


def _apply(vault: Vault, entry: Entry) -> tuple[str, ...]:
    """Write an item that needs it. Its row says found if somebody else was faster."""
    if entry.done:
        return _row(entry)
    item = entry.item
    there = (entry.found or {}).items() if item.keeps else ()
    kept = {name: value for name, value in there if value not in (None, "", [])}
    try:
        vault.write(item.written_to, {**kept, **item.data})
    except Failed as error:
        now = vault.read(item.found_at)
        again = Entry(item, item.judge(now), now)
        if not again.done:
            raise Failed(f"{error}; run again when that is mended{_advice(error)}") from None
        return _row(again)
    return _row(entry)


def _advice(error: Failed) -> str:
    if "serviceaccount/ca.crt" not in str(error):
        return ""
    return (
        ": Vault does not run in a pod, so set KUBERNETES_CA_FILE, and KUBERNETES_REVIEWER_JWT_FILE if logins need it"
    )


def _row(entry: Entry, conditional: str = "") -> tuple[str, ...]:
    item, verdict = entry.item, entry.verdict
    if entry.done:
        return item.kind, item.name, "found", item.detail
    words = ("change" if verdict.there else "make") if conditional else ("changed" if verdict.there else "made")
    return item.kind, item.name, f"{conditional}{words}", "; ".join(verdict.differences) or item.detail
