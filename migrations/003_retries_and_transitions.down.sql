drop trigger jobs_transition on jobs;
drop function refuse_job_transition();
drop index outbox_published, jobs_finished, jobs_running, jobs_queued;
create index jobs_leased on jobs (lease_until) where status = 'running';
create index jobs_queued on jobs (created_at) where status = 'queued';
alter table jobs drop column event_count, drop column due_at;
