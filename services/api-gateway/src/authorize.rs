//! Who may do what: the objects of rbac.authorization.k8s.io decide (`rbac/`).

use async_trait::async_trait;
use godwit_apimachinery::{AccessRequest, Authorizer, Decision, UserInfo};

use crate::rbac::{Policies, Verdict};

/// Decides by what is in force when it is asked.
pub(crate) struct Rules {
    policies: Policies,
}

impl Rules {
    pub(crate) fn new(policies: Policies) -> Self {
        Self { policies }
    }
}

#[async_trait]
impl Authorizer for Rules {
    async fn authorize(&self, user: &UserInfo, access: &AccessRequest) -> Decision {
        match self.policies.now().decide(user, access) {
            Verdict::Allowed(_) => Decision::Allow,
            Verdict::Denied(why) => Decision::Deny(why),
        }
    }
}
