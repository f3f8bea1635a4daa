//! `godwit version`: which build this is, and which one serves the API.

use anyhow::Context;

use crate::api;
use crate::kubeconfig::Access;

/// What the API says of itself, as Kubernetes' `version.Info`.
#[derive(Debug, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerVersion {
    /// For example `v1.32.0+godwit.0.1.0`.
    pub git_version: String,
    /// Commit that it was built from.
    #[serde(default)]
    pub git_commit: String,
}

/// Asks the API for its version.
///
/// # Errors
/// As [`api::get`], and when the answer makes no sense.
pub async fn of_server(access: &Access) -> anyhow::Result<ServerVersion> {
    let body = api::get(access, "/version").await?;
    serde_json::from_slice(&body).context("understand the answer")
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use rustls::ServerConfig;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;
    use crate::pki::{Ca, Subject};

    const ANSWER: &str = r#"{"gitVersion": "v1.32.0+godwit.0.1.0", "gitCommit": "abc"}"#;

    /// Answers one request with [`ANSWER`] and tells its head; returns the server's URL.
    async fn serve_once(ca: &Ca) -> (String, tokio::task::JoinHandle<String>) {
        let subject = Subject {
            name: "api-gateway",
            organizations: &[],
            served_as: &["127.0.0.1".to_owned()],
        };
        let pem = ca.issue(subject).unwrap();
        let chain = CertificateDer::pem_slice_iter(pem.cert.as_bytes()).map(Result::unwrap);
        let key = PrivateKeyDer::from_pem_slice(pem.key.as_bytes()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain.collect(), key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let served = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = TlsAcceptor::from(Arc::new(config)).accept(stream).await else {
                return "refused".to_owned();
            };
            let mut head = vec![0; 4096];
            let read = stream.read(&mut head).await.unwrap();
            let length = ANSWER.len();
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{ANSWER}");
            stream.write_all(answer.as_bytes()).await.unwrap();
            stream.flush().await.unwrap();
            String::from_utf8_lossy(&head[..read]).into_owned()
        });
        (format!("https://{address}/"), served)
    }

    fn access(server: String, dir: &Path) -> Access {
        Access {
            server,
            authority: std::fs::read(dir.join("ca.crt")).unwrap(),
            certificate: None,
            token: Some("a-token".to_owned()),
        }
    }

    #[tokio::test]
    async fn the_server_tells_its_version_to_whom_the_token_names() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::load_or_create(dir.path()).unwrap();
        let (server, served) = serve_once(&ca).await;
        let version = of_server(&access(server, dir.path())).await.unwrap();
        assert_eq!(version.git_version, "v1.32.0+godwit.0.1.0");
        let head = served.await.unwrap();
        assert!(head.starts_with("GET /version HTTP/1.1\r\n"), "{head}");
        assert!(head.contains("authorization: Bearer a-token\r\n"), "{head}");
    }

    #[tokio::test]
    async fn a_server_of_another_authority_gets_no_token() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let theirs = Ca::load_or_create(other.path()).unwrap();
        Ca::load_or_create(dir.path()).unwrap();
        let (server, served) = serve_once(&theirs).await;
        let refused = of_server(&access(server, dir.path())).await;
        assert!(refused.is_err());
        assert_eq!(served.await.unwrap(), "refused");
    }
}
