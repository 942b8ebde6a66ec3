-- Every query of the outbox: results waiting to be delivered, one row per destination.

-- name: due
-- A batch of what is due for one kind of destination, kept from other processes while the transaction is open.
select id, msg_id, subject, event
from outbox
where target = %(target)s and published_at is null and due_at <= now()
order by id
limit %(limit)s
for update skip locked;

-- name: published
update outbox set published_at = now() where id = any(%(ids)s);

-- name: postpone
-- Try again after 1, 2, 4, ... 60 seconds.
update outbox
set tries = tries + 1, due_at = now() + make_interval(secs => least(60, power(2, least(tries, 6))))
where id = any(%(ids)s);
