-- Who submitted, cancelled, resumed or redrove a job, made or revoked an API key, or was refused. `actor` is the caller's
-- name, null where nobody knows it; `key_id` the API key of the caller, or the one that was made or revoked. `count` is
-- above 1 for refusals alone, of which one row tells several.
create table audit (
    id bigint generated always as identity primary key,
    at timestamptz not null default now(),
    action text not null,
    outcome text not null check (outcome in ('done', 'refused')),
    actor text,
    key_id text,
    tenant text,
    job_id text,
    address text,
    via text not null,
    detail text,
    count bigint not null default 1
);

create index audit_of_job on audit (job_id) where job_id is not null;

-- What was written down stays so, until it is old: AUDIT_RETENTION_DAYS is at least one day.
create function audit_kept() returns trigger language plpgsql as $$
begin
    raise exception 'rows of audit are never changed, and not deleted within a day';
end $$;

create trigger audit_unchanged
    before update or truncate on audit
    for each statement execute function audit_kept();

create trigger audit_undeleted
    before delete on audit
    for each row when (old.at > now() - interval '1 day') execute function audit_kept();
