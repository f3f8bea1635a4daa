//! Generated gRPC code, conversions to and from the model, client and server builders.

mod calls;
pub mod client;
pub mod convert;
mod credentials;
pub mod peer;
pub mod server;

pub use client::Channel;
pub use credentials::Credentials;
pub use tonic::service::Routes;
pub use tonic::{Code, Request, Response, Status, Streaming, async_trait};

macro_rules! area {
    ($(#[$doc:meta])* $area:ident, $package:literal) => {
        $(#[$doc])*
        pub mod $area {
            /// Version 1.
            #[allow(missing_docs, clippy::all, clippy::pedantic, clippy::restriction)]
            pub mod v1 {
                tonic::include_proto!($package);
            }
        }
    };
}

area!(
    /// What a host can be asked to do.
    agent,
    "godwit.agent.v1"
);
area!(
    /// What hosts say of themselves.
    inventory,
    "godwit.inventory.v1"
);
area!(
    /// Where a machine goes.
    placement,
    "godwit.placement.v1"
);
area!(
    /// Waking the coordinator.
    migration,
    "godwit.migration.v1"
);
area!(
    /// Waking the maintenance-service.
    maintenance,
    "godwit.maintenance.v1"
);
