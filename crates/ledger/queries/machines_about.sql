-- $1 nodes, $2 machines, $3 and $4 namespaces and names of instances
WITH about AS (
    SELECT uid FROM instance WHERE node = ANY($1)
    UNION
    SELECT machine
    FROM migration
    WHERE state NOT IN ('Succeeded', 'Failed') AND (source = ANY($1) OR target = ANY($1))
    UNION
    SELECT uid
    FROM object
    WHERE
        resource = 'virtualmachineinstances.kubevirt.io'
        AND jsonb_exists(status, 'evacuationNodeName')
        AND status ->> 'evacuationNodeName' = ANY($1)
    UNION
    SELECT object.uid
    FROM unnest($3::text[], $4::text[]) AS named (namespace, name)
    JOIN object
        ON
            object.resource = 'virtualmachineinstances.kubevirt.io'
            AND object.namespace = named.namespace AND object.name = named.name
    UNION
    SELECT unnest($2::uuid[])
)
SELECT
    about.uid,
    'virtualmachineinstances.kubevirt.io' AS resource,
    COALESCE(instance.namespace, object.namespace) AS namespace,
    COALESCE(instance.name, object.name) AS name,
    instance.node,
    instance.epoch,
    instance.state,
    instance.machine,
    object.metadata,
    object.body,
    object.status,
    object.revision
FROM about
LEFT JOIN instance ON instance.uid = about.uid
LEFT JOIN object ON object.uid = about.uid
WHERE instance.uid IS NOT NULL OR object.uid IS NOT NULL
ORDER BY about.uid
