"""A .creds file of NATS in Vault: `populate_secrets --verify` logs in with it as the service would."""

from __future__ import annotations

import json
from pathlib import Path

from tests.integration.fixtures.nats_accounts import GuardedNats
from tests.integration.fixtures.operator import Operator


def test_credentials_of_nats_are_tried(operator: Operator, tmp_path: Path) -> None:
    operator.init()
    with GuardedNats(tmp_path / "guarded") as guarded, GuardedNats(tmp_path / "other") as other:
        for credentials, state in ((None, "failed"), (other.credentials, "failed"), (guarded.credentials, "works")):
            given = {"url": guarded.url} | ({"credentials": credentials} if credentials else {})
            assert operator.populate("--from-json", "-", typed=json.dumps({"nats": given})).status == 0
            output = operator.populate("--verify").output
            (row,) = [line.split() for line in output.splitlines() if line.startswith(" nats ")]
            assert row[1] == state, output
            assert credentials is None or credentials.splitlines()[5] not in output
