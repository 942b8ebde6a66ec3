-- Every write of checkpoints. Each statement locks the job's row against a new claim (FOR SHARE), writes only if the claim
-- still holds, and returns a row only then. The tables and what stands in them are langgraph-checkpoint-postgres'.

-- name: put
with held as materialized (
    select from jobs where job_id = %(job_id)s and fence = %(fence)s and status = 'running' for share
), blobs as (
    insert into checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
    select %(thread_id)s, %(checkpoint_ns)s, channel, version, type, blob
    from held, unnest(%(channels)s::text[], %(versions)s::text[], %(types)s::text[], %(blobs)s::bytea[])
        as dumped (channel, version, type, blob)
    on conflict (thread_id, checkpoint_ns, channel, version) do nothing
)
insert into checkpoints (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata)
select %(thread_id)s, %(checkpoint_ns)s, %(checkpoint_id)s, %(parent_id)s, %(checkpoint)s, %(metadata)s
from held
on conflict (thread_id, checkpoint_ns, checkpoint_id) do update
set checkpoint = excluded.checkpoint, metadata = excluded.metadata
returning checkpoint_id;

-- name: put_writes
-- Of errors, interrupts and the like the last one counts (`replaces`); of everything else the first.
with held as materialized (
    select from jobs where job_id = %(job_id)s and fence = %(fence)s and status = 'running' for share
), written as (
    insert into checkpoint_writes
        (thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob)
    select %(thread_id)s, %(checkpoint_ns)s, %(checkpoint_id)s, %(task_id)s, %(task_path)s, idx, channel, type, blob
    from held, unnest(%(indexes)s::int[], %(channels)s::text[], %(types)s::text[], %(blobs)s::bytea[])
        as dumped (idx, channel, type, blob)
    on conflict (thread_id, checkpoint_ns, checkpoint_id, task_id, idx) do update
    set channel = excluded.channel, type = excluded.type, blob = excluded.blob
    where %(replaces)s
)
select from held;

-- name: usage
-- What the runs of a thread have used so far: every checkpoint says it, and none says less than those before.
select max((metadata -> 'usage' ->> 'model_calls')::bigint) as model_calls,
    max((metadata -> 'usage' ->> 'tokens')::bigint) as tokens,
    max((metadata -> 'usage' ->> 'seconds')::float) as seconds
from checkpoints
where thread_id = %(job_id)s;
