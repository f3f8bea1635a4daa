-- $1 instance, $2 source, $3 target, $4 job, $5 epoch of the lease
WITH moved AS (
    UPDATE instance
    SET node = $3, epoch = epoch + 1
    WHERE
        uid = $1 AND node = $2
        AND EXISTS (
            SELECT FROM migration WHERE id = $4 AND machine = $1 AND epoch = $5
        )
    RETURNING uid, epoch
),
released AS (
    DELETE FROM reservation USING moved WHERE machine = moved.uid AND node = $2
)
SELECT epoch FROM moved
