//! Kinds that clients ask for and that have no objects here.

use godwit_apimachinery::{Kind, Verb, View};

use super::schema;

/// Older clients evict only where they find its group, and delete pods otherwise.
pub(crate) fn disruption_budget() -> Kind {
    Kind {
        short_names: vec!["pdb"],
        ..declare(
            "PodDisruptionBudget",
            "poddisruptionbudgets",
            vec![View::new("policy", "v1"), View::new("policy", "v1beta1")],
        )
    }
}

/// `kubectl cluster-info` looks for those that tell where the cluster's own services are.
pub(crate) fn service() -> Kind {
    Kind {
        short_names: vec!["svc"],
        ..declare("Service", "services", vec![View::new("", "v1")])
    }
}

fn declare(kind: &'static str, plural: &'static str, views: Vec<View>) -> Kind {
    Kind {
        verbs: Verb::READ.to_vec(),
        has_status: false,
        strategic_merge: true,
        schema: schema::open(),
        ..Kind::custom(kind, plural, views)
    }
}
