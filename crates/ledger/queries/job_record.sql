-- $1 job, $2 state before, $3 state after, $4 epoch, $5 reason, $6 target, $7 target address,
-- $8 failure, $9 cancel, $10 history, $11 whether it comes to its end, $12 actor
WITH moved AS (
    UPDATE migration
    SET
        state = $3,
        state_since = CASE WHEN $2 = $3 THEN state_since ELSE clock.now END,
        finished_at = CASE WHEN $11 THEN clock.now ELSE finished_at END,
        -- The machine may have been placed, or placed anew, while the job waited for its turn.
        source = CASE
            WHEN state = 'Pending'
                THEN COALESCE(
                    (SELECT node FROM instance WHERE uid = migration.machine),
                    source
                )
            ELSE source
        END,
        target = COALESCE($6, target),
        target_address = COALESCE($7, target_address),
        failure = COALESCE($8, failure),
        cancel = COALESCE(cancel, $9),
        history = history || COALESCE($10, '{}'),
        switch_allowed = switch_allowed OR $3 = 'SwitchAllowed',
        owner = CASE WHEN $11 THEN NULL ELSE owner END,
        lease_expires_at = CASE WHEN $11 THEN NULL ELSE lease_expires_at END
    FROM (SELECT clock_timestamp() AS now) AS clock
    WHERE id = $1 AND state = $2 AND epoch = $4
    RETURNING id, state_since
),
recorded AS (
    INSERT INTO migration_transition (
        migration_id, seq, from_state, to_state, epoch, actor, reason, at
    )
    SELECT
        moved.id,
        1 + (SELECT max(seq) FROM migration_transition WHERE migration_id = moved.id),
        $2, $3, $4, $12, $5, moved.state_since
    FROM moved
    WHERE $2 <> $3
),
-- The room of a machine that was handed over counted as one that a migration arrives in until here.
bound AS (
    UPDATE reservation SET job = NULL
    FROM moved, instance
    WHERE $11
        AND reservation.job = moved.id
        AND instance.uid = reservation.machine
        AND instance.node = reservation.node
)
SELECT (SELECT state_since FROM moved) AS since
