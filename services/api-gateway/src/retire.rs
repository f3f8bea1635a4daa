//! Deletes migrations that are over and that nobody looks for any more, as KubeVirt does. What they
//! did is kept in the history.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use godwit_apimachinery::object::{is_deleting, meta_str, name, namespace};
use godwit_apimachinery::{ApiServer, Stored};
use serde_json::Value;
use tracing::warn;

use crate::facts::Facts;
use crate::kinds::{self, resource};

const EVERY: Duration = Duration::from_secs(5);
/// Ended migrations that are kept for each instance; KubeVirt's number.
const KEEP: usize = 5;

/// Looks for ever. Several replicas may do it at once.
pub(crate) async fn run(api: Arc<ApiServer>, facts: Facts) {
    loop {
        tokio::time::sleep(EVERY).await;
        let has_instance = |space: &str, instance: &str| facts.instance(space, instance).is_some();
        for migration in overdue(facts.all_migrations(), has_instance) {
            let gone = api.discard(resource::MIGRATIONS, &migration).await;
            if let Err(status) = gone {
                let name = name(migration.object());
                warn!(
                    name,
                    error = status.message(),
                    "can't delete an ended migration"
                );
            }
        }
    }
}

/// Those beyond the newest [`KEEP`] of their instance, and all whose instance is gone.
fn overdue(
    migrations: Vec<Arc<Stored>>,
    has_instance: impl Fn(&str, &str) -> bool,
) -> Vec<Arc<Stored>> {
    let mut ended: Vec<Arc<Stored>> = migrations;
    ended.retain(|migration| has_ended(migration.object()));
    ended.sort_by(|left, right| age(right).cmp(&age(left)));
    let mut kept: HashMap<(String, String), usize> = HashMap::new();
    ended.retain(|migration| {
        let object = migration.object();
        let (space, instance) = (namespace(object), kinds::migration_machine(object));
        let kept = kept
            .entry((space.to_owned(), instance.to_owned()))
            .or_default();
        *kept += 1;
        *kept > KEEP || !has_instance(space, instance)
    });
    ended
}

fn has_ended(migration: &Value) -> bool {
    let phase = migration["status"]["phase"].as_str();
    matches!(phase, Some("Succeeded" | "Failed")) && !is_deleting(migration)
}

/// When it was asked for; of the same second, the one that changed last is the younger.
fn age(migration: &Stored) -> (&str, u64) {
    let made = meta_str(migration.object(), "creationTimestamp");
    (made, migration.revision())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn migration(name: &str, instance: &str, minute: u32, phase: &str) -> Arc<Stored> {
        let object = json!({
            "metadata": {"name": name, "namespace": "default",
                "creationTimestamp": format!("2026-01-01T00:{minute:02}:00Z")},
            "spec": {"vmiName": instance}, "status": {"phase": phase},
        });
        Stored::new(object, 1)
    }

    #[test]
    fn the_newest_five_of_each_instance_stay_and_all_that_run() {
        let mut all: Vec<_> = (0..7)
            .map(|at| migration(&format!("m{at}"), "a", at, "Succeeded"))
            .collect();
        all.push(migration("runs", "a", 0, "Running"));
        all.push(migration("other", "b", 0, "Failed"));
        all.push(migration("lost", "gone", 9, "Failed"));
        all.push(migration("going", "gone", 9, "Running"));
        let overdue = overdue(all, |_, instance| instance != "gone");
        let mut names: Vec<&str> = overdue.iter().map(|gone| name(gone.object())).collect();
        names.sort_unstable();
        assert_eq!(names, ["lost", "m0", "m1"]);
    }
}
