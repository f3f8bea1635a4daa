-- $1 change that was read last, $2 when it was written if that is known, $3 most rows
-- One row with a null seq when there is no change after it. One statement, so that everything is of
-- one moment.
SELECT
    log.horizon,
    $1 >= log.horizon AND (
        $2::timestamptz IS NULL
        OR $1 = log.horizon
        OR EXISTS (SELECT FROM floor_change WHERE seq = $1 AND changed_at = $2)
    ) AS known,
    change.seq,
    change.node,
    change.machine,
    change.changed_at
FROM (SELECT seq AS horizon FROM floor_horizon) AS log
LEFT JOIN LATERAL (
    SELECT seq, node, machine, changed_at
    FROM floor_change
    WHERE seq > $1
    ORDER BY seq
    LIMIT $3
) AS change ON true
ORDER BY change.seq
