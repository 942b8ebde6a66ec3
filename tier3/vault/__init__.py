"""What `nox -s vault_init` and `nox -s populate_secrets` share, and the parts that they are made of.

Owns the operator's side of Vault: what has to be there before the service can read its secrets. How the service reads
them is `agent_executor.vault`.
"""
