-- name: valid
-- Every key that may be used.
select id, name, tenant, scopes, hash, extract(epoch from expires_at)::float8 as expires_at
from api_keys
where revoked_at is null and (expires_at is null or expires_at > now());

-- name: used
-- When keys were last used; another process may know of a later use.
update api_keys
set last_used_at = greatest(last_used_at, used.at)
from (select unnest(%(ids)s::text[]) as id, to_timestamp(unnest(%(times)s::float8[])) as at) as used
where api_keys.id = used.id;

-- name: expire
-- Delete a batch of keys that expired or were revoked long ago.
delete from api_keys where id in (
    select id from api_keys
    where least(expires_at, revoked_at) < now() - make_interval(days => %(days)s)
    limit %(limit)s
    for update skip locked
);
