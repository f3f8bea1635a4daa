-- Machines that are marked to leave a node are few, and asked for in every round of the drains.
CREATE INDEX object_evacuation ON object ((status ->> 'evacuationNodeName'))
WHERE resource = 'virtualmachineinstances.kubevirt.io' AND jsonb_exists(status, 'evacuationNodeName');

COMMENT ON INDEX object_evacuation IS 'Instances that are marked to leave a node, by that node.';
