-- The legal steps of a job. crates/model/src/migration/job.rs holds the same; a test compares.
CREATE TABLE migration_edge (
    from_state text NOT NULL,
    to_state text NOT NULL,
    CONSTRAINT migration_edge_pkey PRIMARY KEY (from_state, to_state)
);

COMMENT ON TABLE migration_edge IS 'The legal steps of a migration job.';
COMMENT ON COLUMN migration_edge.from_state IS 'State before.';
COMMENT ON COLUMN migration_edge.to_state IS 'State after.';

INSERT INTO migration_edge (from_state, to_state) VALUES
    ('Pending', 'Placing'),
    ('Pending', 'Failed'),
    ('Placing', 'Reserved'),
    ('Placing', 'Failed'),
    ('Reserved', 'Preparing'),
    ('Reserved', 'Aborting'),
    ('Preparing', 'Prepared'),
    ('Preparing', 'Aborting'),
    ('Prepared', 'Copying'),
    ('Prepared', 'Aborting'),
    ('Copying', 'SwitchAllowed'),
    ('Copying', 'Aborting'),
    ('SwitchAllowed', 'HandedOver'),
    ('SwitchAllowed', 'Aborting'),
    ('HandedOver', 'Succeeded'),
    ('Aborting', 'Failed'),
    ('Aborting', 'HandedOver'),
    ('Aborting', 'NeedsFencing'),
    ('NeedsFencing', 'Aborting'),
    ('NeedsFencing', 'HandedOver'),
    ('NeedsFencing', 'Failed');
