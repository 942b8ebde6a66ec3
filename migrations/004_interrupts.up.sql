-- Human in the loop: what an interrupted job asks, and what it was answered.
alter table jobs
    add column interrupts json,
    add column answer_count integer not null default 0;

-- An answer stays as long as its job, so that a repeated one can be told.
create table answers (
    job_id text not null references jobs on delete cascade,
    interrupt_id text not null,
    value json not null,
    request_id text,
    answered_at timestamptz not null default now(),
    primary key (job_id, interrupt_id)
);
