-- The cluster-wide revision: Kubernetes' resourceVersion. A sequence would not do, since its numbers
-- are not handed out in the order of the commits and a reader could skip a late one.
CREATE TABLE revision_counter (
    singleton boolean NOT NULL DEFAULT true,
    value bigint NOT NULL,
    CONSTRAINT revision_counter_pkey PRIMARY KEY (singleton),
    CONSTRAINT revision_counter_one_row CHECK (singleton),
    CONSTRAINT revision_counter_value_positive CHECK (value > 0)
) WITH (fillfactor = 10);

COMMENT ON TABLE revision_counter IS 'One row: the newest revision. Its row lock orders the commits.';
COMMENT ON COLUMN revision_counter.singleton IS 'Always true, so that there is one row.';
COMMENT ON COLUMN revision_counter.value IS 'Revision of the newest change.';

INSERT INTO revision_counter (value) VALUES (1);

-- Takes the next revision. The row lock is held until the transaction ends, so whoever takes a
-- higher one commits later, even if it never called revision_lock.
CREATE FUNCTION revision_next() RETURNS bigint
LANGUAGE sql VOLATILE
AS $$ UPDATE revision_counter SET value = value + 1 RETURNING value $$;

COMMENT ON FUNCTION revision_next() IS 'The next revision; other writers wait until this transaction ends.';

-- What a ledger transaction begins with. An advisory lock, because a row lock would make even a
-- transaction that changes nothing write and flush WAL. Volatile, so that the second statement
-- sees what the former holder of the lock committed.
CREATE FUNCTION revision_lock(OUT revision bigint, OUT locked_at timestamptz)
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(4852167130);
    SELECT counter.value, clock_timestamp() INTO revision, locked_at FROM revision_counter AS counter;
END
$$;

COMMENT ON FUNCTION revision_lock() IS 'Makes this the only writing transaction, until it ends.';
