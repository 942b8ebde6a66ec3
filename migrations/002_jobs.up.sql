-- The ledger: one row per job, which is also the queue. States and transitions: agent_executor/job.py.
create table jobs (
    job_id text primary key,
    trace_id text not null,
    source text,
    event_id text,
    body_hash bytea not null,
    definition json not null,
    input json not null,
    traceparent text,
    status text not null default 'queued'
        check (status in ('queued', 'running', 'interrupted', 'completed', 'failed', 'cancelled')),
    attempt integer not null default 0,
    fence bigint not null default 0,
    lease_owner text,
    lease_until timestamptz,
    result json,
    error json,
    outcome_id text,
    created_at timestamptz not null default now(),
    started_at timestamptz,
    finished_at timestamptz,
    updated_at timestamptz not null default now(),
    unique (source, event_id),
    check ((status = 'running') = (lease_owner is not null and lease_until is not null)),
    check ((status in ('completed', 'failed', 'cancelled')) = (outcome_id is not null and finished_at is not null))
);

create index jobs_queued on jobs (created_at) where status = 'queued';
create index jobs_leased on jobs (lease_until) where status = 'running';
create index jobs_listed on jobs (created_at desc, job_id desc);

-- Results waiting to be delivered. job_id may name a job that was refused and so has no row.
create table outbox (
    id bigint generated always as identity primary key,
    msg_id text not null unique,
    job_id text not null,
    target text not null check (target in ('nats', 'sink')),
    subject text not null,
    event json not null,
    tries integer not null default 0,
    due_at timestamptz not null default now(),
    created_at timestamptz not null default now(),
    published_at timestamptz
);

create index outbox_due on outbox (target, id) where published_at is null;
create index outbox_job on outbox (job_id);
