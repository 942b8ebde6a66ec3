-- name: set_limits
-- Those that are named are changed; null goes back to the setting.
insert into tenant_limits (
    tenant, max_queued_jobs, max_running_jobs, max_submits_per_minute, max_open_streams, max_body_bytes
)
values (
    %(tenant)s, %(max_queued_jobs)s, %(max_running_jobs)s, %(max_submits_per_minute)s, %(max_open_streams)s,
    %(max_body_bytes)s
)
on conflict (tenant) do update set
    max_queued_jobs = case when 'max_queued_jobs' = any(%(named)s::text[]) then excluded.max_queued_jobs
        else tenant_limits.max_queued_jobs end,
    max_running_jobs = case when 'max_running_jobs' = any(%(named)s::text[]) then excluded.max_running_jobs
        else tenant_limits.max_running_jobs end,
    max_submits_per_minute = case when 'max_submits_per_minute' = any(%(named)s::text[])
        then excluded.max_submits_per_minute else tenant_limits.max_submits_per_minute end,
    max_open_streams = case when 'max_open_streams' = any(%(named)s::text[]) then excluded.max_open_streams
        else tenant_limits.max_open_streams end,
    max_body_bytes = case when 'max_body_bytes' = any(%(named)s::text[]) then excluded.max_body_bytes
        else tenant_limits.max_body_bytes end;

-- name: all
-- Every tenant that has limits of its own, or jobs or streams now, with what it uses.
select tenant, max_queued_jobs, max_running_jobs, max_submits_per_minute, max_open_streams, max_body_bytes,
    coalesce(queued, 0) as queued, coalesce(running, 0) as running, coalesce(streams, 0) as streams
from tenant_limits
full join (
    select tenant, count(*) filter (where status = 'queued') as queued,
        count(*) filter (where status = 'running') as running
    from jobs where status = 'queued' or status = 'running' group by tenant
) as jobs using (tenant)
full join (
    select tenant, count(*) as streams from open_streams where expires_at > now() group by tenant
) as open using (tenant)
order by tenant;

-- name: unset
delete from tenant_limits where tenant = %(tenant)s;
