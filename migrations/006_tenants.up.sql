-- migrate: no-transaction
-- Tenants: every job has one, and those that were here before belong to the default one. An event's source and id name
-- one job of a tenant, so that two tenants cannot be in each other's way; a job id names one job of all.
alter table jobs add column if not exists tenant text not null default 'default';

-- A way back that was cut off may have left it behind.
drop index concurrently if exists jobs_source_event_id_again;

create unique index concurrently if not exists jobs_event on jobs (tenant, source, event_id);
alter table jobs drop constraint if exists jobs_source_event_id_key;

-- Callers list the jobs of their tenant only.
create index concurrently if not exists jobs_of_tenant on jobs (tenant, created_at desc, job_id desc);
drop index concurrently if exists jobs_listed;
