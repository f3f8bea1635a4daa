//! Certificates that `godwit pki init` keeps in Secrets, as the Helm chart's hook does.

use anyhow::Result;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use godwit_cli::kubeconfig::Kubeconfig;
use godwit_cli::pki::{Init, Named, Place, init_into};
use godwit_testkit::kubectl::Release;
use serde_json::Value;

use crate::api_env::Api;

fn node(name: &str, address: &str) -> Named {
    Named {
        name: name.to_owned(),
        addresses: vec![address.to_owned()],
    }
}

/// What a hook does: each time in a directory of its own, which is empty.
async fn issued_for(api: &Api, nodes: Vec<Named>) -> Result<()> {
    let access = Kubeconfig::load(Some(&api.kubeconfig("admin")))?.access(None)?;
    let dir = tempfile::tempdir()?;
    let wanted = Init {
        dir: dir.path().to_owned(),
        nodes,
        services: vec![],
        server: "https://godwit.example.com:6443".to_owned(),
        secrets: None,
    };
    let place = Place {
        access: &access,
        namespace: "default",
        prefix: "a-godwit",
    };
    init_into(place, &wanted).await?;
    Ok(())
}

async fn entries(api: &Api, name: &str) -> Result<serde_json::Map<String, Value>> {
    let kubectl = api.admin(Release::Newest).await?;
    let shown = kubectl.ok(&["get", "secret", name, "-o", "json"]).await?;
    let secret: Value = serde_json::from_str(&shown)?;
    Ok(secret["data"].as_object().cloned().unwrap_or_default())
}

fn text(data: &Value) -> Result<String> {
    let bytes = STANDARD.decode(data.as_str().unwrap_or_default())?;
    Ok(String::from_utf8(bytes)?)
}

#[tokio::test]
async fn certificates_are_kept_in_secrets_and_the_next_ones_are_of_the_same_authority() -> Result<()>
{
    let api = Api::start().await?;
    issued_for(&api, vec![node("worker1", "10.0.0.11")]).await?;
    let authority = entries(&api, "a-godwit-authority").await?;
    let services = entries(&api, "a-godwit-tls").await?;
    let first = entries(&api, "a-godwit-node-tls").await?;
    assert_eq!(
        first.keys().collect::<Vec<_>>(),
        ["ca.crt", "worker1.crt", "worker1.key"]
    );
    assert!(!services.contains_key("ca.key") && !first.contains_key("ca.key"));
    assert!(text(&services["scheduler.key"])?.contains("PRIVATE KEY"));
    assert!(text(&services["kubeconfig"])?.contains("https://godwit.example.com:6443"));

    let both = vec![node("worker1", "10.0.0.11"), node("worker2", "10.0.0.12")];
    issued_for(&api, both).await?;
    let second = entries(&api, "a-godwit-node-tls").await?;
    assert!(second.contains_key("worker2.key"));
    assert_eq!(second["ca.crt"], authority["ca.crt"]);
    assert_ne!(second["worker1.crt"], first["worker1.crt"]);
    Ok(())
}
