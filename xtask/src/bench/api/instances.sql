INSERT INTO object (uid, resource, namespace, name, metadata, body, status)
SELECT
    gen_random_uuid(), 'virtualmachineinstances.kubevirt.io', 'default', 'vm-' || lpad(n::text, 6, '0'),
    jsonb_build_object(
        'generation', 1, 'creationTimestamp', '2026-01-01T00:00:00Z',
        'finalizers', jsonb_build_array('kubevirt.io/foregroundDeleteVirtualMachine'),
        'labels', jsonb_build_object('app', 'bench', 'shard', (n % 10)::text)
    ),
    jsonb_build_object('spec', jsonb_build_object(
        'evictionStrategy', 'LiveMigrate', 'terminationGracePeriodSeconds', 30,
        'domain', jsonb_build_object(
            'cpu', jsonb_build_object('cores', 2), 'memory', jsonb_build_object('guest', '2Gi'),
            'machine', jsonb_build_object('type', 'q35'),
            'devices', jsonb_build_object(
                'disks', jsonb_build_array(jsonb_build_object(
                    'name', 'root', 'disk', jsonb_build_object('bus', 'virtio'))),
                'interfaces', jsonb_build_array(jsonb_build_object(
                    'name', 'lab', 'bridge', jsonb_build_object())))),
        'networks', jsonb_build_array(jsonb_build_object(
            'name', 'lab', 'multus', jsonb_build_object('networkName', 'lab-net'))),
        'volumes', jsonb_build_array(jsonb_build_object(
            'name', 'root', 'hostDisk', jsonb_build_object(
                'path', '/srv/vm-' || n || '.img', 'type', 'Disk', 'shared', true))))),
    jsonb_build_object(
        'phase', 'Running', 'nodeName', 'worker' || (n % 50), 'migrationMethod', 'LiveMigration',
        'interfaces', jsonb_build_array(jsonb_build_object('name', 'lab', 'ipAddress', '10.0.0.1')),
        'conditions', jsonb_build_array(
            jsonb_build_object('type', 'Ready', 'status', 'True',
                'lastTransitionTime', '2026-01-01T00:00:05Z'),
            jsonb_build_object('type', 'LiveMigratable', 'status', 'True',
                'lastTransitionTime', '2026-01-01T00:00:05Z')))
FROM generate_series(1, :objects) AS n
