-- Every query of the outbox: results waiting to be delivered, one row per destination.

-- name: take
-- A batch of what is due for one kind of destination, due again after `hidden_s` unless it is delivered meanwhile. No
-- lock outlives this statement: a process that freezes or dies in the middle of a delivery holds up nothing for longer.
-- A job's events go out one after the other, so that none overtakes an older one that is still to be delivered; but for one
-- that nobody took in an hour no other waits.
update outbox set tries = tries + 1, due_at = now() + make_interval(secs => %(hidden_s)s)
where id in (
    select id from outbox
    where target = %(target)s and published_at is null and due_at <= now() and not exists (
        select from outbox older
        where older.job_id = outbox.job_id and older.target = outbox.target and older.id < outbox.id
            and older.published_at is null and older.created_at > now() - interval '1 hour'
    )
    order by id
    limit %(limit)s
    for update skip locked
)
returning job_id, msg_id, subject, event;

-- name: hurry
-- Make everything due that waits for another try. What is under way elsewhere may be delivered twice, under one id.
update outbox set due_at = now() where target = %(target)s and published_at is null and due_at > now();

-- name: published
update outbox set published_at = now() where msg_id = any(%(msg_ids)s::text[]);

-- name: postpone
-- Try again after 1, 2, 4, ... 32 seconds, less up to half of that.
update outbox
set due_at = now() + make_interval(secs => power(2, least(tries - 1, 5)) * (1 - random() / 2))
where msg_id = any(%(msg_ids)s::text[]);
