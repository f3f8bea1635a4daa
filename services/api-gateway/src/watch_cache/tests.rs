use super::*;
use godwit_ledger::ObjectKey;
use godwit_model::Revision;
use serde_json::json;

const SECRETS: &str = "secrets";
const SHORT: Duration = Duration::from_millis(20);

fn object(namespace: &str, name: &str, revision: u64) -> Object {
    Object {
        key: ObjectKey::new(SECRETS, namespace, name),
        uid: format!("uid-{name}"),
        metadata: json!({}),
        body: json!({"data": {"at": revision.to_string()}}),
        status: None,
        revision: Revision(revision),
    }
}

fn change(kind: ChangeKind, name: &str, revision: u64) -> Change {
    Change {
        revision: Revision(revision),
        kind,
        object: object("default", name, revision),
        at: jiff::Timestamp::UNIX_EPOCH,
    }
}

fn cache() -> WatchCache {
    let cache = WatchCache::new();
    cache.reset(vec![object("default", "a", 3), object("other", "b", 4)], 5);
    cache
}

async fn names(cache: &WatchCache, namespace: Option<&str>, at: ListAt) -> Vec<String> {
    let listed = cache.list(SECRETS, namespace, at).await.unwrap();
    listed
        .items
        .iter()
        .map(|object| object.name().name.to_owned())
        .collect()
}

#[tokio::test]
async fn a_list_shows_one_namespace_or_all() {
    let cache = cache();
    assert_eq!(names(&cache, None, ListAt::Latest).await, ["a", "b"]);
    assert_eq!(names(&cache, Some("other"), ListAt::Latest).await, ["b"]);
    assert!(names(&cache, Some("oth"), ListAt::Latest).await.is_empty());
    let listed = cache.list("nothing", None, ListAt::Latest).await.unwrap();
    assert_eq!((listed.items.len(), listed.revision), (0, 5));
    assert_eq!(cache.count_in_namespace("other")[SECRETS], 1);
}

#[tokio::test]
async fn an_older_list_is_rebuilt_from_the_changes() {
    let cache = cache();
    cache.apply(vec![
        change(ChangeKind::Added, "c", 6),
        change(ChangeKind::Modified, "a", 7),
        change(ChangeKind::Deleted, "c", 8),
    ]);
    assert_eq!(names(&cache, None, ListAt::Exact(5)).await, ["a", "b"]);
    assert_eq!(names(&cache, None, ListAt::Exact(6)).await, ["a", "c", "b"]);
    let then = cache.list(SECRETS, None, ListAt::Exact(6)).await.unwrap();
    assert_eq!(then.items[0].revision(), 3);
    assert_eq!(names(&cache, None, ListAt::Exact(8)).await, ["a", "b"]);
    let expired = cache.list(SECRETS, None, ListAt::Exact(4)).await;
    assert!(matches!(expired, Err(StoreError::Expired { oldest: 5 })));
}

#[tokio::test]
async fn a_watcher_sees_each_change_once_and_in_order() {
    let cache = cache();
    let mut cursor = cache.subscribe(SECRETS, 5).await.unwrap();
    assert!(cursor.next(SHORT).await.unwrap().is_empty());
    cache.apply(vec![
        change(ChangeKind::Added, "c", 6),
        change(ChangeKind::Modified, "c", 7),
    ]);
    cache.apply(vec![
        change(ChangeKind::Modified, "c", 7),
        change(ChangeKind::Deleted, "c", 8),
    ]);
    let events = cursor.next(SHORT).await.unwrap();
    assert_eq!(events.len(), 3);
    assert!(matches!(&events[0].event, WatchEvent::Added(object) if object.revision() == 6));
    assert!(matches!(
        &events[1].event,
        WatchEvent::Modified { previous: Some(previous), .. } if previous.revision() == 6
    ));
    assert!(matches!(&events[2].event, WatchEvent::Deleted(object) if object.revision() == 8));
    assert_eq!(cursor.at(), 8);
    assert!(cursor.next(SHORT).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_watcher_wakes_up_at_a_change() {
    let cache = cache();
    let mut cursor = cache.subscribe(SECRETS, 5).await.unwrap();
    let waiting = tokio::spawn(async move { cursor.next(Duration::from_secs(30)).await });
    tokio::task::yield_now().await;
    cache.apply(vec![change(ChangeKind::Added, "c", 6)]);
    let events = waiting.await.unwrap().unwrap();
    assert_eq!(events.len(), 1);
}

#[tokio::test]
async fn a_watcher_that_is_too_slow_is_sent_away() {
    let cache = cache();
    let mut slow = cache.subscribe(SECRETS, 5).await.unwrap();
    let last = 6 + RING_MAX as u64;
    cache.apply(
        (6..=last)
            .map(|at| change(ChangeKind::Modified, "a", at))
            .collect(),
    );
    assert!(matches!(
        slow.next(SHORT).await,
        Err(StoreError::Expired { .. })
    ));
    assert!(matches!(
        cache.subscribe(SECRETS, 5).await,
        Err(StoreError::Expired { .. })
    ));
    assert!(cache.subscribe(SECRETS, last).await.is_ok());
}

#[tokio::test]
async fn a_new_snapshot_sends_watchers_away() {
    let cache = cache();
    let mut cursor = cache.subscribe(SECRETS, 5).await.unwrap();
    cache.reset(vec![object("default", "z", 90)], 100);
    assert!(matches!(
        cursor.next(SHORT).await,
        Err(StoreError::Expired { oldest: 100 })
    ));
    assert_eq!(names(&cache, None, ListAt::Latest).await, ["z"]);
}

#[tokio::test]
async fn a_revision_from_the_future_is_waited_for_and_then_refused() {
    let cache = cache();
    let refused = cache.list(SECRETS, None, ListAt::NotOlderThan(9)).await;
    assert!(matches!(
        refused,
        Err(StoreError::TooNew {
            asked: 9,
            current: 5
        })
    ));
    cache.acknowledge(6);
    let feeder = cache.clone();
    tokio::spawn(async move { feeder.apply(vec![change(ChangeKind::Added, "c", 6)]) });
    assert_eq!(names(&cache, None, ListAt::Latest).await, ["a", "c", "b"]);
}
