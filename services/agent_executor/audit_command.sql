-- name: entries
-- The latest entries that fit, the latest first. An actor is found by its name, or by the id of its key.
select at, action, outcome, actor, key_id, tenant, job_id, address, via, count, detail
from audit
where (%(job_id)s::text is null or job_id = %(job_id)s)
    and (%(tenant)s::text is null or tenant = %(tenant)s)
    and (%(actor)s::text is null or %(actor)s in (actor, key_id))
    and (%(since)s::timestamptz is null or at >= %(since)s)
    and (%(age_s)s::float8 is null or at >= now() - make_interval(secs => %(age_s)s))
    and (not %(refused)s or outcome = 'refused')
order by at desc, id desc
limit %(limit)s;
