-- Huge pages are room of their own: what is in them is no other memory of the node.
ALTER TABLE node
ADD COLUMN hugepages_2mi_bytes bigint NOT NULL DEFAULT 0,
ADD COLUMN hugepages_1gi_bytes bigint NOT NULL DEFAULT 0,
ADD CONSTRAINT node_hugepages_not_negative CHECK (hugepages_2mi_bytes >= 0 AND hugepages_1gi_bytes >= 0);

COMMENT ON COLUMN node.memory_bytes IS 'Memory for guests and their QEMU, without huge pages.';
COMMENT ON COLUMN node.hugepages_2mi_bytes IS 'Memory in pages of 2 MiB, for guests.';
COMMENT ON COLUMN node.hugepages_1gi_bytes IS 'Memory in pages of 1 GiB, for guests.';

ALTER TABLE reservation
ADD COLUMN hugepages_2mi_bytes bigint NOT NULL DEFAULT 0,
ADD COLUMN hugepages_1gi_bytes bigint NOT NULL DEFAULT 0,
ADD CONSTRAINT reservation_hugepages_not_negative CHECK (hugepages_2mi_bytes >= 0 AND hugepages_1gi_bytes >= 0);

COMMENT ON COLUMN reservation.memory_bytes IS 'Memory of the guest and its QEMU, without huge pages.';
COMMENT ON COLUMN reservation.hugepages_2mi_bytes IS 'Memory of the guest in pages of 2 MiB.';
COMMENT ON COLUMN reservation.hugepages_1gi_bytes IS 'Memory of the guest in pages of 1 GiB.';

-- Who takes none of a size is not refused for it: a host may have given pages back that are held.
CREATE OR REPLACE FUNCTION reservation_check() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT
AS $$
DECLARE
    room node%ROWTYPE;
BEGIN
    SELECT * INTO room FROM node WHERE name = NEW.node FOR NO KEY UPDATE;
    IF EXISTS (
        SELECT FROM reservation WHERE node = NEW.node
        HAVING sum(memory_bytes) > room.memory_bytes
        OR sum(cpu_milli) > room.cpu_milli
        OR NEW.hugepages_2mi_bytes > 0 AND sum(hugepages_2mi_bytes) > room.hugepages_2mi_bytes
        OR NEW.hugepages_1gi_bytes > 0 AND sum(hugepages_1gi_bytes) > room.hugepages_1gi_bytes
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

DROP TRIGGER reservation_check ON reservation;

CREATE CONSTRAINT TRIGGER reservation_check
AFTER INSERT OR UPDATE OF machine, node, memory_bytes, cpu_milli, hugepages_2mi_bytes, hugepages_1gi_bytes
ON reservation
FOR EACH ROW EXECUTE FUNCTION reservation_check();
