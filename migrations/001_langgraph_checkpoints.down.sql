drop table checkpoint_writes, checkpoint_blobs, checkpoints, checkpoint_migrations;
