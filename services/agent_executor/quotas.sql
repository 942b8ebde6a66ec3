-- What a tenant may and does use. Times are the database's. `accept` and `claim` of ledger.sql look at limits themselves.

-- name: lock_usage
-- Have the tenant's submits wait for this transaction.
insert into tenant_usage (tenant) values (%(tenant)s)
on conflict (tenant) do update set tenant = excluded.tenant;

-- name: make_room
-- Count the tenant's queued jobs, no further than needed, and see how many more it may queue; also what it may submit, and
-- in how many seconds it may submit again. After lock_usage, as a statement of its own: what it counts has to be all.
with allowed as (
    select coalesce(max_queued_jobs, %(max_queued_jobs)s) as queued,
        coalesce(max_submits_per_minute, %(max_submits_per_minute)s) as submits
    from (select) as always left join tenant_limits on tenant_limits.tenant = %(tenant)s
), counted as (
    select count(*)::integer as jobs from (
        select from jobs where tenant = %(tenant)s and status = 'queued'
        limit (select case when queued > 0 then queued + 1::bigint else 0 end from allowed)
    ) as queue
)
update tenant_usage
set room = greatest(queued - jobs, 0), room_of = queued
from allowed, counted
where tenant = %(tenant)s
returning jobs as queued, allowed.queued as max_queued_jobs, submits as max_submits_per_minute, case when submits > 0 then
    extract(epoch from greatest(submits_until, now() - interval '1 minute') - clock_timestamp())::float8
    + 60.0 / submits - 60 else 0 end as submit_in_s;
