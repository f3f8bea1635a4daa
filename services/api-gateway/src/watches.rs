//! Watches: the changes that one client asked for, and how far it is.

use std::time::Duration;

use futures::StreamExt;
use godwit_apimachinery::{StoreError, WatchEvent, WatchSpan, WatchStream};
use tokio::time::Instant;

use crate::kinds::resource;
use crate::launchers;
use crate::watch_cache::{Cursor, Recent, WatchCache};

/// How often a watcher is told how far it is, however much or little concerns it.
const BOOKMARK_EVERY: Duration = Duration::from_secs(30);
/// How long before its end it is told once more, so that it goes on from near the newest change.
const BOOKMARK_BEFORE_END: Duration = Duration::from_secs(2);

/// The changes of a resource within `span`; `namespace` as in
/// [`Store::watch`](godwit_apimachinery::Store::watch).
pub(crate) async fn begin(
    cache: &WatchCache,
    resource: &str,
    namespace: Option<&str>,
    span: WatchSpan,
) -> Result<WatchStream, StoreError> {
    let (followed, tell): (&str, Tell) = match resource {
        resource::PODS => (resource::INSTANCES, launchers::events),
        _ => (resource, |change| vec![change.event.clone()]),
    };
    let follower = Follower {
        cursor: cache.subscribe(followed, span.from).await?,
        tell,
        ends: span.ends,
        bookmark: next_bookmark(span.ends),
    };
    let namespace = namespace.map(str::to_owned);
    let batches = futures::stream::unfold(Some(follower), |follower| async move {
        let mut follower = follower?;
        Some(match follower.next().await {
            Ok(events) => (events.into_iter().map(Ok).collect(), Some(follower)),
            Err(error) => (vec![Err(error)], None),
        })
    });
    let events = batches.flat_map(futures::stream::iter);
    let mine = events.filter(move |event| {
        let keep = concerns(event, namespace.as_deref());
        futures::future::ready(keep)
    });
    Ok(mine.boxed())
}

/// What a change is to the watchers of a kind.
type Tell = fn(&Recent) -> Vec<WatchEvent>;

struct Follower {
    cursor: Cursor,
    tell: Tell,
    ends: Instant,
    /// When the next bookmark is due.
    bookmark: Instant,
}

impl Follower {
    async fn next(&mut self) -> Result<Vec<WatchEvent>, StoreError> {
        let idle = self.bookmark.saturating_duration_since(Instant::now());
        let changes = self.cursor.next(idle).await?;
        let mut events: Vec<WatchEvent> = changes.iter().flat_map(self.tell).collect();
        if Instant::now() >= self.bookmark {
            events.push(WatchEvent::Bookmark(self.cursor.at()));
            self.bookmark = next_bookmark(self.ends);
        }
        Ok(events)
    }
}

fn next_bookmark(ends: Instant) -> Instant {
    let now = Instant::now();
    let regular = now + BOOKMARK_EVERY;
    match ends.checked_sub(BOOKMARK_BEFORE_END) {
        Some(last) if last > now => regular.min(last),
        Some(_) | None => regular,
    }
}

fn concerns(event: &Result<WatchEvent, StoreError>, namespace: Option<&str>) -> bool {
    let (Ok(event), Some(namespace)) = (event, namespace) else {
        return true;
    };
    match event {
        WatchEvent::Added(object)
        | WatchEvent::Modified { object, .. }
        | WatchEvent::Deleted(object) => object.name().namespace == namespace,
        WatchEvent::Bookmark(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use godwit_ledger::{Change, ChangeKind, Object, ObjectKey};
    use godwit_model::Revision;
    use serde_json::json;

    const MAPS: &str = resource::CONFIG_MAPS;

    fn change(name: &str, revision: u64) -> Change {
        Change {
            revision: Revision(revision),
            kind: ChangeKind::Added,
            object: Object {
                key: ObjectKey::new(MAPS, "busy", name),
                uid: format!("uid-{name}"),
                metadata: json!({}),
                body: json!({}),
                status: None,
                revision: Revision(revision),
            },
            at: jiff::Timestamp::UNIX_EPOCH,
        }
    }

    async fn watch(cache: &WatchCache, namespace: &str, lasts: Duration) -> WatchStream {
        let ends = Instant::now() + lasts;
        let span = WatchSpan { from: 10, ends };
        begin(cache, MAPS, Some(namespace), span).await.unwrap()
    }

    #[tokio::test]
    async fn a_watch_that_nothing_concerns_is_told_how_far_it_is() {
        let cache = WatchCache::new();
        cache.reset(Vec::<Object>::new(), 10);
        let soon = BOOKMARK_BEFORE_END + Duration::from_millis(200);
        let mut quiet = watch(&cache, "quiet", soon).await;
        let writing = async {
            for turn in 0.. {
                cache.apply(vec![change(&format!("map-{turn}"), 11 + turn)]);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let event = tokio::select! {
            event = quiet.next() => event,
            () = writing => None,
        };
        let Some(Ok(WatchEvent::Bookmark(revision))) = event else {
            panic!("{event:?}")
        };
        assert!(revision > 20 && revision <= cache.revision(), "{revision}");
    }

    #[tokio::test]
    async fn a_bookmark_is_of_its_own_time_where_other_kinds_are_busy() {
        let cache = WatchCache::new();
        cache.reset(Vec::<Object>::new(), 10);
        let soon = BOOKMARK_BEFORE_END + Duration::from_millis(50);
        let mut idle = watch(&cache, "busy", soon).await;
        let waiting = tokio::spawn(async move { idle.next().await });
        tokio::task::yield_now().await;
        let mut other = change("secret", 11);
        other.object.key.resource = "secrets".to_owned();
        cache.apply(vec![other]);
        let event = waiting.await.unwrap();
        assert!(
            matches!(event, Some(Ok(WatchEvent::Bookmark(11)))),
            "{event:?}"
        );
    }

    #[tokio::test]
    async fn bookmarks_come_now_and_then_and_once_more_before_the_end() {
        let (now, minute) = (Instant::now(), Duration::from_secs(60));
        let after = |ends| next_bookmark(ends) - now;
        assert_eq!(after(now + minute).as_secs(), 30);
        assert_eq!(after(now + Duration::from_secs(12)).as_secs(), 10);
        assert_eq!(after(now + Duration::from_secs(1)).as_secs(), 30);
    }
}
