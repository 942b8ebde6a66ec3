-- What the runs of a job that ended have used: model calls, tokens and seconds. A question writes no checkpoint to keep it.
alter table jobs add column usage json;
