drop table api_keys;
drop function api_keys_changed;
