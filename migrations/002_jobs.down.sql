drop table outbox, jobs;
