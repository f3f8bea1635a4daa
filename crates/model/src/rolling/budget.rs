//! Budgets: of a group of machines only so many move at once.

use super::order::Budget;
use crate::affinity::Labels;

/// A machine that moves, or would.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mover {
    /// Its namespace.
    pub namespace: String,
    /// Labels of its instance.
    pub labels: Labels,
}

/// The first of `budgets` that has no room for `machine` beside those that are `moving`.
pub fn over_budget<'a>(
    budgets: impl IntoIterator<Item = &'a Budget>,
    moving: &[Mover],
    machine: &Mover,
) -> Option<&'a Budget> {
    budgets.into_iter().find(|budget| {
        let has = |one: &Mover| budget.has(&one.namespace, &one.labels);
        has(machine) && moving.iter().filter(|one| has(one)).count() >= budget.max_moving
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mover(namespace: &str, app: &str) -> Mover {
        Mover {
            namespace: namespace.to_owned(),
            labels: Labels::from([("app".to_owned(), app.to_owned())]),
        }
    }

    fn budget(text: &str) -> Budget {
        serde_json::from_str(text).expect("a budget")
    }

    #[test]
    fn a_machine_moves_while_its_groups_have_room() {
        let budgets = [
            budget(
                r#"{ "name": "db", "maxMoving": 1, "namespaces": ["prod"],
                        "selector": { "matchLabels": { "app": "db" } } }"#,
            ),
            budget(r#"{ "name": "all", "maxMoving": 2 }"#),
        ];
        let over = |moving: &[Mover], machine: &Mover| {
            over_budget(&budgets, moving, machine).map(|budget| budget.name.clone())
        };
        let (db, web) = (mover("prod", "db"), mover("prod", "web"));
        assert_eq!(over(&[], &db), None);
        assert_eq!(over(std::slice::from_ref(&db), &db).as_deref(), Some("db"));
        assert_eq!(over(std::slice::from_ref(&db), &web), None);
        assert_eq!(over(std::slice::from_ref(&db), &mover("test", "db")), None);
        assert_eq!(
            over(&[web.clone(), web.clone()], &db).as_deref(),
            Some("all")
        );
    }
}
