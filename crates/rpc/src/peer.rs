//! Who calls: the role and the name that a peer's certificate carries.

use std::fmt;

use tonic::{Request, Status};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Kubernetes' group of those who may do everything.
const MASTERS: &str = "system:masters";

/// What a certificate's organization (O) says that its holder is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// The API.
    ApiGateway,
    /// Inventory and placement.
    Scheduler,
    /// The owner of jobs.
    MigrationCoordinator,
    /// The owner of maintenances.
    MaintenanceService,
    /// A host; the certificate's name is its node.
    NodeAgent,
    /// A person with an operator's certificate: of `admin`, or of the API's `system:masters`.
    Admin,
    /// Nobody was asked: the service runs without TLS, which only `insecure = true` allows.
    Insecure,
}

impl Role {
    /// The organization that stands for this role.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ApiGateway => "api-gateway",
            Self::Scheduler => "scheduler",
            Self::MigrationCoordinator => "migration-coordinator",
            Self::MaintenanceService => "maintenance-service",
            Self::NodeAgent => "node-agent",
            Self::Admin => "admin",
            Self::Insecure => "insecure",
        }
    }

    fn from_organization(name: &str) -> Option<Self> {
        // Who may do everything at the API need not have a second certificate.
        if name == MASTERS {
            return Some(Self::Admin);
        }
        [
            Self::ApiGateway,
            Self::Scheduler,
            Self::MigrationCoordinator,
            Self::MaintenanceService,
            Self::NodeAgent,
            Self::Admin,
        ]
        .into_iter()
        .find(|role| role.as_str() == name)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// What it is.
    pub role: Role,
    /// Its certificate's common name: for a node-agent the name of its node.
    pub name: String,
}

impl Peer {
    /// Whether the caller may speak for `node`: its own agent, or any service.
    ///
    /// # Errors
    /// `PermissionDenied` for the agent of another node.
    pub fn speaks_for(&self, node: &str) -> Result<(), Status> {
        if self.role == Role::NodeAgent && self.name != node {
            return Err(Status::permission_denied(format!(
                "the agent of {} may not speak for {node}",
                self.name
            )));
        }
        Ok(())
    }
}

/// Marks requests of a server that runs without TLS on purpose.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Unauthenticated;

/// The caller of `request`, when its role is one of `allowed`.
///
/// # Errors
/// `Unauthenticated` without a usable certificate, `PermissionDenied` with the wrong role.
pub fn require<T>(request: &Request<T>, allowed: &[Role]) -> Result<Peer, Status> {
    let peer = peer_of(request)?;
    if peer.role == Role::Insecure || allowed.contains(&peer.role) {
        return Ok(peer);
    }
    Err(Status::permission_denied(format!(
        "{} may not call this",
        peer.role
    )))
}

fn peer_of<T>(request: &Request<T>) -> Result<Peer, Status> {
    if request.extensions().get::<Unauthenticated>().is_some() {
        return Ok(Peer {
            role: Role::Insecure,
            name: String::new(),
        });
    }
    let certificates = request.peer_certs().ok_or_else(no_certificate)?;
    let first = certificates.first().ok_or_else(no_certificate)?;
    read(first)
}

fn no_certificate() -> Status {
    Status::unauthenticated("a client certificate is needed")
}

fn read(der: &[u8]) -> Result<Peer, Status> {
    let (_, certificate) = X509Certificate::from_der(der)
        .map_err(|error| Status::unauthenticated(format!("the client certificate: {error}")))?;
    let subject = certificate.subject();
    let text = |attribute: Option<&x509_parser::x509::AttributeTypeAndValue<'_>>| {
        attribute.and_then(|a| a.as_str().ok()).map(str::to_owned)
    };
    let organization = text(subject.iter_organization().next()).unwrap_or_default();
    let role = Role::from_organization(&organization).ok_or_else(|| {
        Status::permission_denied(format!("{organization:?} is no role of Godwit"))
    })?;
    Ok(Peer {
        role,
        name: text(subject.iter_common_name().next()).unwrap_or_default(),
    })
}
