-- Retries and dead letters: a job waits until its time has come, and no worker may take a forbidden step.
alter table jobs
    add column due_at timestamptz not null default now(),
    add column event_count integer not null default 0;
update jobs set due_at = created_at;

-- The queue, in the order it is claimed in.
drop index jobs_queued;
create index jobs_queued on jobs (due_at) where status = 'queued';

-- Running jobs are few; an index without lease_until lets a renewal be a heap-only update.
drop index jobs_leased;
create index jobs_running on jobs (job_id) where status = 'running';

-- What retention looks for.
create index jobs_finished on jobs (finished_at) where finished_at is not null;
create index outbox_published on outbox (published_at) where published_at is not null;

-- The same transitions as TRANSITIONS in agent_executor/job.py, which explains them; a test compares the two.
create function refuse_job_transition() returns trigger language plpgsql as $$
begin
    raise exception 'job % may not go from % (fence %) to % (fence %)',
        old.job_id, old.status, old.fence, new.status, new.fence
        using errcode = 'check_violation', constraint = 'jobs_transition', table = 'jobs';
end
$$;

create trigger jobs_transition before update on jobs for each row
when (
    new.fence < old.fence
    or (old.status = new.status and new.outcome_id is distinct from old.outcome_id)
    or (old.status <> new.status and (old.status, new.status) not in (
        ('queued', 'running'), ('queued', 'cancelled'),
        ('running', 'queued'), ('running', 'interrupted'), ('running', 'completed'), ('running', 'failed'),
        ('running', 'cancelled'),
        ('interrupted', 'queued'), ('interrupted', 'cancelled'),
        ('failed', 'queued')
    ))
)
execute function refuse_job_transition();
