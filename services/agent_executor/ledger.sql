-- Every query on the jobs table, its answers and its outbox. Each has a name, loaded by `ledger`, and one idea.
-- Times are the database's; a worker's clock decides nothing. What serves a caller takes the caller's tenant, and finds no
-- job of another; workers see all jobs.
-- Jobs that a list names are looked up one by one, in subqueries (`lateral`) that cannot become joins, which would begin with
-- all running or queued jobs of everybody. Statements are planned once (`database`): none may hold what is only sometimes a
-- condition.

-- name: accept
-- Take jobs in and wake workers. Those do not come back whose id is taken, by whomever, or whose event's source and id are
-- within the tenant; nor those of a tenant whose room for queued jobs is less than it asks for here, or whose submits of
-- this minute are used up. What a tenant uses is charged by an update of its one row, which others wait for and then look
-- at again; an event under another job's id, which the insert finds, is charged as well. Rows are locked and inserted in one
-- order, so that no two processes wait for each other.
-- Up to `slots` of them are claimed at once, by `owner`, as `claim` would do it: if no other job waits, whose turn it would
-- be, and no tenant's running jobs have to be counted.
with asked as (
    select * from unnest(
        %(job_id)s::text[], %(tenant)s::text[], %(trace_id)s::text[], %(source)s::text[], %(event_id)s::text[],
        %(body_hash)s::bytea[], %(definition)s::text[], %(input)s::text[], %(traceparent)s::text[], %(via)s::text[],
        %(actor)s::text[], %(key_id)s::text[], %(address)s::text[]
    ) as asked (
        job_id, tenant, trace_id, source, event_id, body_hash, definition, input, traceparent, via, actor, key_id, address
    )
), new as (
    select * from asked
    where (select jobs.job_id from jobs where jobs.job_id = asked.job_id) is null
), allowed as (
    select tenant, jobs, coalesce(max_queued_jobs, %(max_queued_jobs)s) as queued,
        coalesce(max_submits_per_minute, %(max_submits_per_minute)s) as submits,
        make_interval(secs => floor(60000000.0 / nullif(
            coalesce(max_submits_per_minute, %(max_submits_per_minute)s), 0
        ))::float8 / 1000000) as spacing
    from (select tenant, count(*)::int as jobs from new group by tenant) as askers left join tenant_limits using (tenant)
), limited as materialized (
    select tenant_usage.tenant, jobs, queued, submits, spacing
    from tenant_usage join allowed using (tenant)
    where queued > 0 or submits > 0
    order by tenant
    for update of tenant_usage
), charged as (
    update tenant_usage
    set room = room - case when queued > 0 then jobs else 0 end,
        submits_until = case when submits > 0 then greatest(submits_until, clock_timestamp()) + spacing * jobs
            else submits_until end
    from limited
    where tenant_usage.tenant = limited.tenant
        and (queued = 0 or (room >= jobs and room_of = queued))
        and (submits = 0
            or greatest(submits_until, clock_timestamp()) + spacing * jobs <= clock_timestamp() + interval '1 minute')
    returning tenant_usage.tenant
), startable as (
    select case when %(slots)s > 0 and %(max_running_jobs)s = 0
        and not exists (select from tenant_limits where max_running_jobs > 0)
        and not exists (select from jobs where status = 'queued' and due_at <= now())
        then %(slots)s else 0 end as slots
), accepted as (
    insert into jobs (
        job_id, tenant, trace_id, source, event_id, body_hash, definition, input, traceparent,
        status, attempt, fence, lease_owner, lease_until, started_at
    )
    select job_id, tenant, trace_id, source, event_id, body_hash, definition::json, input::json, traceparent,
        case when starts then 'running' else 'queued' end, starts::int, starts::int,
        case when starts then %(owner)s end,
        case when starts then now() + make_interval(secs => %(lease_s)s) end, case when starts then now() end
    from (
        select new.*, row_number() over (order by job_id) <= slots as starts
        from new join allowed using (tenant) cross join startable
        where (queued = 0 and submits = 0) or tenant in (select tenant from charged)
    ) as admitted
    order by job_id
    on conflict do nothing
    returning job_id, tenant, status
), audited as (
    insert into audit (action, outcome, actor, key_id, tenant, job_id, address, via)
    select distinct on (job_id) 'submit', 'done', actor, key_id, tenant, job_id, address, via
    from accepted join asked using (job_id, tenant)
    order by job_id
)
select job_id, status = 'running' as is_started,
    case when status = 'queued' then pg_notify('agent_executor_queued', '') end
from accepted;

-- name: owner
-- Who holds this job id, or this event's source and id. Another tenant's job is like one of another body.
select job_id, status, tenant = %(tenant)s and body_hash = %(body_hash)s as is_same
from jobs
where job_id = %(job_id)s or (tenant = %(tenant)s and source = %(source)s and event_id = %(event_id)s)
order by job_id = %(job_id)s desc;

-- name: claim_in_turn
-- Where any tenant has a limit of running jobs, claims wait for each other, since each has to see what the one before has
-- claimed. A statement of its own, in the same transaction: the claim's snapshot has to be taken after the wait.
select pg_advisory_xact_lock(hashtextextended('agent_executor claim', 0))
where %(max_running_jobs)s > 0 or exists (select from tenant_limits where max_running_jobs > 0);

-- name: claim
-- Up to `slots` jobs: those whose worker fell silent, then those that are due. A slot goes to the tenant that has the
-- fewest running, of several to the one whose job is due longest; within a tenant the longest due comes first. The first
-- job of each tenant is found by leaping through the index, so that no queue is read further than is claimed of it; some
-- more are looked at than there are slots, since others may just be claiming the first ones.
-- The fence grows with every claim. An attempt is counted, unless the lease ran out through no fault of the job:
-- PostgreSQL was started since it was last renewed, or it is our own from a claim or a release whose answer was lost.
-- `held` are those that we know of, and perhaps still stop: they are not for us.
with recursive silent as (
    select job_id, lease_owner = %(owner)s
        or pg_postmaster_start_time() > lease_until - make_interval(secs => %(lease_s)s) as excused
    from jobs
    where status = 'running' and case
        when lease_owner = %(owner)s then job_id <> all(%(held)s::text[])
        else %(take_over)s and lease_until < now() and (
            attempt < %(max_attempts)s
            or pg_postmaster_start_time() > lease_until - make_interval(secs => %(lease_s)s)
        )
    end
    order by lease_until, job_id
    limit %(slots)s
    for update skip locked
), busy as (
    select tenant, count(*) as jobs from jobs where status = 'running' group by tenant
), queues as (
    (select tenant, due_at from jobs where status = 'queued' order by tenant, due_at limit 1)
    union all
    select next.tenant, next.due_at from queues cross join lateral (
        select tenant, due_at from jobs
        where status = 'queued' and jobs.tenant > queues.tenant order by tenant, due_at limit 1
    ) as next
), contenders as (
    select tenant, coalesce(busy.jobs, 0) as running,
        nullif(coalesce(max_running_jobs, %(max_running_jobs)s), 0) - coalesce(busy.jobs, 0) as room
    from queues left join busy using (tenant) left join tenant_limits using (tenant)
    where due_at <= now()
        and coalesce(nullif(coalesce(max_running_jobs, %(max_running_jobs)s), 0) > coalesce(busy.jobs, 0), true)
    order by coalesce(busy.jobs, 0), due_at, tenant
    limit %(slots)s + 64
), candidates as (
    select job_id, due_at,
        running + row_number() over (partition by contenders.tenant order by due_at, job_id) as place
    from contenders cross join lateral (
        select job_id, due_at from jobs
        where jobs.tenant = contenders.tenant and status = 'queued' and due_at <= now()
            and job_id <> all(%(held)s::text[])
        order by due_at, job_id
        limit least(room, %(slots)s + 256 / (select count(*) from contenders))
    ) as first
), waiting as (
    select jobs.job_id, false as excused
    from unnest(array(select job_id from candidates order by place, due_at, job_id))
        with ordinality as candidate (job_id, turn)
    cross join lateral (
        select job_id, due_at from jobs
        where jobs.job_id = candidate.job_id and status = 'queued'
        limit 1
        for update skip locked
    ) as jobs
    where due_at <= now()
    order by turn
    limit %(slots)s - (select count(*) from silent)
), found as (
    select * from silent union all select * from waiting
)
update jobs
set status = 'running', attempt = attempt + case when excused then 0 else 1 end, fence = fence + 1,
    lease_owner = %(owner)s, lease_until = now() + make_interval(secs => %(lease_s)s),
    started_at = coalesce(started_at, now()), updated_at = now()
from found
where jobs.job_id = found.job_id
returning jobs.job_id, tenant, trace_id, source, event_id, definition, input, traceparent, attempt, fence, coalesce(
    (select json_object_agg(interrupt_id, value) from answers where answers.job_id = jobs.job_id), '{}'
) as answers, extract(epoch from now() - started_at)::float8 as age_s, coalesce(usage, '{}') as usage;

-- name: release
-- Give a running job back: whoever claims it next goes on from its last checkpoint, at once unless there is
-- a delay. It counts as no attempt.
with released as (
    update jobs
    set status = 'queued', attempt = attempt - 1, lease_owner = null, lease_until = null, updated_at = now(),
        due_at = greatest(due_at, case when %(delay_s)s > 0 then now() + make_interval(secs => %(delay_s)s) end)
    where job_id = %(job_id)s and fence = %(fence)s and status = 'running'
    returning job_id
)
select pg_notify('agent_executor_queued', '') from released;

-- name: retry
-- Put a job back after a failure that may pass: it is due again after 2, 4, 8, ... 300 seconds, less up to half of that.
update jobs
set status = 'queued', error = %(error)s, lease_owner = null, lease_until = null, updated_at = now(),
    usage = coalesce(%(usage)s::json, usage),
    due_at = now() + make_interval(secs => least(300, power(2, least(attempt, 10))) * (1 - random() / 2))
where job_id = %(job_id)s and fence = %(fence)s and status = 'running'
returning due_at;

-- name: finish
-- Record the outcomes of many claims that still hold, and the events that announce them, together. The outcomes that come
-- back are recorded, now or before. A row that somebody has locked is passed over in company, and waited for
-- alone: nobody waits for another job's lock. Letters that stay in hand are not due for
-- so many seconds: whoever records the outcome delivers them.
with ended as (
    select * from unnest(
        %(job_ids)s::text[], %(tenants)s::text[], %(fences)s::bigint[], %(statuses)s::text[], %(results)s::text[],
        %(errors)s::text[], %(usages)s::text[], %(outcome_ids)s::text[], %(event_counts)s::int[]
    ) as ended (job_id, tenant, fence, status, result, error, usage, outcome_id, event_count)
), held as materialized (
    select jobs.* from ended cross join lateral (
        select job_id, tenant, fence from jobs
        where jobs.job_id = ended.job_id and jobs.fence = ended.fence and jobs.status = 'running'
        for update skip locked
    ) as jobs
    where jobs.tenant = ended.tenant
), finished as (
    update jobs
    set status = ended.status, result = ended.result::json, error = ended.error::json,
        usage = coalesce(ended.usage::json, jobs.usage), outcome_id = ended.outcome_id, interrupts = null,
        event_count = ended.event_count, lease_owner = null, lease_until = null, finished_at = now(), updated_at = now()
    from held join ended using (job_id, tenant, fence)
    where jobs.job_id = held.job_id
    returning jobs.job_id, jobs.tenant, jobs.outcome_id
), announced as (
    insert into outbox (msg_id, job_id, target, subject, event, tries, due_at)
    select msg_id, job_id, target, subject, event::json, sign(in_hand_s), now() + make_interval(secs => in_hand_s)
    from unnest(
        %(letters_of)s::text[], %(msg_ids)s::text[], %(targets)s::text[], %(subjects)s::text[], %(events)s::text[],
        %(in_hand_s)s::int[]
    ) as letters (job_id, msg_id, target, subject, event, in_hand_s) join finished using (job_id)
)
select outcome_id, tenant, pg_notify('agent_executor_finished', job_id)::text from finished
union all
select outcome_id, tenant, '' from ended
where (tenant, outcome_id) = (select jobs.tenant, jobs.outcome_id from jobs where jobs.job_id = ended.job_id);

-- name: end
-- Record an outcome that is not the worker's, and the events that announce it, together. No row comes back when the fence
-- has moved on; one does when this very outcome is recorded already. The fence is raised, so that a worker that may still
-- run the job can write no more. Only a caller's doing has a `via`, and is audited.
with finished as (
    update jobs
    set status = %(status)s, error = %(error)s, outcome_id = %(outcome_id)s, interrupts = null, fence = fence + 1,
        event_count = 0, lease_owner = null, lease_until = null, finished_at = now(), updated_at = now()
    where job_id = %(job_id)s and tenant = %(tenant)s and fence = %(fence)s and status = any(%(out_of)s::text[])
        and (not %(if_silent)s or lease_until < now())
    returning job_id
), announced as (
    insert into outbox (msg_id, job_id, target, subject, event)
    select msg_id, job_id, target, subject, event::json
    from finished, unnest(%(msg_ids)s::text[], %(targets)s::text[], %(subjects)s::text[], %(events)s::text[])
        as letters (msg_id, target, subject, event)
), audited as (
    insert into audit (action, outcome, actor, key_id, tenant, job_id, address, via)
    select 'cancel', 'done', %(actor)s, %(key_id)s, %(tenant)s, job_id, %(address)s, %(via)s
    from finished where %(via)s::text is not null
)
select pg_notify('agent_executor_finished', job_id)::text from finished
union all
select '' from jobs where job_id = %(job_id)s and tenant = %(tenant)s and outcome_id = %(outcome_id)s;

-- name: interrupt
-- Record what a job asks and the events that announce it, together; or, where a part of it was answered meanwhile, put it
-- back. An answer that was given and is asked for again was not taken, and is dropped. No row comes back when the fence has
-- moved on or another answer has come.
with interrupted as (
    update jobs
    set status = %(status)s, interrupts = %(interrupts)s, event_count = %(event_count)s, attempt = 0, error = null,
        lease_owner = null, lease_until = null, due_at = now(), updated_at = now(),
        usage = coalesce(%(usage)s::json, usage)
    where job_id = %(job_id)s and fence = %(fence)s and status = 'running' and answer_count = %(answer_count)s
    returning job_id
), announced as (
    insert into outbox (msg_id, job_id, target, subject, event)
    select msg_id, job_id, target, subject, event::json
    from interrupted, unnest(%(msg_ids)s::text[], %(targets)s::text[], %(subjects)s::text[], %(events)s::text[])
        as letters (msg_id, target, subject, event)
), dropped as (
    delete from answers using interrupted
    where answers.job_id = interrupted.job_id and interrupt_id = any(%(dropped)s::text[])
)
select job_id, case when %(status)s = 'queued' then pg_notify('agent_executor_queued', '') end from interrupted;

-- name: resume
-- Store an answer, and put the job back if it waits for one. No row comes back when the job has changed since it was
-- looked at. The count lets whoever is about to interrupt the job see that an answer has come.
with answered as (
    update jobs
    set status = case when status = 'interrupted' then 'queued' else status end,
        attempt = case when status = 'interrupted' then 0 else attempt end,
        due_at = case when status = 'interrupted' then now() else due_at end,
        answer_count = answer_count + 1, updated_at = now()
    where job_id = %(job_id)s and tenant = %(tenant)s and fence = %(fence)s and status = %(status)s
        and answer_count = %(answer_count)s
    returning job_id, status
), stored as (
    insert into answers (job_id, interrupt_id, value, request_id)
    select job_id, %(interrupt_id)s, %(value)s, %(request_id)s from answered
), audited as (
    insert into audit (action, outcome, actor, key_id, tenant, job_id, address, via)
    select 'resume', 'done', %(actor)s, %(key_id)s, %(tenant)s, job_id, %(address)s, %(via)s from answered
)
select status, pg_notify('agent_executor_queued', '') from answered;

-- name: answers
-- What a job asked, and every answer to it.
select status, fence, trace_id, interrupts, answer_count, coalesce(
    (select json_agg(answers order by answered_at) from answers where answers.job_id = jobs.job_id), '[]'
) as answers
from jobs
where job_id = %(job_id)s and tenant = %(tenant)s;

-- name: silent_for_good
-- Running jobs whose worker fell silent in their last attempt, and not because PostgreSQL was started since.
select job_id, tenant, trace_id, source, event_id, definition, input, traceparent, attempt, fence
from jobs
where status = 'running' and lease_until < now() and attempt >= %(max_attempts)s
    and pg_postmaster_start_time() <= lease_until - make_interval(secs => %(lease_s)s)
limit 20;

-- name: redrive
-- A failed job again, from its last checkpoint, with all its attempts before it.
with redriven as (
    update jobs
    set status = 'queued', attempt = 0, due_at = now(), result = null, error = null, outcome_id = null,
        finished_at = null, updated_at = now()
    where job_id = %(job_id)s and tenant = %(tenant)s and status = 'failed'
    returning job_id
), audited as (
    insert into audit (action, outcome, actor, key_id, tenant, job_id, address, via)
    select 'redrive', 'done', %(actor)s, %(key_id)s, %(tenant)s, job_id, %(address)s, %(via)s from redriven
)
select pg_notify('agent_executor_queued', '') from redriven;

-- name: announce_again
-- Publish a stored outcome once more for another request; the event is the same, the message id is not.
insert into outbox (msg_id, job_id, target, subject, event)
select left(outcome_id || ':' || %(request_id)s, 500), job_id, 'nats', subject, event
from jobs join lateral (
    select subject, event from outbox
    where outbox.job_id = jobs.job_id and msg_id = jobs.outcome_id
) stored on true
where job_id = %(job_id)s and tenant = %(tenant)s and outcome_id is not null
on conflict (msg_id) do update set published_at = null, due_at = now(), tries = 0;

-- name: job
select job_id, trace_id, traceparent, status, attempt, fence, result, error, created_at, due_at, started_at, finished_at,
    updated_at, interrupts,
    array(select interrupt_id from answers where answers.job_id = jobs.job_id) as answered
from jobs
where job_id = %(job_id)s and tenant = %(tenant)s;

-- name: jobs
-- A page of a tenant's jobs, newest first; the cursor is the last row of the page before. A status stands in the statement
-- itself, `of_status`, since an index of jobs in one status serves no parameter.
select job_id, trace_id, status, attempt, created_at, due_at, started_at, finished_at, updated_at
from jobs
where tenant = %(tenant)s {of_status}
    and (created_at, job_id) < (coalesce(%(before)s::timestamptz, 'infinity'), coalesce(%(before_id)s::text, ''))
order by created_at desc, job_id desc
limit %(limit)s;

-- name: outcome
-- The event that announced this job's outcome, if it has one.
select outbox.event
from jobs join outbox on outbox.job_id = jobs.job_id and outbox.msg_id = jobs.outcome_id
where jobs.job_id = %(job_id)s and jobs.tenant = %(tenant)s;

-- name: announce_rejection
-- A failed event for a request that never became a job, once; silent where the job exists, whosever it is.
insert into outbox (msg_id, job_id, target, subject, event)
select msg_id, %(job_id)s, target, subject, event::json
from unnest(%(msg_ids)s::text[], %(targets)s::text[], %(subjects)s::text[], %(events)s::text[])
    as letters (msg_id, target, subject, event)
where not exists (select from jobs where job_id = %(job_id)s)
on conflict (msg_id) do nothing;

-- name: endings
-- What the last events of these jobs say, and after how many others they come: of those that ended or are interrupted.
select job_id, trace_id, fence, event_count, status, error, interrupts
from jobs
where job_id = any(%(job_ids)s) and (finished_at is not null or status = 'interrupted');

-- name: waiting
-- What waits: jobs that are due, and results that are not delivered.
select
    (select count(*) from jobs where status = 'queued' and due_at <= now()) as jobs,
    (select count(*) from outbox where published_at is null) as results;

-- name: expire_jobs
-- Delete a batch of jobs that ended long ago, with everything of theirs. What is not delivered yet is kept, and so are
-- all checkpoints of a job that may go on: deep agents keep their messages in the writes of old ones.
with old as (
    select job_id from jobs
    where finished_at < now() - make_interval(days => %(days)s)
        and not exists (select from outbox where outbox.job_id = jobs.job_id and published_at is null)
    order by finished_at
    limit %(limit)s
    for update skip locked
), writes as (
    delete from checkpoint_writes using old where thread_id = old.job_id
), blobs as (
    delete from checkpoint_blobs using old where thread_id = old.job_id
), checkpoints as (
    delete from checkpoints using old where thread_id = old.job_id
), letters as (
    delete from outbox using old where outbox.job_id = old.job_id
)
delete from jobs using old where jobs.job_id = old.job_id;

-- name: expire_outbox
-- Delete a batch of what was delivered long ago and belongs to no job: answers to refused requests.
delete from outbox where id in (
    select id from outbox
    where published_at < now() - make_interval(days => %(days)s)
        and not exists (select from jobs where jobs.job_id = outbox.job_id)
    limit %(limit)s
    for update skip locked
);

-- name: ping
select from jobs limit 1;
