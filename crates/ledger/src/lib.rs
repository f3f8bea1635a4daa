//! The job ledger in Postgres: the only crate with SQL.
