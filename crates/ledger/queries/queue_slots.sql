-- $1 node, or null for none
SELECT count(*) AS cluster, count(*) FILTER (WHERE source = $1) AS outbound
FROM migration
WHERE state NOT IN ('Succeeded', 'Failed') AND state <> 'Pending'
