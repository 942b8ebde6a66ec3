-- migrate: no-transaction
-- Limits per tenant, and a queue that is read tenant by tenant.

-- What an operator allows a tenant instead of the settings. Null: the setting holds; 0: no limit.
create table if not exists tenant_limits (
    tenant text primary key,
    max_queued_jobs integer check (max_queued_jobs >= 0),
    max_running_jobs integer check (max_running_jobs >= 0),
    max_submits_per_minute integer check (max_submits_per_minute >= 0),
    max_open_streams integer check (max_open_streams >= 0),
    max_body_bytes integer check (max_body_bytes >= 0)
);

-- `room`: so many jobs may still be queued, of `room_of`, before they have to be counted again. `submits_until`: up to
-- then the submits of the last minute are spread evenly (the theoretical arrival time of GCRA).
create table if not exists tenant_usage (
    tenant text primary key,
    room integer not null default 0,
    room_of integer not null default 0,
    submits_until timestamptz not null default 'epoch'
);

-- Event streams that processes hold open. Nothing that has to outlive a crash of the server: they are renewed.
create unlogged table if not exists open_streams (
    id text primary key,
    tenant text not null,
    expires_at timestamptz not null
);
create index concurrently if not exists open_streams_of_tenant on open_streams (tenant, expires_at);

-- The queue, in the order in which each tenant's jobs are claimed and counted.
create index concurrently if not exists jobs_queued_of_tenant on jobs (tenant, due_at, job_id) where status = 'queued';
drop index concurrently if exists jobs_queued;
