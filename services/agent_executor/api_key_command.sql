-- name: add
insert into api_keys (id, name, tenant, scopes, hash, expires_at)
values (%(id)s, %(name)s, %(tenant)s, %(scopes)s, %(hash)s, now() + make_interval(days => %(days)s::integer));

-- name: all
select id, name, tenant, array_to_string(scopes, ',') as scopes, created_at, expires_at, revoked_at, last_used_at
from api_keys
order by created_at, id;

-- name: revoke
-- A key stays revoked since the first time.
update api_keys set revoked_at = coalesce(revoked_at, now()) where id = %(id)s;
