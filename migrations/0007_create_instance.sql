CREATE TABLE instance (
    uid uuid NOT NULL,
    namespace text NOT NULL,
    name text NOT NULL,
    node text,
    epoch bigint NOT NULL,
    state text NOT NULL,
    machine jsonb,
    CONSTRAINT instance_pkey PRIMARY KEY (uid),
    CONSTRAINT instance_node_known FOREIGN KEY (node) REFERENCES node (name),
    CONSTRAINT instance_epoch_positive CHECK (epoch > 0),
    CONSTRAINT instance_state_known CHECK (
        state IN ('Unplaced', 'Starting', 'Running', 'Stopping', 'Stopped', 'Failed')
    ),
    CONSTRAINT instance_placed CHECK (node IS NOT NULL OR state NOT IN ('Starting', 'Running', 'Stopping'))
);

COMMENT ON TABLE instance IS 'Machines: where each is and who owns it.';
COMMENT ON COLUMN instance.uid IS 'UID of the VirtualMachineInstance.';
COMMENT ON COLUMN instance.namespace IS 'Namespace of the VirtualMachineInstance.';
COMMENT ON COLUMN instance.name IS 'Name of the VirtualMachineInstance.';
COMMENT ON COLUMN instance.node IS 'Where it is; null before it was placed.';
COMMENT ON COLUMN instance.epoch IS 'Ownership epoch: grows with every start and every hand-over.';
COMMENT ON COLUMN instance.state IS 'How far its life is.';
COMMENT ON COLUMN instance.machine IS 'What hosts build, as the model writes it.';

CREATE INDEX instance_by_node ON instance (node);

CREATE FUNCTION instance_epoch_check() RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
    RAISE EXCEPTION 'epoch % of instance % is older than %', NEW.epoch, NEW.uid, OLD.epoch
        USING ERRCODE = 'check_violation', CONSTRAINT = 'instance_epoch_grows';
END
$$;

COMMENT ON FUNCTION instance_epoch_check() IS 'Refuses an ownership epoch that shrinks.';

CREATE TRIGGER instance_epoch_grows BEFORE UPDATE OF epoch ON instance
FOR EACH ROW WHEN (NEW.epoch < OLD.epoch) EXECUTE FUNCTION instance_epoch_check();
