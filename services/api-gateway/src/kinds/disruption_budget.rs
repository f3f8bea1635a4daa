//! PodDisruptionBudget: an empty list. Older clients evict only where they find its group, and
//! delete pods otherwise.

use godwit_apimachinery::{Kind, Verb, View};

use super::schema;

pub(crate) fn kind() -> Kind {
    Kind {
        short_names: vec!["pdb"],
        verbs: Verb::READ.to_vec(),
        has_status: false,
        strategic_merge: true,
        schema: schema::open(),
        ..Kind::custom(
            "PodDisruptionBudget",
            "poddisruptionbudgets",
            vec![View::new("policy", "v1"), View::new("policy", "v1beta1")],
        )
    }
}
