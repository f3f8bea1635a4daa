CREATE TABLE migration (
    id uuid NOT NULL,
    namespace text NOT NULL,
    name text NOT NULL,
    machine uuid NOT NULL,
    vmi_namespace text NOT NULL,
    vmi_name text NOT NULL,
    state text NOT NULL DEFAULT 'Pending',
    source text,
    target text,
    target_address text,
    priority integer NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    state_since timestamptz NOT NULL DEFAULT clock_timestamp(),
    finished_at timestamptz,
    epoch bigint NOT NULL DEFAULT 0,
    owner text,
    lease_expires_at timestamptz,
    cancel text,
    failure text,
    trace text NOT NULL,
    history jsonb NOT NULL DEFAULT '{}',
    switch_allowed boolean NOT NULL DEFAULT false,
    CONSTRAINT migration_pkey PRIMARY KEY (id),
    CONSTRAINT migration_state_known CHECK (
        state IN (
            'Pending', 'Placing', 'Reserved', 'Preparing', 'Prepared', 'Copying', 'SwitchAllowed',
            'HandedOver', 'Aborting', 'NeedsFencing', 'Succeeded', 'Failed'
        )
    ),
    CONSTRAINT migration_finished CHECK ((finished_at IS NOT NULL) = (state IN ('Succeeded', 'Failed'))),
    CONSTRAINT migration_lease_whole CHECK ((owner IS NULL) = (lease_expires_at IS NULL)),
    CONSTRAINT migration_moves CHECK (target <> source)
) WITH (fillfactor = 70);

COMMENT ON TABLE migration IS 'Migration jobs. Kept for ever.';
COMMENT ON COLUMN migration.id IS 'UID of the VirtualMachineInstanceMigration.';
COMMENT ON COLUMN migration.namespace IS 'Namespace of the VirtualMachineInstanceMigration.';
COMMENT ON COLUMN migration.name IS 'Name of the VirtualMachineInstanceMigration.';
COMMENT ON COLUMN migration.machine IS 'Which machine moves.';
COMMENT ON COLUMN migration.vmi_namespace IS 'Namespace of the VirtualMachineInstance.';
COMMENT ON COLUMN migration.vmi_name IS 'Name of the VirtualMachineInstance.';
COMMENT ON COLUMN migration.state IS 'How far it is.';
COMMENT ON COLUMN migration.source IS 'Where the machine was at the request, or, later, when the job left Pending.';
COMMENT ON COLUMN migration.target IS 'Where it goes; null before a node was chosen.';
COMMENT ON COLUMN migration.target_address IS 'Where the target listens; null before it was prepared.';
COMMENT ON COLUMN migration.priority IS 'Higher goes first.';
COMMENT ON COLUMN migration.created_at IS 'When it was requested.';
COMMENT ON COLUMN migration.state_since IS 'When it came into its state.';
COMMENT ON COLUMN migration.finished_at IS 'When it came to its end; null before.';
COMMENT ON COLUMN migration.epoch IS 'Fencing token: grows with each owner.';
COMMENT ON COLUMN migration.owner IS 'Who has the lease; null when nobody has.';
COMMENT ON COLUMN migration.lease_expires_at IS 'When others may claim the job.';
COMMENT ON COLUMN migration.cancel IS 'Why it shall be cancelled; null when nobody wishes so.';
COMMENT ON COLUMN migration.failure IS 'Why it failed or is being undone.';
COMMENT ON COLUMN migration.trace IS 'W3C traceparent of the request; may be empty.';
COMMENT ON COLUMN migration.history IS 'Numbers gathered on the way: passes, bytes, blackout_us, brownout_us, queued_us.';
COMMENT ON COLUMN migration.switch_allowed IS 'Whether SwitchAllowed was ever reached: the source may have passed the machine on.';

CREATE UNIQUE INDEX migration_one_active_per_instance ON migration (machine)
WHERE state NOT IN ('Succeeded', 'Failed');

COMMENT ON INDEX migration_one_active_per_instance IS 'A machine has at most one open migration.';

-- Narrow, and in the order of claims: a claim reads one entry, however long the history is.
CREATE INDEX migration_open ON migration (priority DESC, created_at, id)
WHERE state NOT IN ('Succeeded', 'Failed');

COMMENT ON INDEX migration_open IS 'Open jobs, who goes first is first.';

CREATE FUNCTION migration_edge_check() RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM migration_edge WHERE from_state = OLD.state AND to_state = NEW.state
    ) THEN
        RAISE EXCEPTION 'migration % may not go from % to %', OLD.id, OLD.state, NEW.state
            USING ERRCODE = 'check_violation', CONSTRAINT = 'migration_edge_legal';
    END IF;
    RETURN NEW;
END
$$;

COMMENT ON FUNCTION migration_edge_check() IS 'Refuses a step that migration_edge does not list.';

CREATE TRIGGER migration_edge_legal BEFORE UPDATE OF state ON migration
FOR EACH ROW WHEN (NEW.state <> OLD.state) EXECUTE FUNCTION migration_edge_check();
