//! What a migration may be asked by annotations of its object: where to, and how.
//!
//! Read by api-gateway, which refuses what makes no sense, and by migration-coordinator; written by
//! whoever plans migrations.

/// Annotation that names the planned target: it is taken if nothing speaks against it.
pub const TARGET_NODE: &str = "godwit.io/target-node";
/// Annotation that names the [`Method`].
pub const METHOD: &str = "godwit.io/method";

/// How a machine moves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Method {
    /// The guest runs on but for the allowed blackout, or the migration fails.
    #[default]
    Live,
    /// After the first pass the guest goes on at the target, and the rest of its memory follows. A
    /// source that is lost before that costs the memory.
    PostCopy,
    /// The guest may stand still for as long as what is left needs.
    Pause,
}

impl Method {
    /// All of them, as users write them.
    pub const NAMES: [&str; 3] = [
        Self::Live.as_str(),
        Self::PostCopy.as_str(),
        Self::Pause.as_str(),
    ];

    /// As users write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Live => "Live",
            Self::PostCopy => "PostCopy",
            Self::Pause => "Pause",
        }
    }

    /// What users wrote; `None` when it is none of ours.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Live, Self::PostCopy, Self::Pause]
            .into_iter()
            .find(|method| method.as_str() == name)
    }
}
