-- For a database that lost its newest changes: it was restored, or was a replica that was behind.
-- Readers have seen revisions that it never had, so it must not give those to other changes.
CREATE FUNCTION revisions_skip(past bigint) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT
AS $$
DECLARE
    newest bigint;
BEGIN
    IF NOT has_table_privilege(session_user, 'change_horizon', 'UPDATE') THEN
        RAISE insufficient_privilege USING MESSAGE = 'only who prunes changes may skip revisions';
    END IF;
    PERFORM revision_lock();
    -- What others have seen beyond that is a matter of seconds; a million changes are not.
    UPDATE revision_counter SET value = GREATEST(value, past) + 1000000 RETURNING value INTO newest;
    UPDATE change_horizon SET revision = newest;
    RETURN newest;
END
$$;

COMMENT ON FUNCTION revisions_skip(bigint) IS
'Goes on far behind a revision that this database lost; every reader has to start again.';
