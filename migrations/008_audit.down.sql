-- What was written down is lost.
drop table audit;
drop function audit_kept;
