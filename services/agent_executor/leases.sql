-- The one query of the thread that keeps leases.

-- name: renew
-- Renew the leases of these claims; a job that does not come back is no longer theirs.
update jobs set lease_until = now() + make_interval(secs => %(lease_s)s)
from unnest(%(job_ids)s::text[], %(fences)s::bigint[]) as held (job_id, fence)
where jobs.job_id = held.job_id and jobs.fence = held.fence and status = 'running'
returning jobs.job_id, jobs.fence;
