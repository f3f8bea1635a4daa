-- $1 instance, $2 now
-- A target that was fenced may have run under the next epoch, which nobody else gets therefore.
WITH before AS (
    SELECT uid, node FROM instance WHERE uid = $1
),
released AS (
    UPDATE instance
    SET epoch = instance.epoch + 2, node = NULL, state = 'Unplaced'
    FROM before
    WHERE instance.uid = before.uid
    RETURNING instance.uid, instance.epoch, before.node
),
emptied AS (
    DELETE FROM reservation USING released WHERE machine = released.uid
)
INSERT INTO instance_release (uid, epoch, node, at)
SELECT uid, epoch, node, $2 FROM released
RETURNING epoch
