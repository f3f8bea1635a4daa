-- $1 machine, $2 node, $3 job, $4 memory, $5 CPU. No row when there is no such node.
WITH room AS (
    SELECT
        GREATEST(node.memory_bytes - COALESCE(sum(held.memory_bytes), 0), 0)::bigint AS memory_free,
        GREATEST(node.cpu_milli - COALESCE(sum(held.cpu_milli), 0), 0)::bigint AS cpu_milli_free
    FROM node
    LEFT JOIN reservation AS held ON held.node = node.name
    WHERE node.name = $2
    GROUP BY node.name
),
places AS (
    SELECT count(*) >= 2 OR COALESCE(bool_or(node = $2), false) AS taken
    FROM reservation
    WHERE machine = $1
),
written AS (
    INSERT INTO reservation (machine, node, job, memory_bytes, cpu_milli)
    SELECT $1, $2, $3, $4, $5
    FROM room CROSS JOIN places
    WHERE NOT places.taken AND room.memory_free >= $4 AND room.cpu_milli_free >= $5
    RETURNING machine
)
SELECT
    room.memory_free,
    room.cpu_milli_free,
    places.taken,
    EXISTS (SELECT FROM written) AS held
FROM room CROSS JOIN places
