//! Certificates for the lab and the tests, from the same authority that `godwit pki` is.

pub use godwit_cli::pki::{Ca, Pem, Rotate, Step, Subject, rotate, write_private};
