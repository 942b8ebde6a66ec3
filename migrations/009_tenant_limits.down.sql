-- migrate: no-transaction
-- Nothing is limited any more, and what operators allowed single tenants is gone.
create index concurrently if not exists jobs_queued on jobs (due_at) where status = 'queued';
drop index concurrently if exists jobs_queued_of_tenant;
drop table if exists open_streams;
drop table if exists tenant_usage;
drop table if exists tenant_limits;
