-- The audit has who made a key or revoked it, in the same statement.

-- name: add
with added as (
    insert into api_keys (id, name, tenant, scopes, hash, expires_at)
    values (%(id)s, %(name)s, %(tenant)s, %(scopes)s, %(hash)s, now() + make_interval(days => %(days)s::integer))
    returning id, tenant, name, scopes
)
insert into audit (action, outcome, actor, key_id, tenant, via, detail)
select 'key_new', 'done', %(actor)s, id, tenant, 'command', name || ': ' || array_to_string(scopes, ',') from added;

-- name: all
select id, name, tenant, array_to_string(scopes, ',') as scopes, created_at, expires_at, revoked_at, last_used_at
from api_keys
order by created_at, id;

-- name: revoke
-- A row comes back where there is such a key. It stays revoked since the first time, which is the one that is audited.
with found as (
    select id, tenant, name, revoked_at from api_keys where id = %(id)s for update
), revoked as (
    update api_keys set revoked_at = now() from found where api_keys.id = found.id and found.revoked_at is null
    returning api_keys.id, api_keys.tenant, api_keys.name
), audited as (
    insert into audit (action, outcome, actor, key_id, tenant, via, detail)
    select 'key_revoke', 'done', %(actor)s, id, tenant, 'command', name from revoked
)
select id from found;
