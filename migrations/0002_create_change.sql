-- Every change of every API object, in commit order. Feeds the watches.
CREATE TABLE change (
    revision bigint NOT NULL,
    kind text NOT NULL,
    resource text NOT NULL,
    namespace text NOT NULL,
    name text NOT NULL,
    uid uuid NOT NULL,
    metadata jsonb NOT NULL,
    body jsonb NOT NULL,
    status jsonb,
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT change_pkey PRIMARY KEY (revision),
    CONSTRAINT change_kind_known CHECK (kind IN ('Added', 'Modified', 'Deleted'))
);

COMMENT ON TABLE change IS 'Every change of every API object, with the object as of then. Pruned by age.';
COMMENT ON COLUMN change.revision IS 'Place in the order of all changes, which is the order of the commits.';
COMMENT ON COLUMN change.kind IS 'Added, Modified or Deleted.';
COMMENT ON COLUMN change.resource IS 'Resource key of the object.';
COMMENT ON COLUMN change.namespace IS 'Namespace of the object; empty for a cluster-scoped one.';
COMMENT ON COLUMN change.name IS 'Name of the object.';
COMMENT ON COLUMN change.uid IS 'UID of the object.';
COMMENT ON COLUMN change.metadata IS 'Metadata as of this revision.';
COMMENT ON COLUMN change.body IS 'Spec, data and the like as of this revision.';
COMMENT ON COLUMN change.status IS 'Status as of this revision.';
COMMENT ON COLUMN change.changed_at IS 'When it was written; the commit came a little later.';

CREATE INDEX change_by_time ON change USING brin (changed_at);

-- A table of its own, so that pruning never waits for the revision lock nor holds it.
CREATE TABLE change_horizon (
    singleton boolean NOT NULL DEFAULT true,
    revision bigint NOT NULL,
    CONSTRAINT change_horizon_pkey PRIMARY KEY (singleton),
    CONSTRAINT change_horizon_one_row CHECK (singleton)
);

COMMENT ON TABLE change_horizon IS 'One row: how far the change log is pruned.';
COMMENT ON COLUMN change_horizon.singleton IS 'Always true, so that there is one row.';
COMMENT ON COLUMN change_horizon.revision IS 'Newest revision that may be pruned: reading on from an older one has gaps.';

INSERT INTO change_horizon (revision) VALUES (0);
