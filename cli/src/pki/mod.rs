//! `godwit pki`: certificates for whoever has no authority of their own.
//!
//! A directory has everything: `ca.crt` (who is believed), `ca.key`, a `NAME.crt` and a `NAME.key`
//! for each service, host and user, and a kubeconfig. Whatever is written takes the place of an
//! older file in one step and keeps its owner and mode, so that services can read it at any time.

mod authority;
mod file;
mod issue;
mod rotate;
mod secrets;

use anyhow::Context as _;
use clap::Subcommand;

use crate::kubeconfig::Access;

pub use authority::{Ca, Pem, Subject};
pub use file::write_private;
pub use issue::{Init, Issue, Named, init, issue};
pub use rotate::{Rotate, Step, rotate};
pub use secrets::{Place, init_into};

/// What is to be done with the certificates.
#[derive(Debug, Subcommand)]
pub enum Pki {
    /// Issue certificates for every service, the hosts that are named, and an administrator.
    ///
    /// Makes an authority when there is none in the directory. Keep ca.key to yourself.
    #[command(after_help = "Example:\n  godwit pki init --dir /etc/godwit/tls \
        --node worker1=10.0.0.11 --node worker2=10.0.0.12 \\\n      \
        --service api-gateway=godwit.example.com --server https://godwit.example.com:6443")]
    Init(Init),
    /// Issue certificates for what is named, by the authority that `init` made.
    #[command(after_help = "Example:\n  godwit pki issue --dir /etc/godwit/tls \
        --node worker3=10.0.0.13 --user jane=godwit:operators")]
    Issue(Issue),
    /// Renew the certificates in the directory, or change the authority.
    ///
    /// New certificates have the names and addresses of the old ones, and new keys. Services take
    /// them while they run: copy them to where each one reads its own.
    #[command(
        after_help = "The authority changes in three steps. After each, copy ca.crt and the\n\
        certificates to every host, and go on when all have read them\n\
        (godwit_certificate_refused is 0, and no copy is older):\n  \
        godwit pki rotate --dir DIR --authority trust-both\n  \
        godwit pki rotate --dir DIR --authority switch\n  \
        godwit pki rotate --dir DIR --authority drop-old"
    )]
    Rotate(Rotate),
}

/// Does it; answers what to tell the user.
///
/// # Errors
/// When names make no sense, or a file or a Secret can't be read or written.
pub async fn pki(wanted: &Pki) -> anyhow::Result<String> {
    match wanted {
        Pki::Init(wanted) => {
            let files = match &wanted.secrets {
                None => init(wanted)?,
                Some(prefix) => {
                    let (access, namespace) = Access::of_pod().context("find the pod's access")?;
                    let place = Place {
                        access: &access,
                        namespace: &namespace,
                        prefix,
                    };
                    init_into(place, wanted).await?
                }
            };
            Ok(format!("{}: {}", wanted.dir.display(), files.join(", ")))
        }
        Pki::Issue(wanted) => {
            let files = issue(wanted)?;
            Ok(format!("{}: {}", wanted.dir.display(), files.join(", ")))
        }
        Pki::Rotate(wanted) => {
            let files = rotate(wanted)?;
            Ok(match files.is_empty() {
                true => format!("{}: nothing to renew", wanted.dir.display()),
                false => format!("{}: {}", wanted.dir.display(), files.join(", ")),
            })
        }
    }
}
