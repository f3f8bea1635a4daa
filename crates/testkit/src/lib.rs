//! Development only: private Postgres, namespace hosts, tiny guests, certificates.
