-- Every query on the jobs table and its outbox. Each has a name, loaded by `ledger`, and one idea.
-- Times are the database's; a worker's clock decides nothing.

-- name: accept
-- Take a job in. No row comes back when the job id, or the event's source and id, are taken.
insert into jobs (job_id, trace_id, source, event_id, body_hash, definition, input, traceparent)
values (%(job_id)s, %(trace_id)s, %(source)s, %(event_id)s, %(body_hash)s, %(definition)s, %(input)s, %(traceparent)s)
on conflict do nothing
returning job_id;

-- name: owner
-- Who holds this job id, or this event's source and id.
select job_id, body_hash, status, outcome_id
from jobs
where job_id = %(job_id)s or (source = %(source)s and event_id = %(event_id)s)
order by job_id = %(job_id)s desc;

-- name: wake_workers
select pg_notify('agent_executor_queued', '');

-- name: claim
-- Up to `slots` jobs that wait, or whose worker fell silent, oldest first. The fence grows with every claim.
update jobs
set status = 'running', attempt = attempt + 1, fence = fence + 1, lease_owner = %(owner)s,
    lease_until = now() + make_interval(secs => %(lease_s)s), started_at = coalesce(started_at, now()), updated_at = now()
where job_id in (
    select job_id from jobs
    where status = 'queued' or (status = 'running' and lease_until < now())
    order by created_at
    limit %(slots)s
    for update skip locked
)
returning job_id, trace_id, definition, input, traceparent, attempt, fence;

-- name: renew
-- Renew the leases of these claims; a job that does not come back is no longer theirs.
update jobs set lease_until = now() + make_interval(secs => %(lease_s)s)
from unnest(%(job_ids)s::text[], %(fences)s::bigint[]) as held (job_id, fence)
where jobs.job_id = held.job_id and jobs.fence = held.fence and status = 'running'
returning jobs.job_id;

-- name: release
-- Give a running job back: whoever claims it next goes on from its last checkpoint. It counts as no attempt.
with released as (
    update jobs
    set status = 'queued', attempt = attempt - 1, lease_owner = null, lease_until = null, updated_at = now()
    where job_id = %(job_id)s and fence = %(fence)s and status = 'running'
    returning job_id
)
select pg_notify('agent_executor_queued', '') from released;

-- name: finish
-- Record the outcome and the event that announces it, together. No row comes back when the fence has moved on.
with finished as (
    update jobs
    set status = %(status)s, result = %(result)s, error = %(error)s, outcome_id = %(outcome_id)s,
        lease_owner = null, lease_until = null, finished_at = now(), updated_at = now()
    where job_id = %(job_id)s and fence = %(fence)s and status = 'running'
    returning job_id
), announced as (
    insert into outbox (msg_id, job_id, target, subject, event)
    select %(outcome_id)s || suffix, job_id, target, %(subject)s, %(event)s
    from finished, unnest(%(targets)s::text[], %(suffixes)s::text[]) as t (target, suffix)
)
select pg_notify('agent_executor_finished', job_id) from finished;

-- name: announce_again
-- Publish a stored outcome once more for another request; the event is the same, the message id is not.
insert into outbox (msg_id, job_id, target, subject, event)
select left(outcome_id || ':' || %(request_id)s, 500), job_id, 'nats', subject, event
from jobs join lateral (
    select subject, event from outbox
    where outbox.job_id = jobs.job_id and msg_id = jobs.outcome_id
) stored on true
where job_id = %(job_id)s and outcome_id is not null
on conflict (msg_id) do update set published_at = null, due_at = now();

-- name: job
select job_id, trace_id, status, attempt, result, error, created_at, started_at, finished_at, updated_at
from jobs
where job_id = %(job_id)s;

-- name: jobs
-- A page of jobs, newest first; the cursor is the last row of the page before.
select job_id, trace_id, status, attempt, created_at, started_at, finished_at, updated_at
from jobs
where (%(status)s::text is null or status = %(status)s)
  and (%(before)s::timestamptz is null or (created_at, job_id) < (%(before)s, %(before_id)s))
order by created_at desc, job_id desc
limit %(limit)s;

-- name: outcome
-- The event that announced this job's outcome, if it has one.
select outbox.event
from jobs join outbox on outbox.job_id = jobs.job_id and outbox.msg_id = jobs.outcome_id
where jobs.job_id = %(job_id)s;

-- name: announce_rejection
-- A failed event for a request that never became a job, once; silent where the job exists.
insert into outbox (msg_id, job_id, target, subject, event)
select %(outcome_id)s || suffix, %(job_id)s, target, 'agent.status.failed', %(event)s
from unnest(%(targets)s::text[], %(suffixes)s::text[]) as t (target, suffix)
where not exists (select from jobs where job_id = %(job_id)s)
on conflict (msg_id) do nothing;

-- name: ping
select from jobs limit 1;
