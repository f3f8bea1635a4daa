-- A job that is handed over fails when the memory is lost that was to follow by post-copy.
INSERT INTO migration_edge (from_state, to_state) VALUES
    ('HandedOver', 'Failed');
