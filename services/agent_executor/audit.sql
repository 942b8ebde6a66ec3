-- What is written to the audit beside the changes of jobs, whose rows `ledger.sql` writes with the changes.

-- name: refused
-- Refusals, each of them told `counts` times, so many seconds ago.
insert into audit (at, action, outcome, actor, key_id, tenant, job_id, address, via, detail, count)
select now() - make_interval(secs => age_s), action, 'refused', actor, key_id, tenant, job_id, address, via, detail, count
from unnest(
    %(ages_s)s::float8[], %(actions)s::text[], %(actors)s::text[], %(key_ids)s::text[], %(tenants)s::text[],
    %(job_ids)s::text[], %(addresses)s::text[], %(vias)s::text[], %(details)s::text[], %(counts)s::bigint[]
) as told (age_s, action, actor, key_id, tenant, job_id, address, via, detail, count);

-- name: expire
-- Delete what is old of the `limit` oldest rows, which the primary key finds: ids grow with time.
delete from audit using (select id from audit order by id limit %(limit)s) as oldest
where audit.id = oldest.id and at < now() - make_interval(days => %(days)s);
