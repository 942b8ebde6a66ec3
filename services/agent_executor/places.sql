-- The event streams that all processes hold open, and what a tenant's bodies may have.

-- name: in_turn
-- Streams of one tenant are opened one after the other, so that each sees those before.
select pg_advisory_xact_lock(hashtextextended('agent_executor stream ' || %(tenant)s::text, 0));

-- name: take
with allowed as (
    select coalesce(max_open_streams, %(max_open_streams)s) as streams
    from (select) as always left join tenant_limits on tenant_limits.tenant = %(tenant)s
), taken as (
    insert into open_streams (id, tenant, expires_at)
    select %(id)s::text, %(tenant)s::text, now() + make_interval(secs => %(expiry_s)s)
    from allowed
    where streams = 0
        or streams > (select count(*) from open_streams where tenant = %(tenant)s and expires_at > now())
    returning id
)
select streams as max_open_streams, exists (select from taken) as is_taken from allowed;

-- name: renew
-- Those that are still open, also where they had expired; what other processes left behind is deleted, unless they are
-- about to renew it: after an outage all do at once.
with left_behind as (
    delete from open_streams where id in (
        select id from open_streams where expires_at < now() and id <> all(%(ids)s::text[])
        for update skip locked
    )
)
insert into open_streams (id, tenant, expires_at)
select id, tenant, now() + make_interval(secs => %(expiry_s)s)
from unnest(%(ids)s::text[], %(tenants)s::text[]) as held (id, tenant)
on conflict (id) do update set expires_at = excluded.expires_at;

-- name: give_back
delete from open_streams where id = any(%(ids)s::text[]);

-- name: body_limits
select tenant, max_body_bytes from tenant_limits where max_body_bytes > 0;
