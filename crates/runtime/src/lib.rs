//! What every binary shares: config, telemetry, health, TLS, shutdown, build information.
