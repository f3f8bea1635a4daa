//! What one watcher was told, replayed and checked event by event, and then against the change log.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::watch_log::{Log, Scope, compared};

/// Objects as a watcher knows them, by `namespace/name`.
pub(crate) type Objects = BTreeMap<String, Seen>;

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) revision: u64,
    pub(crate) uid: String,
    /// What is compared of it.
    pub(crate) text: String,
}

/// What an event says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tell {
    Added,
    Modified,
    Deleted,
}

/// An event, remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) tell: Tell,
    pub(crate) revision: u64,
    pub(crate) key: String,
    pub(crate) digest: u64,
}

pub(crate) fn digest(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// From a list to the end of what was told after it, over any number of connections.
#[derive(Debug, Default)]
pub(crate) struct Replay {
    /// Revision of the list.
    pub(crate) from: u64,
    /// What it showed.
    pub(crate) first: Objects,
    pub(crate) objects: Objects,
    /// Everything up to here was told.
    pub(crate) at: u64,
    pub(crate) told: Vec<Told>,
    pub(crate) bookmarks: usize,
    /// A pod that moves is gone one revision early, and may be told to be gone once more to who
    /// goes on from there.
    pub(crate) moves: bool,
    gone: Option<String>,
}

impl Replay {
    pub(crate) fn listed(from: u64, objects: Objects) -> Self {
        Self {
            from,
            first: objects.clone(),
            objects,
            at: from,
            ..Self::default()
        }
    }

    /// Checks an event and applies it.
    pub(crate) fn event(&mut self, tell: Tell, (key, seen): (String, Seen)) -> Result<()> {
        let revision = seen.revision;
        let known = self.objects.get(&key);
        let repeats_move = self.moves && tell == Tell::Deleted && revision == self.at;
        if repeats_move && known.is_none() && self.gone.as_ref() == Some(&key) {
            return Ok(());
        }
        ensure!(
            revision > self.at || repeats_move,
            "{tell:?} {key} at {revision}, when everything up to {} was told",
            self.at
        );
        match (tell, known) {
            (Tell::Added, Some(known)) => bail!("ADDED {key} at {revision}, known as {known:?}"),
            (Tell::Modified | Tell::Deleted, None) => {
                bail!("{tell:?} {key} at {revision}, which was never added")
            }
            (Tell::Modified | Tell::Deleted, Some(known)) => ensure!(
                known.uid == seen.uid,
                "{tell:?} {key} at {revision}: uid {}, known as {known:?}",
                seen.uid
            ),
            (Tell::Added, None) => {}
        }
        self.at = revision;
        self.told.push(Told {
            tell,
            revision,
            key: key.clone(),
            digest: digest(&seen.text),
        });
        if tell == Tell::Deleted {
            self.objects.remove(&key);
            self.gone = Some(key);
        } else {
            self.objects.insert(key, seen);
        }
        Ok(())
    }

    /// Everything up to `revision` was told, the server says.
    pub(crate) fn bookmark(&mut self, revision: u64) -> Result<()> {
        ensure!(
            revision >= self.at,
            "a bookmark at {revision}, when everything up to {} was told",
            self.at
        );
        self.at = revision;
        self.bookmarks += 1;
        Ok(())
    }

    /// What differs from what the log says should have been told.
    pub(crate) fn judge(&self, log: &Log, scope: &Scope) -> Vec<String> {
        let mut wrong = differences(&log.at(scope, self.from), &self.first);
        for text in &mut wrong {
            *text = format!("list at {}: {text}", self.from);
        }
        let expected = log.told(scope, self.from, self.at);
        let (expected, told) = (&expected[..], &self.told[..]);
        let same = expected
            .iter()
            .zip(told)
            .take_while(|(left, right)| left == right)
            .count();
        if same < expected.len() || same < told.len() {
            wrong.push(format!(
                "event {same} of {} expected and {} told from {} to {}: expected {:?}, told {:?}",
                expected.len(),
                told.len(),
                self.from,
                self.at,
                expected.get(same),
                told.get(same)
            ));
        }
        wrong
    }
}

/// What differs between two sets of objects.
pub(crate) fn differences(expected: &Objects, found: &Objects) -> Vec<String> {
    let mut wrong = vec![];
    for (key, object) in expected {
        match found.get(key) {
            None => wrong.push(format!("{key} is missing: {object:?}")),
            Some(other) if other != object => {
                wrong.push(format!("{key} is {other:?}, not {object:?}"));
            }
            Some(_) => {}
        }
    }
    let strange = found.iter().filter(|(key, _)| !expected.contains_key(*key));
    wrong.extend(strange.map(|(key, object)| format!("{key} is too much: {object:?}")));
    wrong
}

/// Reads an object as the server showed it; `whole` when it shows more than metadata.
pub(crate) fn read(object: &Value, whole: bool) -> Result<(String, Seen)> {
    let metadata = &object["metadata"];
    let text = |key: &str| metadata[key].as_str().unwrap_or_default();
    let uid = text("uid");
    ensure!(!uid.is_empty(), "no uid in {object}");
    let parts = [&object["spec"], &object["data"]];
    let seen = Seen {
        revision: revision(object)?,
        uid: uid.to_owned(),
        text: compared(
            whole,
            (uid, &metadata["labels"]),
            (parts, &object["status"]),
        ),
    };
    Ok((format!("{}/{}", text("namespace"), text("name")), seen))
}

/// `metadata.resourceVersion` as a number.
pub(crate) fn revision(object: &Value) -> Result<u64> {
    let text = object["metadata"]["resourceVersion"].as_str();
    let text = text.with_context(|| format!("no resourceVersion in {object}"))?;
    text.parse().with_context(|| format!("revision {text}"))
}

#[cfg(test)]
mod tests {
    //! The checker has to bite: each kind of mistake is made once, and must be found.

    use super::*;
    use crate::watch_log::Pick;
    use godwit_ledger::{Change, ChangeKind, Object, ObjectKey};
    use godwit_model::Revision;
    use serde_json::json;

    const MAPS: &str = "configmaps";

    fn change(kind: ChangeKind, name: &str, (revision, team): (u64, &str)) -> Change {
        Change {
            revision: Revision(revision),
            kind,
            object: Object {
                key: ObjectKey::new(MAPS, "default", name),
                uid: format!("uid-{name}"),
                metadata: json!({"labels": {"team": team}}),
                body: json!({"data": {"at": revision.to_string()}}),
                status: None,
                revision: Revision(revision),
            },
            at: jiff::Timestamp::UNIX_EPOCH,
        }
    }

    /// `a` is red, turns blue, and red again; `b` comes and goes.
    fn log() -> Log {
        use ChangeKind::{Added, Deleted, Modified};
        Log::of(vec![
            change(Added, "a", (11, "red")),
            change(Added, "b", (12, "red")),
            change(Modified, "b", (13, "red")),
            change(Modified, "a", (14, "blue")),
            change(Modified, "b", (15, "red")),
            change(Modified, "a", (16, "red")),
            change(Deleted, "b", (17, "red")),
        ])
    }

    fn red() -> Scope {
        Scope {
            resource: MAPS,
            namespace: Some("default"),
            pick: Pick::Team("red"),
            whole: true,
        }
    }

    /// What a server that makes no mistake tells.
    fn stream() -> Vec<(Tell, (String, Seen))> {
        let object = |name: &str, (revision, made): (u64, u64)| {
            let object = json!({
                "metadata": {
                    "namespace": "default", "name": name, "uid": format!("uid-{name}"),
                    "resourceVersion": revision.to_string(), "labels": {"team": "red"},
                },
                "data": {"at": made.to_string()},
            });
            read(&object, true).unwrap()
        };
        // Who leaves the selector is shown as it was, at the revision of the change.
        vec![
            (Tell::Added, object("b", (12, 12))),
            (Tell::Modified, object("b", (13, 13))),
            (Tell::Deleted, object("a", (14, 11))),
            (Tell::Modified, object("b", (15, 15))),
            (Tell::Added, object("a", (16, 16))),
            (Tell::Deleted, object("b", (17, 15))),
        ]
    }

    /// Everything that is found wrong with a stream after a list at revision 11.
    fn verdict(stream: Vec<(Tell, (String, Seen))>) -> Vec<String> {
        let mut replay = Replay::listed(11, log().at(&red(), 11));
        let mut wrong = vec![];
        for (tell, object) in stream {
            if let Err(error) = replay.event(tell, object) {
                wrong.push(error.to_string());
            }
        }
        if let Err(error) = replay.bookmark(17) {
            wrong.push(error.to_string());
        }
        wrong.extend(replay.judge(&log(), &red()));
        wrong.extend(differences(&log().at(&red(), 17), &replay.objects));
        wrong
    }

    #[test]
    fn a_stream_without_mistakes_is_accepted() {
        assert_eq!(verdict(stream()), Vec::<String>::new());
        assert_eq!(log().count(MAPS, 11, 16), 5);
    }

    #[test]
    fn every_missed_event_is_found() {
        for missed in 0..stream().len() {
            let mut stream = stream();
            stream.remove(missed);
            assert!(!verdict(stream).is_empty(), "event {missed} was not missed");
        }
    }

    #[test]
    fn every_repeated_event_is_found() {
        for repeated in 0..stream().len() {
            for later in repeated..stream().len() {
                let mut stream = stream();
                stream.insert(later + 1, stream[repeated].clone());
                assert!(!verdict(stream).is_empty(), "{repeated} again at {later}");
            }
        }
    }

    #[test]
    fn every_pair_in_the_wrong_order_is_found() {
        for first in 0..stream().len() - 1 {
            let mut stream = stream();
            stream.swap(first, first + 1);
            assert!(!verdict(stream).is_empty(), "{first} was swapped unseen");
        }
    }

    #[test]
    fn wrong_types_contents_and_revisions_are_found() {
        for at in 0..stream().len() {
            for tell in [Tell::Added, Tell::Modified, Tell::Deleted] {
                let mut changed = stream();
                if changed[at].0 != tell {
                    changed[at].0 = tell;
                    assert!(!verdict(changed).is_empty(), "{tell:?} at {at}");
                }
            }
            let mut changed = stream();
            changed[at].1.1.text.push('x');
            assert!(!verdict(changed).is_empty(), "another content at {at}");
            let mut changed = stream();
            changed[at].1.1.uid.push('x');
            assert!(!verdict(changed).is_empty(), "another uid at {at}");
            let mut changed = stream();
            changed[at].1.1.revision += 1;
            assert!(!verdict(changed).is_empty(), "another revision at {at}");
        }
    }

    #[test]
    fn an_event_that_the_selector_leaves_out_is_found() {
        let mut stranger = stream();
        let (key, mut seen) = stranger[0].1.clone();
        seen.revision = 14;
        stranger.insert(2, (Tell::Modified, (key, seen)));
        assert!(!verdict(stranger).is_empty());
    }

    #[test]
    fn a_bookmark_ahead_of_what_was_told_is_found() {
        let mut replay = Replay::listed(11, log().at(&red(), 11));
        replay.bookmark(13).unwrap();
        let (tell, first) = stream().remove(0);
        assert!(
            replay.event(tell, first).is_err(),
            "12 after a bookmark at 13"
        );
        assert!(!replay.judge(&log(), &red()).is_empty());
        assert!(replay.bookmark(12).is_err(), "a bookmark went back");
    }

    #[test]
    fn a_wrong_list_is_found() {
        let mut first = log().at(&red(), 11);
        first.values_mut().next().unwrap().text.push('x');
        let replay = Replay::listed(11, first);
        assert!(!replay.judge(&log(), &red()).is_empty());
        let replay = Replay::listed(11, Objects::new());
        assert!(!replay.judge(&log(), &red()).is_empty());
    }

    #[test]
    fn a_pod_that_moved_may_be_gone_twice_and_no_more_than_that() {
        let pod = |revision: u64| Seen {
            revision,
            uid: "uid".to_owned(),
            text: String::new(),
        };
        let named = |name: &str, revision| (name.to_owned(), pod(revision));
        let mut replay = Replay {
            moves: true,
            ..Replay::default()
        };
        replay.event(Tell::Added, named("old", 5)).unwrap();
        replay.event(Tell::Modified, named("old", 6)).unwrap();
        replay.event(Tell::Deleted, named("old", 6)).unwrap();
        replay.event(Tell::Deleted, named("old", 6)).unwrap();
        assert!(replay.event(Tell::Deleted, named("other", 6)).is_err());
        replay.event(Tell::Added, named("new", 7)).unwrap();
        assert!(replay.event(Tell::Deleted, named("old", 6)).is_err());
        assert!(replay.event(Tell::Modified, named("new", 7)).is_err());
    }
}
