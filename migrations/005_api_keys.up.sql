-- Who may call by HTTP. `hash` is the SHA-256 of the whole key, which is nowhere else.
create table api_keys (
    id text primary key,
    name text not null,
    tenant text not null,
    scopes text[] not null,
    hash bytea not null check (length(hash) = 32),
    created_at timestamptz not null default now(),
    expires_at timestamptz,
    revoked_at timestamptz,
    last_used_at timestamptz
);

-- Processes keep the keys in memory, and are told when one changes.
create function api_keys_changed() returns trigger language plpgsql as $$
begin
    perform pg_notify('agent_executor_api_keys', '');
    return null;
end $$;

create trigger api_keys_changed
    after insert or delete or update of name, tenant, scopes, hash, expires_at, revoked_at on api_keys
    for each statement execute function api_keys_changed();
