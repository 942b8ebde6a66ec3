"""What has to be in a Vault for the service, each thing with how it is looked up, judged and written.

The policy lets a token read the service's secrets and nothing else: it may neither list nor write them. What a token
needs to renew and to look up itself is in Vault's own policy `default`, which every token of the roles here has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

ROLE = "agent-executor"
POLICY = "agent-executor-policy"
TOKEN_TTL_S = 3600
TOKEN_MAX_TTL_S = 86400

_TOKENS = {"token_policies": [POLICY], "token_ttl": TOKEN_TTL_S, "token_max_ttl": TOKEN_MAX_TTL_S}

Judge = Callable[[Mapping[str, Any] | None], "Verdict"]


@dataclass(frozen=True)
class Verdict:
    """Whether a thing is there, and in which ways it is not as it should be."""

    there: bool
    differences: Sequence[str] = ()
    refusal: str | None = None
    """Why it must be left alone, where that is so."""


@dataclass(frozen=True)
class Item:
    """One thing. `to_make` and `to_change` are the rights that writing it takes."""

    kind: str
    name: str
    found_at: str
    written_to: str
    data: Mapping[str, Any]
    judge: Judge
    to_make: Sequence[str] = ("update",)
    to_change: Sequence[str] = ("update",)
    detail: str = ""
    keeps: bool = field(default=False)
    """Whether what is there and we do not name has to be written again, since a write replaces the whole."""


def engine(mount: str) -> Item:
    """Version 2 of the key-value engine."""

    def judge(found: Mapping[str, Any] | None) -> Verdict:
        there = (found or {}).get(f"{mount}/")
        if there is None:
            return Verdict(there=False)
        if there["type"] not in {"kv", "generic"}:
            return Verdict(True, refusal=f"{mount}/ is an engine of type {there['type']}: set VAULT_MOUNT to another")
        if (there.get("options") or {}).get("version") != "2":
            advice = f"`vault kv enable-versioning {mount}/`, or set VAULT_MOUNT to another mount"
            return Verdict(
                True, refusal=f"{mount}/ is version 1 of the key-value engine, version 2 is needed: {advice}"
            )
        return Verdict(there=True)

    data = {"type": "kv", "options": {"version": "2"}, "description": "secrets of services"}
    return Item("KV v2 engine", f"{mount}/", "sys/mounts", f"sys/mounts/{mount}", data, judge)


def policy(mount: str, path: str) -> Item:
    """Reading the service's secrets."""
    text = f'path "{mount}/data/{path}/*" {{\n  capabilities = ["read"]\n}}\n'

    def judge(found: Mapping[str, Any] | None) -> Verdict:
        if found is None:
            return Verdict(there=False)
        same = str(found.get("policy", "")).split() == text.split()
        return Verdict(True, () if same else ["its text differed"])

    place = f"sys/policies/acl/{POLICY}"
    return Item("policy", POLICY, place, place, {"policy": text}, judge, detail=f"read {mount}/data/{path}/*")


def method(kind: str, mount: str) -> Item:
    """An auth method; Vault asks for sudo where one is enabled."""

    def judge(found: Mapping[str, Any] | None) -> Verdict:
        there = (found or {}).get(f"{mount}/")
        if there is not None and there["type"] != kind:
            return Verdict(True, refusal=f"auth/{mount}/ is of type {there['type']}, not {kind}")
        return Verdict(there=there is not None)

    made = ("update", "sudo")
    return Item("auth method", f"{mount}/", "sys/auth", f"sys/auth/{mount}", {"type": kind}, judge, made)


def app_role() -> Item:
    """The AppRole of the service. What else an operator has set on it (CIDRs, secret_id_ttl) is left as it is."""
    wanted = {**_TOKENS, "bind_secret_id": True}
    return _role("AppRole", f"auth/approle/role/{ROLE}", wanted, "")


def kubernetes_role(mount: str, account: str, namespace: str, audience: str) -> Item:
    """The role that a pod logs in to with its service account's token, issued for `audience`."""
    bound = {
        "bound_service_account_names": [account],
        "bound_service_account_namespaces": [namespace],
        "audience": audience,
    }
    detail = f"{namespace}/{account}, audience {audience}, "
    return _role("Kubernetes role", f"auth/{mount}/role/{ROLE}", {**bound, **_TOKENS}, detail)


def kubernetes_config(mount: str, host: str | None, extra: Mapping[str, Any], *, replace: bool) -> Item:
    """Which Kubernetes the method asks about tokens. One that is there and differs is refused unless `replace`.

    Without a `host` any that is there will do, and a new one is the cluster that Vault itself runs in. The reviewer's
    token cannot be read back: it alone makes no difference, but `replace` writes it again.
    """
    told = {**({"kubernetes_host": host} if host else {}), **extra}
    compared = {name: value for name, value in told.items() if name != "token_reviewer_jwt"}
    place = f"auth/{mount}/config"

    def judge(found: Mapping[str, Any] | None) -> Verdict:
        if found is None:
            return Verdict(there=False)
        differences = _differences(found, compared)
        if replace and "token_reviewer_jwt" in told:
            differences.append("token_reviewer_jwt cannot be read, and is written again")
        if differences and not replace:
            advice = "another cluster may depend on it; `-- --replace-k8s-config` overwrites it"
            return Verdict(True, differences, f"{place} is there and differs ({'; '.join(differences)}): {advice}")
        return Verdict(True, differences)

    data = {"kubernetes_host": "https://kubernetes.default.svc", **told}
    made, changed = ("create",), ("update",)
    return Item(
        "Kubernetes config", place, place, place, data, judge, made, changed, str(data["kubernetes_host"]), True
    )


def _role(kind: str, place: str, wanted: Mapping[str, Any], detail: str) -> Item:
    def judge(found: Mapping[str, Any] | None) -> Verdict:
        return Verdict(found is not None, _differences(found or wanted, wanted))

    life = f"{detail}tokens for {TOKEN_TTL_S // 3600} h, {TOKEN_MAX_TTL_S // 3600} h at most"
    return Item(kind, ROLE, place, place, wanted, judge, ("create",), ("update",), life)


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    return [
        f"{name} was {_shown(found.get(name))}, {_shown(value)} is wanted"
        for name, value in wanted.items()
        if _plain(found.get(name)) != _plain(value)
    ]


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, list) else value.strip() if isinstance(value, str) else value


def _shown(value: Any) -> str:
    text = ", ".join(value) if isinstance(value, list) else str(value)
    return "another" if "\n" in text else text or "nothing"
