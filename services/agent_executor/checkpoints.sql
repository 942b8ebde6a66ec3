-- What checkpoints are read and pruned with. The tables and what stands in them are langgraph-checkpoint-postgres'.

-- name: bases
-- All versions that the differences among a checkpoint's values and pending writes are made from, as one more column of
-- langgraph's query: pairs of channel and version, and the type and bytes that stand there.
with recursive needed (channel, version) as (
    (
        select blob.channel, substr(blob.type, 15)
        from jsonb_each_text(checkpoints.checkpoint -> 'channel_versions') as current (channel, version)
            join checkpoint_blobs as blob on blob.thread_id = checkpoints.thread_id
                and blob.checkpoint_ns = checkpoints.checkpoint_ns
                and blob.channel = current.channel and blob.version = current.version
        where starts_with(blob.type, 'difference of ')
        union
        select write.channel, substr(write.type, 15)
        from checkpoint_writes as write
        where write.thread_id = checkpoints.thread_id and write.checkpoint_ns = checkpoints.checkpoint_ns
            and write.checkpoint_id = checkpoints.checkpoint_id and starts_with(write.type, 'difference of ')
    )
    union
    select base.channel, substr(base.type, 15)
    from needed
        join checkpoint_blobs as base on base.thread_id = checkpoints.thread_id
            and base.checkpoint_ns = checkpoints.checkpoint_ns
            and base.channel = needed.channel and base.version = needed.version
    where starts_with(base.type, 'difference of ')
)
select array_agg(array[
    convert_to(base.channel, 'UTF8'), convert_to(base.version, 'UTF8'), convert_to(base.type, 'UTF8'), base.blob
])
from needed
    join checkpoint_blobs as base on base.thread_id = checkpoints.thread_id
        and base.checkpoint_ns = checkpoints.checkpoint_ns
        and base.channel = needed.channel and base.version = needed.version;

-- name: prune_blobs
-- Delete these versions of a channel, but for those that others are differences of.
with recursive kept (version, type) as (
    (
        select version, type from checkpoint_blobs
        where thread_id = %(thread_id)s and checkpoint_ns = %(namespace)s and channel = %(channel)s
            and version <> all(%(versions)s)
        union
        select null, type from checkpoint_writes
        where thread_id = %(thread_id)s and checkpoint_ns = %(namespace)s and channel = %(channel)s
            and starts_with(type, 'difference of ')
    )
    union
    select base.version, base.type
    from kept
        join checkpoint_blobs as base on base.thread_id = %(thread_id)s and base.checkpoint_ns = %(namespace)s
            and base.channel = %(channel)s and base.version = substr(kept.type, 15)
    where starts_with(kept.type, 'difference of ')
)
delete from checkpoint_blobs
where thread_id = %(thread_id)s and checkpoint_ns = %(namespace)s and channel = %(channel)s
    and version = any(%(versions)s) and not exists (select from kept where kept.version = checkpoint_blobs.version);

-- name: usage
-- What the runs of a thread have used so far: every checkpoint says it, and none says less than those before.
select max((metadata -> 'usage' ->> 'model_calls')::bigint) as model_calls,
    max((metadata -> 'usage' ->> 'tokens')::bigint) as tokens,
    max((metadata -> 'usage' ->> 'seconds')::float) as seconds
from checkpoints
where thread_id = %(job_id)s;
