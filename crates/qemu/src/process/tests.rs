use super::*;

fn sleeper(folder: &Path, seconds: &str) -> Process {
    let arguments = [seconds.to_owned()];
    Process::spawn(
        Path::new("/bin/sleep"),
        &arguments,
        &folder.join("log"),
        None,
    )
    .unwrap()
}

#[tokio::test]
async fn a_process_is_adopted_by_its_identity_until_it_ends() {
    let folder = tempfile::tempdir().unwrap();
    let process = sleeper(folder.path(), "60");
    let adopted = Process::adopt(process.identity()).unwrap().unwrap();
    assert!(adopted.is_alive());
    assert_eq!(adopted.identity(), process.identity());

    adopted.kill().unwrap();
    tokio::time::timeout(Duration::from_secs(5), process.exited())
        .await
        .unwrap();

    assert!(!process.is_alive());
    assert!(Process::adopt(process.identity()).unwrap().is_none());
    process.kill().unwrap();
}

#[tokio::test]
async fn a_process_with_the_same_id_and_another_start_is_not_adopted() {
    let folder = tempfile::tempdir().unwrap();
    let process = sleeper(folder.path(), "60");
    let mut other = process.identity().clone();
    other.start_ticks += 1;
    assert!(Process::adopt(&other).unwrap().is_none());
    let mut before_boot = process.identity().clone();
    before_boot.boot_id = "another".to_owned();
    assert!(Process::adopt(&before_boot).unwrap().is_none());
    process.kill().unwrap();
}

#[tokio::test]
async fn a_process_has_a_session_of_its_own_and_a_start_time() {
    let folder = tempfile::tempdir().unwrap();
    let process = sleeper(folder.path(), "60");
    let pid = process.identity().pid;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
    loop {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        // Field 6 is the session; it is the process itself once setsid has run.
        let session = stat
            .rsplit_once(") ")
            .unwrap()
            .1
            .split(' ')
            .nth(3)
            .unwrap()
            .to_owned();
        if session == pid.to_string() {
            break;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "session is {session}"
        );
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let age = SystemTime::now().duration_since(process.identity().started_at().unwrap());
    assert!(age.unwrap_or_default() < Duration::from_secs(10));
    process.kill().unwrap();
}

#[tokio::test]
async fn a_process_is_found_by_the_file_that_it_was_given() {
    let folder = tempfile::tempdir().unwrap();
    let pid_file = folder.path().join("pid");
    assert!(find(&pid_file).unwrap().is_none());
    let script = "echo $$ > \"$0\"; while :; do sleep 0.1; done";
    let arguments = [
        "-c".to_owned(),
        script.to_owned(),
        pid_file.display().to_string(),
    ];
    let log = folder.path().join("log");
    let process = Process::spawn(Path::new("/bin/sh"), &arguments, &log, None).unwrap();
    let found = loop {
        if let Some(found) = find(&pid_file).unwrap() {
            break found;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    };
    assert_eq!(found.identity(), process.identity());
    process.kill().unwrap();
    process.exited().await;
    assert!(find(&pid_file).unwrap().is_none());
    // The id belongs to somebody else: this test.
    std::fs::write(&pid_file, std::process::id().to_string()).unwrap();
    assert!(find(&pid_file).unwrap().is_none());
}

#[tokio::test]
async fn a_qemu_that_ends_at_once_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = [
        "-c".to_owned(),
        "echo no such machine >&2; exit 1".to_owned(),
    ];
    let started = tokio::time::Instant::now();
    let error = launch(Launch {
        binary: Path::new("/bin/sh"),
        arguments: &arguments,
        log: &folder.path().join("log"),
        qmp_socket: &folder.path().join("qmp"),
        limit: Duration::from_secs(30),
        user: None,
    })
    .await
    .unwrap_err();
    assert_eq!(error.to_string(), "qemu ended at start: no such machine");
    assert!(started.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn a_qemu_that_never_answers_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let error = launch(Launch {
        binary: Path::new("/bin/sleep"),
        arguments: &["60".to_owned()],
        log: &folder.path().join("log"),
        qmp_socket: &folder.path().join("qmp"),
        limit: Duration::from_millis(50),
        user: None,
    })
    .await
    .unwrap_err();
    assert!(matches!(error, StartError::NotReady(_)), "{error}");
}

#[test]
fn the_name_of_a_process_may_look_like_fields() {
    let stat = "7 (a) R 1 (b) S 1 7 7 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 4242 1 1";
    assert_eq!(state_and_start(stat), Some(("S", 4242)));
}
