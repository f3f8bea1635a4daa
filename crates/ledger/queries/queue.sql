-- Whether a host of the job was ever fenced is only a hint to look closer.
SELECT
    id, state, priority, created_at, source, target,
    cancel IS NOT NULL AS cancelled,
    EXISTS (SELECT FROM node_fence WHERE node IN (source, target)) AS fenced
FROM migration
WHERE state NOT IN ('Succeeded', 'Failed')
ORDER BY priority DESC, created_at, id
