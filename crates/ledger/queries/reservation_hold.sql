-- $1 machine, $2 node, $3 job, $4 memory, $5 CPU, $6 pages of 2 MiB, $7 pages of 1 GiB. No row when
-- there is no such node.
WITH room AS (
    SELECT
        GREATEST(node.memory_bytes - COALESCE(sum(held.memory_bytes), 0), 0)::bigint AS memory_free,
        GREATEST(node.cpu_milli - COALESCE(sum(held.cpu_milli), 0), 0)::bigint AS cpu_milli_free,
        GREATEST(node.hugepages_2mi_bytes - COALESCE(sum(held.hugepages_2mi_bytes), 0), 0)::bigint
            AS hugepages_2mi_free,
        GREATEST(node.hugepages_1gi_bytes - COALESCE(sum(held.hugepages_1gi_bytes), 0), 0)::bigint
            AS hugepages_1gi_free
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
    INSERT INTO reservation
        (machine, node, job, memory_bytes, cpu_milli, hugepages_2mi_bytes, hugepages_1gi_bytes)
    SELECT $1, $2, $3, $4, $5, $6, $7
    FROM room CROSS JOIN places
    WHERE NOT places.taken
        AND room.memory_free >= $4
        AND room.cpu_milli_free >= $5
        AND room.hugepages_2mi_free >= $6
        AND room.hugepages_1gi_free >= $7
    RETURNING machine
)
SELECT
    room.memory_free,
    room.cpu_milli_free,
    room.hugepages_2mi_free AS hugepages_2mi_bytes,
    room.hugepages_1gi_free AS hugepages_1gi_bytes,
    places.taken,
    EXISTS (SELECT FROM written) AS held
FROM room CROSS JOIN places
