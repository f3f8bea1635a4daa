//! Pods, read from the instances that they stand for: the same revisions, and nothing kept.

use std::sync::Arc;

use godwit_apimachinery::{ListAt, Listed, StoreError, Stored, WatchEvent};

use crate::kinds::{launched, launcher, resource};
use crate::watch_cache::{Recent, WatchCache};

/// The launcher of this name.
pub(crate) fn get(cache: &WatchCache, namespace: &str, name: &str) -> Option<Arc<Stored>> {
    let instance = cache.get(resource::INSTANCES, namespace, launched(name)?)?;
    launcher(&instance).filter(|pod| pod.name().name == name)
}

/// All launchers of one namespace, or of all.
pub(crate) async fn list(
    cache: &WatchCache,
    namespace: Option<&str>,
    at: ListAt,
) -> Result<Listed, StoreError> {
    let instances = cache.list(resource::INSTANCES, namespace, at).await?;
    let mut items: Vec<Arc<Stored>> = instances
        .items
        .iter()
        .filter_map(|instance| launcher(instance))
        .collect();
    items.sort_by(|left, right| left.name().cmp(&right.name()));
    Ok(Listed {
        items: Arc::new(items),
        revision: instances.revision,
    })
}

/// What a change of an instance is to its launchers, in order.
///
/// A machine that moves is two events. The first says the revision before the change, so that a
/// client which got no further, and goes on from there, is told of both again.
pub(crate) fn events(change: &Recent) -> Vec<WatchEvent> {
    let before = change.previous.as_deref().and_then(launcher);
    let now = match &change.event {
        WatchEvent::Added(instance)
        | WatchEvent::Modified {
            object: instance, ..
        } => launcher(instance),
        WatchEvent::Deleted(_) => None,
        WatchEvent::Bookmark(revision) => return vec![WatchEvent::Bookmark(*revision)],
    };
    let gone =
        |pod: &Stored, revision| WatchEvent::Deleted(Stored::new(pod.object().clone(), revision));
    match (before, now) {
        (None, None) => vec![],
        (None, Some(pod)) => vec![WatchEvent::Added(pod)],
        (Some(pod), None) => vec![gone(&pod, change.revision)],
        (Some(old), Some(pod)) if old.name() == pod.name() => vec![WatchEvent::Modified {
            object: pod,
            previous: Some(old),
        }],
        (Some(old), Some(pod)) => vec![
            gone(&old, change.revision.saturating_sub(1)),
            WatchEvent::Added(pod),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use godwit_ledger::{Change, ChangeKind, Object, ObjectKey};
    use godwit_model::Revision;
    use serde_json::{Value, json};
    use std::time::Duration;

    fn object(name: &str, revision: u64, status: Value) -> Object {
        Object {
            key: ObjectKey::new(resource::INSTANCES, "default", name),
            uid: format!("uid-{name}"),
            metadata: json!({}),
            body: json!({"spec": {}}),
            status: Some(status),
            revision: Revision(revision),
        }
    }

    fn on(node: &str, job: &str) -> Value {
        json!({"phase": "Running", "nodeName": node, "activePods": {job: node}})
    }

    fn change(kind: ChangeKind, object: Object) -> Change {
        Change {
            revision: object.revision,
            kind,
            object,
            at: jiff::Timestamp::UNIX_EPOCH,
        }
    }

    /// A machine starts, is told of, moves, and goes with its last state already emptied.
    fn life() -> WatchCache {
        use ChangeKind::{Added, Deleted, Modified};
        let cache = WatchCache::new();
        cache.reset(Vec::<Object>::new(), 10);
        cache.apply(vec![
            change(Added, object("a", 11, json!({"phase": "Pending"}))),
            change(Modified, object("a", 12, on("worker1", "uid-a"))),
            change(Modified, object("a", 13, on("worker1", "uid-a"))),
            change(Modified, object("a", 14, on("worker2", "job"))),
            change(Deleted, object("a", 15, json!({"phase": "Failed"}))),
        ]);
        cache
    }

    fn told(events: &[WatchEvent]) -> Vec<(&'static str, String, u64)> {
        let told = events.iter().map(|event| match event {
            WatchEvent::Added(pod) => ("ADDED", pod),
            WatchEvent::Modified { object: pod, .. } => ("MODIFIED", pod),
            WatchEvent::Deleted(pod) => ("DELETED", pod),
            WatchEvent::Bookmark(_) => panic!("no bookmark was asked for"),
        });
        told.map(|(kind, pod)| {
            let node = pod.object()["spec"]["nodeName"].as_str().unwrap();
            (kind, node.to_owned(), pod.revision())
        })
        .collect()
    }

    async fn from(cache: &WatchCache, revision: u64) -> Vec<WatchEvent> {
        let cursor = cache.subscribe(resource::INSTANCES, revision).await;
        let changes = cursor.unwrap().next(Duration::from_millis(20)).await;
        changes.unwrap().iter().flat_map(events).collect()
    }

    #[tokio::test]
    async fn a_watch_of_pods_follows_the_machine_from_node_to_node() {
        let cache = life();
        let (one, two) = ("worker1".to_owned(), "worker2".to_owned());
        let all = from(&cache, 10).await;
        let expected = [
            ("ADDED", one.clone(), 12),
            ("MODIFIED", one.clone(), 13),
            ("DELETED", one.clone(), 13),
            ("ADDED", two.clone(), 14),
            ("DELETED", two.clone(), 15),
        ];
        assert_eq!(told(&all), expected);
        // Whoever lost the connection between the two events of the move misses neither.
        assert_eq!(told(&from(&cache, 13).await), expected[2..]);
        assert_eq!(told(&from(&cache, 14).await), expected[4..]);
    }

    #[tokio::test]
    async fn lists_of_now_and_then_agree_with_the_events() {
        let cache = life();
        let nodes = async |at| -> Vec<String> {
            let listed = list(&cache, Some("default"), at).await.unwrap();
            let nodes = listed.items.iter();
            nodes
                .map(|pod| {
                    pod.object()["spec"]["nodeName"]
                        .as_str()
                        .unwrap()
                        .to_owned()
                })
                .collect()
        };
        assert_eq!(nodes(ListAt::Exact(13)).await, ["worker1"]);
        assert_eq!(nodes(ListAt::Exact(14)).await, ["worker2"]);
        assert!(nodes(ListAt::Latest).await.is_empty());
    }

    #[test]
    fn a_pod_is_found_by_its_own_name_alone() {
        let cache = WatchCache::new();
        let status = on("worker1", "uid-a");
        cache.reset(vec![object("a", 5, status)], 6);
        let pod = launcher(&cache.get(resource::INSTANCES, "default", "a").unwrap()).unwrap();
        let found = get(&cache, "default", pod.name().name).unwrap();
        assert_eq!((found.revision(), found.object()), (5, pod.object()));
        assert!(get(&cache, "default", "virt-launcher-a-xxxxx").is_none());
        assert!(get(&cache, "default", "a").is_none());
    }
}
