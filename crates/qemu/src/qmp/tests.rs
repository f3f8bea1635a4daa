use super::*;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::UnixListener;

const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian"}, "capabilities": ["oob"]}}"#;
const LIMIT: Duration = Duration::from_secs(5);

/// A QEMU that says what the test tells it to.
struct Peer {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
}

impl Peer {
    async fn request(&mut self) -> Value {
        let mut line = String::new();
        timeout(LIMIT, self.reader.read_line(&mut line))
            .await
            .unwrap()
            .unwrap();
        serde_json::from_str(&line).unwrap()
    }

    async fn say(&mut self, line: &str) {
        self.writer
            .write_all(format!("{line}\r\n").as_bytes())
            .await
            .unwrap();
    }

    async fn answer(&mut self, request: &Value, result: Value) {
        self.say(&json!({ "return": result, "id": request["id"] }).to_string())
            .await;
    }
}

async fn connected() -> (Qmp, Events, Peer) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("qmp");
    let listener = UnixListener::bind(&socket).unwrap();
    let peer = async {
        let (reader, writer) = listener.accept().await.unwrap().0.into_split();
        let mut peer = Peer {
            reader: BufReader::new(reader),
            writer,
        };
        peer.say(GREETING).await;
        let request = peer.request().await;
        assert_eq!(request["execute"], "qmp_capabilities");
        peer.answer(&request, json!({})).await;
        peer
    };
    let (client, peer) = tokio::join!(Qmp::connect(&socket, LIMIT), peer);
    let (qmp, events) = client.unwrap();
    (qmp, events, peer)
}

#[tokio::test]
async fn the_greeting_tells_the_version() {
    let (qmp, _events, _peer) = connected().await;
    assert_eq!(qmp.version().to_string(), "7.2.22");
}

#[tokio::test]
async fn joined_commands_are_sent_in_order_without_waiting_for_each_other() {
    let (qmp, _events, mut peer) = connected().await;
    let peer = async {
        let (status, migrate) = (peer.request().await, peer.request().await);
        assert_eq!(status["execute"], "query-status");
        assert_eq!(migrate["execute"], "query-migrate");
        peer.answer(&migrate, json!({ "status": "completed" }))
            .await;
        peer.answer(
            &status,
            json!({ "status": "paused", "running": false, "new": 1 }),
        )
        .await;
    };
    let (status, migrate, ()) = tokio::join!(qmp.query_status(), qmp.query_migrate(), peer);
    assert_eq!(status.unwrap().status, RunState::Paused);
    assert_eq!(migrate.unwrap().status, MigrationStatus::Completed);
}

#[tokio::test]
async fn a_refusal_keeps_qemus_words() {
    let (qmp, _events, mut peer) = connected().await;
    let peer = async {
        let request = peer.request().await;
        let error = json!({ "class": "GenericError", "desc": "not now" });
        peer.say(&json!({ "error": error, "id": request["id"] }).to_string())
            .await;
    };
    let (result, ()) = tokio::join!(qmp.cont(), peer);
    let error = result.unwrap_err();
    assert_eq!(error.to_string(), "qemu refused cont: not now");
    assert!(!error.is_unknown());
}

#[tokio::test]
async fn a_command_without_an_answer_ends_as_unknown_and_harms_no_other() {
    let (qmp, _events, mut peer) = connected().await;
    let limit = Duration::from_millis(20);
    let late = qmp
        .execute_within::<Value>(limit, "stop", Value::Null)
        .await
        .unwrap_err();
    assert!(matches!(
        late,
        QmpError::Timeout {
            command: "stop",
            ..
        }
    ));
    assert!(late.is_unknown());
    let peer = async {
        let stop = peer.request().await;
        let status = peer.request().await;
        peer.answer(&stop, json!({})).await;
        peer.answer(&status, json!({ "status": "running" })).await;
    };
    let (status, ()) = tokio::join!(qmp.query_status(), peer);
    assert_eq!(status.unwrap().status, RunState::Running);
}

#[tokio::test]
async fn a_lost_connection_ends_commands_and_events() {
    let (qmp, mut events, mut peer) = connected().await;
    let peer = async {
        peer.request().await;
        drop(peer);
    };
    let (result, ()) = tokio::join!(qmp.query_status(), peer);
    assert!(matches!(result.unwrap_err(), QmpError::Closed));
    assert_eq!(events.next().await, None);
    assert!(qmp.is_closed());
    assert!(matches!(qmp.stop().await.unwrap_err(), QmpError::Closed));
    assert_eq!(qmp.events().next().await, None);
}

#[tokio::test]
async fn events_carry_qemus_time_and_unknown_words_are_no_errors() {
    let (_qmp, mut events, mut peer) = connected().await;
    let time = r#""timestamp": {"seconds": 7, "microseconds": 9}"#;
    peer.say(&format!(
        r#"{{"event": "MIGRATION", "data": {{"status": "device"}}, {time}}}"#
    ))
    .await;
    peer.say(&format!(
        r#"{{"event": "MIGRATION", "data": {{"status": "new"}}, {time}}}"#
    ))
    .await;
    peer.say(&format!(r#"{{"event": "NOVELTY", {time}}}"#))
        .await;
    let first = events.next().await.unwrap();
    assert_eq!(first.event, Event::Migration(MigrationStatus::Device));
    let since = first
        .at
        .unwrap()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    assert_eq!(since, Duration::from_micros(7_000_009));
    let second = events.next().await.unwrap();
    assert_eq!(second.event, Event::Migration(MigrationStatus::Unknown));
    assert_eq!(
        events.next().await.unwrap().event,
        Event::Other("NOVELTY".to_owned())
    );
}

#[tokio::test]
async fn a_slow_reader_of_events_is_told_so_and_holds_nothing_up() {
    let (qmp, mut events, mut peer) = connected().await;
    for _ in 0..2 * EVENTS_MAX {
        peer.say(r#"{"event": "RESET", "timestamp": {"seconds": 1, "microseconds": 0}}"#)
            .await;
    }
    let peer = async {
        let request = peer.request().await;
        peer.answer(&request, json!({ "status": "running" })).await;
    };
    // The answer comes behind all events, so none is on its way after it.
    let (status, ()) = tokio::join!(qmp.query_status(), peer);
    assert!(status.is_ok());
    assert_eq!(events.next().await.unwrap().event, Event::Missed);
    assert_eq!(events.next().await.unwrap().event, Event::Reset);
}

#[tokio::test]
async fn nobody_to_connect_to_is_an_error_after_the_limit() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("none");
    let error = Qmp::connect(&missing, Duration::from_millis(10))
        .await
        .unwrap_err();
    assert!(matches!(error, QmpError::Connect(_)));
}

#[test]
fn an_empty_answer_about_a_migration_means_none() {
    let info: MigrationInfo = serde_json::from_value(json!({})).unwrap();
    assert_eq!(info.status, MigrationStatus::None);
    assert!(info.ram.is_none());
}
