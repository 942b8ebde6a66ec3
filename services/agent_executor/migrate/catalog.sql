-- What a schema holds: one row an object, with its definition as PostgreSQL words it. Not in it: the runner's
-- ledger, what belongs to an extension, owners, privileges, comments, data.
with relation as (
    select c.*, case relkind when 'r' then 'table ' when 'v' then 'view ' when 'm' then 'materialized view '
        when 'S' then 'sequence ' when 'p' then 'partitioned table ' when 'c' then 'composite type ' else 'relation ' end as kind
    from pg_class c
    where c.relnamespace = to_regnamespace(%(schema)s) and c.relname <> 'schema_migrations'
        and not exists (select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e')
)
select kind || relname,
    concat_ws(' ', case relpersistence when 'u' then 'unlogged' end, array_to_string(reloptions, ', '),
        case when relrowsecurity then 'row level security' end, case when relforcerowsecurity then 'forced' end,
        case when relkind in ('v', 'm') then pg_get_viewdef(oid) end, 'by ' || pg_get_partkeydef(oid),
        'of ' || (select string_agg(inhparent::regclass::text, ', ' order by inhseqno) from pg_inherits where inhrelid = oid),
        pg_get_expr(relpartbound, oid), (select concat_ws(' ', format_type(seqtypid, null), 'start', seqstart, 'increment',
            seqincrement, 'from', seqmin, 'to', seqmax, 'cache', seqcache, case when seqcycle then 'cycle' end)
            from pg_sequence where seqrelid = oid))
from relation where relkind in ('r', 'p', 'v', 'm', 'f', 'S', 'c')
union all
select 'column ' || relname || '.' || a.attname,
    concat_ws(' ', format_type(a.atttypid, a.atttypmod), case when a.attnotnull then 'not null' end,
        'default ' || pg_get_expr(d.adbin, d.adrelid), 'identity ' || nullif(a.attidentity::text, ''),
        'generated ' || nullif(a.attgenerated::text, ''), 'collate ' || (select collname from pg_collation where oid = nullif(a.attcollation, t.typcollation)),
        'at ' || (rank() over (partition by r.oid order by a.attnum)))
from relation r
join pg_attribute a on a.attrelid = r.oid and a.attnum > 0 and not a.attisdropped
join pg_type t on t.oid = a.atttypid
left join pg_attrdef d on d.adrelid = r.oid and d.adnum = a.attnum
where relkind in ('r', 'p', 'f', 'c')
union all
select 'constraint ' || relname || '.' || conname, pg_get_constraintdef(k.oid) || case when convalidated then '' else ' not valid' end
from relation r join pg_constraint k on k.conrelid = r.oid where contype <> 'n'
union all
select 'index ' || r.relname, pg_get_indexdef(r.oid) || case when indisvalid then '' else ' INVALID' end
from relation r join pg_index i on i.indexrelid = r.oid
where not exists (select from pg_class t where t.oid = i.indrelid and t.relname = 'schema_migrations')
union all
select 'trigger ' || relname || '.' || tgname, concat_ws(' enabled ', pg_get_triggerdef(t.oid), tgenabled)
from relation r join pg_trigger t on t.tgrelid = r.oid where not tgisinternal
union all
select 'rule ' || relname || '.' || rulename, concat_ws(' enabled ', pg_get_ruledef(w.oid), ev_enabled)
from relation r join pg_rewrite w on w.ev_class = r.oid where rulename <> '_RETURN'
union all
select 'policy ' || relname || '.' || polname,
    concat_ws(' ', polcmd::text, case when polpermissive then '' else 'restrictive' end, pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid))
from relation r join pg_policy p on p.polrelid = r.oid
union all
select 'function ' || p.oid::regprocedure, case when prokind = 'a' then 'aggregate' else pg_get_functiondef(p.oid) end
from pg_proc p
where p.pronamespace = to_regnamespace(%(schema)s)
    and not exists (select from pg_depend d where d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e')
union all
select 'type ' || t.typname, concat_ws(' ', t.typtype::text, format_type(nullif(t.typbasetype, 0), t.typtypmod),
    (select string_agg(enumlabel, ', ' order by enumsortorder) from pg_enum where enumtypid = t.oid),
    (select string_agg(pg_get_constraintdef(k.oid), ' ' order by conname) from pg_constraint k where contypid = t.oid))
from pg_type t
where t.typnamespace = to_regnamespace(%(schema)s) and t.typtype in ('e', 'd', 'r')
    and not exists (select from pg_depend d where d.classid = 'pg_type'::regclass and d.objid = t.oid and d.deptype = 'e')
order by 1
