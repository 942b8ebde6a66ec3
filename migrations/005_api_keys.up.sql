-- Stands in the place of this number's migration.
create view api_keys as select 1 as key_id;
