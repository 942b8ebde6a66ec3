-- migrate: no-transaction
-- The jobs of all tenants become visible to every caller. That is not done where two tenants have jobs of the same source
-- and event id, which were one job before there were tenants.
-- migrate: repeatable
do $$
declare
    found record;
begin
    select source, event_id into found from jobs
    where source is not null group by source, event_id having count(*) > 1 limit 1;
    if found is not null then
        raise exception 'several tenants have a job of source % and event id %', found.source, found.event_id
            using hint = 'delete all but one of such jobs; docs/migrations.md says how they are found';
    end if;
end
$$;

create unique index concurrently if not exists jobs_source_event_id_again on jobs (source, event_id);
create index concurrently if not exists jobs_listed on jobs (created_at desc, job_id desc);
alter table jobs drop constraint if exists jobs_source_event_id_key;
-- migrate: repeatable
alter table jobs add constraint jobs_source_event_id_key unique using index jobs_source_event_id_again;

drop index concurrently if exists jobs_of_tenant;
drop index concurrently if exists jobs_event;
alter table jobs drop column if exists tenant;
