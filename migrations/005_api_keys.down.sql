drop view api_keys;
