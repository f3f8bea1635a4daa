CREATE TABLE node (
    name text NOT NULL,
    agent_address text NOT NULL,
    boot_id text NOT NULL,
    ready boolean NOT NULL,
    memory_bytes bigint NOT NULL,
    cpu_milli bigint NOT NULL,
    facts jsonb NOT NULL,
    heartbeat_at timestamptz NOT NULL,
    CONSTRAINT node_pkey PRIMARY KEY (name),
    CONSTRAINT node_memory_not_negative CHECK (memory_bytes >= 0),
    CONSTRAINT node_cpu_not_negative CHECK (cpu_milli >= 0)
);

COMMENT ON TABLE node IS 'Nodes as their agents report them. Only the scheduler writes here.';
COMMENT ON COLUMN node.name IS 'Name of the node.';
COMMENT ON COLUMN node.agent_address IS 'Where the agent listens, as https://ip:port.';
COMMENT ON COLUMN node.boot_id IS 'Boot id of the kernel.';
COMMENT ON COLUMN node.ready IS 'Whether machines may be started there.';
COMMENT ON COLUMN node.memory_bytes IS 'Memory for guests and their QEMU.';
COMMENT ON COLUMN node.cpu_milli IS 'Thousandths of a CPU for guests.';
COMMENT ON COLUMN node.facts IS 'Accelerator, machine types, QEMU version, pools, bridges.';
COMMENT ON COLUMN node.heartbeat_at IS 'When its state was last known to be so; heartbeats without news are not written.';
