CREATE TABLE migration_transition (
    migration_id uuid NOT NULL,
    seq integer NOT NULL,
    from_state text,
    to_state text NOT NULL,
    epoch bigint NOT NULL,
    actor text NOT NULL,
    reason text NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT migration_transition_pkey PRIMARY KEY (migration_id, seq),
    CONSTRAINT migration_transition_job FOREIGN KEY (migration_id) REFERENCES migration (id),
    CONSTRAINT migration_transition_legal FOREIGN KEY (from_state, to_state) REFERENCES migration_edge,
    CONSTRAINT migration_transition_first CHECK (
        (from_state IS NULL) = (seq = 1) AND (seq > 1 OR to_state = 'Pending')
    )
);

COMMENT ON TABLE migration_transition IS 'History of the migration jobs. Append-only, kept for ever.';
COMMENT ON COLUMN migration_transition.migration_id IS 'Which job.';
COMMENT ON COLUMN migration_transition.seq IS 'Place in the history of the job, from 1 without a gap.';
COMMENT ON COLUMN migration_transition.from_state IS 'State before; null for the first.';
COMMENT ON COLUMN migration_transition.to_state IS 'State after.';
COMMENT ON COLUMN migration_transition.epoch IS 'Epoch of the owner that recorded it; 0 for the request.';
COMMENT ON COLUMN migration_transition.actor IS 'Owner that recorded it; request for the request.';
COMMENT ON COLUMN migration_transition.reason IS 'Why.';
COMMENT ON COLUMN migration_transition.at IS 'When.';

CREATE FUNCTION migration_transition_refuse() RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
    RAISE EXCEPTION 'the history of migrations is append-only'
        USING ERRCODE = 'restrict_violation', CONSTRAINT = 'migration_transition_append_only';
END
$$;

COMMENT ON FUNCTION migration_transition_refuse() IS 'Refuses to change history, whoever asks.';

CREATE TRIGGER migration_transition_append_only
BEFORE UPDATE OR DELETE OR TRUNCATE ON migration_transition
FOR EACH STATEMENT EXECUTE FUNCTION migration_transition_refuse();
