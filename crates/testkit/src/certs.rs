//! Certificates for the lab and the tests, from the same authority that `godwit certificates` is.

pub use godwit_cli::certificates::{Ca, Pem, Subject, write_private};
