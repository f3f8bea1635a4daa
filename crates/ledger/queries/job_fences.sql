-- $1 job. A fence counts from when the job's host was set until that host is heard again: one that
-- came back may have begun something new, and needs a new fence. Hosts that fell silent keep the
-- heartbeat from before.
WITH job AS (
    SELECT
        source, target, created_at AS source_since,
        (
            SELECT max(at) FROM migration_transition
            WHERE migration_id = $1 AND to_state = 'Reserved'
        ) AS target_since
    FROM migration WHERE id = $1
)
SELECT
    EXISTS (
        SELECT FROM node_fence
        WHERE
            node_fence.node = job.source AND node_fence.at >= job.source_since
            AND NOT EXISTS (
                SELECT FROM node
                WHERE name = node_fence.node AND (ready OR heartbeat_at >= node_fence.at)
            )
    ) AS source,
    EXISTS (
        SELECT FROM node_fence
        WHERE
            node_fence.node = job.target AND node_fence.at >= job.target_since
            AND NOT EXISTS (
                SELECT FROM node
                WHERE name = node_fence.node AND (ready OR heartbeat_at >= node_fence.at)
            )
    ) AS target
FROM job
