//! The private Postgres itself: it outlives whom it should, and nobody else.

use godwit_testkit::postgres::Postgres;
use godwit_testkit::untried;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;

fn folder() -> TempDir {
    tempfile::Builder::new().prefix("gwpg-").tempdir().unwrap()
}

/// The server's pid, from the file that is there as long as the server is.
fn server_pid(dir: &Path) -> Option<String> {
    let file = std::fs::read_to_string(dir.join("data/postmaster.pid")).ok()?;
    Some(file.lines().next()?.to_owned())
}

#[test]
fn a_detached_server_outlives_its_handle_keeps_its_data_and_stops_when_told() {
    let dir = folder();
    let first = Postgres::start_detached(dir.path()).unwrap();
    first.ensure_database("godwit").unwrap();
    let pid = server_pid(dir.path());
    drop(first);
    assert!(pid.is_some());

    let again = Postgres::start_detached(dir.path()).unwrap();
    assert_eq!(server_pid(dir.path()), pid);
    again.ensure_database("godwit").unwrap();
    Postgres::stop(dir.path()).unwrap();
    assert_eq!(server_pid(dir.path()), None);
    Postgres::stop(dir.path()).unwrap();

    let restarted = Postgres::start(dir.path()).unwrap();
    let known = restarted.psql("godwit", "SHOW listen_addresses").unwrap();
    assert_eq!(known, "");
    drop(restarted);
    assert_eq!(server_pid(dir.path()), None);
}

#[test]
fn a_long_folder_gets_a_short_socket() {
    let dir = folder();
    let deep = dir.path().join("d".repeat(100));
    std::fs::create_dir(&deep).unwrap();
    // The server's user must get there.
    for part in [dir.path(), deep.as_path()] {
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(part, open).unwrap();
    }
    let postgres = Postgres::start(&deep).unwrap();
    assert_eq!(postgres.psql("postgres", "SELECT 1").unwrap(), "1");
    let socket = postgres
        .url("postgres")
        .split("host=")
        .nth(1)
        .unwrap()
        .to_owned();
    drop(postgres);
    std::fs::remove_dir_all(socket).unwrap();
}

#[test]
fn a_folder_that_cannot_be_reached_is_said_so() {
    if !nix::unistd::Uid::effective().is_root() {
        return untried("root alone can be kept out of a folder of root's");
    }
    let closed = folder();
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(closed.path(), private).unwrap();
    let refused = Postgres::start(&closed.path().join("inner")).unwrap_err();
    assert!(refused.to_string().contains("can't reach"), "{refused:#}");
}

#[tokio::test]
async fn each_database_has_a_ledger_of_its_own() {
    let postgres = Postgres::ephemeral().unwrap();
    let urls = [(); 2].map(|()| postgres.create_database().unwrap());
    let first = crate::ledger_setup::connect(&urls[0]).await;
    let second = crate::ledger_setup::connect(&urls[1]).await;
    let mut tx = first.begin().await.unwrap();
    tx.create(crate::ledger_setup::config_map("one"))
        .await
        .unwrap();
    // Their revision locks are two.
    let begun = tokio::time::timeout(Duration::from_secs(5), second.begin()).await;
    begun.unwrap().unwrap();
    tx.commit().await.unwrap();
    assert_eq!(second.list("configmaps").await.unwrap(), []);
}
