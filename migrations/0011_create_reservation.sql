CREATE TABLE reservation (
    machine uuid NOT NULL,
    node text NOT NULL,
    job uuid,
    memory_bytes bigint NOT NULL,
    cpu_milli bigint NOT NULL,
    CONSTRAINT reservation_pkey PRIMARY KEY (machine, node),
    CONSTRAINT reservation_machine_known FOREIGN KEY (machine) REFERENCES instance (uid) ON DELETE CASCADE,
    CONSTRAINT reservation_node_known FOREIGN KEY (node) REFERENCES node (name),
    CONSTRAINT reservation_job_known FOREIGN KEY (job) REFERENCES migration (id),
    CONSTRAINT reservation_memory_not_negative CHECK (memory_bytes >= 0),
    CONSTRAINT reservation_cpu_not_negative CHECK (cpu_milli >= 0)
);

COMMENT ON TABLE reservation IS 'Room held on nodes.';
COMMENT ON COLUMN reservation.machine IS 'For which machine.';
COMMENT ON COLUMN reservation.node IS 'On which node.';
COMMENT ON COLUMN reservation.job IS 'For which migration; null when the machine is bound to the node.';
COMMENT ON COLUMN reservation.memory_bytes IS 'Memory of the guest and its QEMU.';
COMMENT ON COLUMN reservation.cpu_milli IS 'Thousandths of a CPU.';

CREATE INDEX reservation_by_node ON reservation (node);

-- Holds even for a writer without the revision lock: the node's and the instance's rows are locked
-- before counting, so the second of two concurrent writers counts what the first committed.
CREATE FUNCTION reservation_check() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT
AS $$
DECLARE
    room node%ROWTYPE;
BEGIN
    SELECT * INTO room FROM node WHERE name = NEW.node FOR NO KEY UPDATE;
    IF EXISTS (
        SELECT FROM reservation WHERE node = NEW.node
        HAVING sum(memory_bytes) > room.memory_bytes OR sum(cpu_milli) > room.cpu_milli
    ) THEN
        RAISE EXCEPTION 'node % has no room for machine %', NEW.node, NEW.machine
            USING ERRCODE = 'check_violation', CONSTRAINT = 'reservation_within_capacity';
    END IF;
    PERFORM FROM instance WHERE uid = NEW.machine FOR NO KEY UPDATE;
    IF (SELECT count(*) FROM reservation WHERE machine = NEW.machine) > 2 THEN
        RAISE EXCEPTION 'machine % has room on two nodes', NEW.machine
            USING ERRCODE = 'check_violation', CONSTRAINT = 'reservation_at_most_two';
    END IF;
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION reservation_check() IS 'Refuses more than a node''s capacity, and a third place for a machine.';

CREATE CONSTRAINT TRIGGER reservation_check
AFTER INSERT OR UPDATE OF machine, node, memory_bytes, cpu_milli ON reservation
FOR EACH ROW EXECUTE FUNCTION reservation_check();
