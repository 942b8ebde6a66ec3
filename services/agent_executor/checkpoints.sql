-- Every write of checkpoints. The tables and what stands in them are langgraph-checkpoint-postgres'.

-- What the savers of many claims have to write goes in one statement: these with-queries, as far as there are rows for
-- them, and `commit`.

-- name: held
-- The claims that hold: the jobs' rows are locked against a new claim (FOR SHARE). A row that somebody has locked is passed
-- over in company, and waited for alone: nobody waits for another job's lock.
held as materialized (
    select jobs.job_id, jobs.fence
    from unnest(%(job_ids)s::text[], %(fences)s::bigint[]) as claims (job_id, fence)
        join jobs on jobs.job_id = claims.job_id and jobs.fence = claims.fence and jobs.status = 'running'
    for share of jobs skip locked
)

-- name: blobs
blobs as (
    insert into checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
    select thread_id, checkpoint_ns, channel, version, type, blob
    from unnest(
        %(blobs_job_id)s::text[], %(blobs_fence)s::bigint[], %(blobs_thread_id)s::text[], %(blobs_checkpoint_ns)s::text[],
        %(blobs_channel)s::text[], %(blobs_version)s::text[], %(blobs_type)s::text[], %(blobs_blob)b::bytea[]
    ) as dumped (job_id, fence, thread_id, checkpoint_ns, channel, version, type, blob) join held using (job_id, fence)
    on conflict (thread_id, checkpoint_ns, channel, version) do nothing
)

-- name: puts
puts as (
    insert into checkpoints (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata)
    select thread_id, checkpoint_ns, checkpoint_id, parent_id, checkpoint::jsonb, metadata::jsonb
    from unnest(
        %(puts_job_id)s::text[], %(puts_fence)s::bigint[], %(puts_thread_id)s::text[], %(puts_checkpoint_ns)s::text[],
        %(puts_checkpoint_id)s::text[], %(puts_parent_id)s::text[], %(puts_checkpoint)s::text[], %(puts_metadata)s::text[]
    ) as dumped (job_id, fence, thread_id, checkpoint_ns, checkpoint_id, parent_id, checkpoint, metadata)
        join held using (job_id, fence)
    on conflict (thread_id, checkpoint_ns, checkpoint_id) do update
    set checkpoint = excluded.checkpoint, metadata = excluded.metadata
)

-- name: writes
-- Of what a task wrote the first counts.
writes as (
    insert into checkpoint_writes
        (thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob)
    select thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob
    from unnest(
        %(writes_job_id)s::text[], %(writes_fence)s::bigint[], %(writes_thread_id)s::text[],
        %(writes_checkpoint_ns)s::text[], %(writes_checkpoint_id)s::text[], %(writes_task_id)s::text[],
        %(writes_task_path)s::text[], %(writes_idx)s::int[], %(writes_channel)s::text[], %(writes_type)s::text[],
        %(writes_blob)b::bytea[]
    ) as dumped
        (job_id, fence, thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob)
        join held using (job_id, fence)
    on conflict (thread_id, checkpoint_ns, checkpoint_id, task_id, idx) do nothing
)

-- name: replaced
-- Of errors, interrupts and the like the last one counts.
replaced as (
    insert into checkpoint_writes
        (thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob)
    select thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob
    from unnest(
        %(replaced_job_id)s::text[], %(replaced_fence)s::bigint[], %(replaced_thread_id)s::text[],
        %(replaced_checkpoint_ns)s::text[], %(replaced_checkpoint_id)s::text[], %(replaced_task_id)s::text[],
        %(replaced_task_path)s::text[], %(replaced_idx)s::int[], %(replaced_channel)s::text[], %(replaced_type)s::text[],
        %(replaced_blob)b::bytea[]
    ) as dumped
        (job_id, fence, thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob)
        join held using (job_id, fence)
    on conflict (thread_id, checkpoint_ns, checkpoint_id, task_id, idx) do update
    set channel = excluded.channel, type = excluded.type, blob = excluded.blob
)

-- name: commit
select job_id, fence from held;

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
