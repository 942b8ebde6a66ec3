-- Every write of checkpoints. The tables and what stands in them are langgraph-checkpoint-postgres'.

-- What the savers of many claims have to write goes in one statement: these with-queries, as far as there are rows for
-- them, and `commit`.

-- name: held
-- The claims that hold: the jobs' rows are locked against a new claim (FOR SHARE). A row that somebody has locked is passed
-- over in company, and waited for alone: nobody waits for another job's lock. Why `lateral`, ledger.sql says.
held as materialized (
    select jobs.*
    from unnest(%(job_ids)s::text[], %(fences)s::bigint[]) as claims (job_id, fence) cross join lateral (
        select job_id, fence from jobs
        where jobs.job_id = claims.job_id and jobs.fence = claims.fence and jobs.status = 'running'
        for share skip locked
    ) as jobs
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
