//! Names of service accounts, and the groups that follow from them.

const PREFIX: &str = "system:serviceaccount:";
const ALL: &str = "system:serviceaccounts";
/// Longest namespace, and longest name of a service account.
const LENGTHS_MAX: (usize, usize) = (63, 253);

/// Namespace and name, if the user's name is that of a service account.
pub(super) fn split(user: &str) -> Option<(&str, &str)> {
    let (namespace, name) = user.strip_prefix(PREFIX)?.split_once(':')?;
    let good = |text: &str, max: usize, dots: bool| {
        let known = |byte: u8| {
            byte.is_ascii_lowercase()
                || byte.is_ascii_digit()
                || byte == b'-'
                || (dots && byte == b'.')
        };
        let outer = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
        text.len() <= max
            && text.bytes().all(known)
            && outer(text.bytes().next())
            && outer(text.bytes().last())
    };
    let (namespaces, names) = LENGTHS_MAX;
    (good(namespace, namespaces, false) && good(name, names, true)).then_some((namespace, name))
}

/// The groups that every service account of a namespace is in.
pub(super) fn groups(namespace: &str) -> [String; 2] {
    [ALL.to_owned(), format!("{ALL}:{namespace}")]
}

/// Adds the groups that follow from a user's name, if any do.
pub(super) fn add_groups(user: &str, groups: &mut Vec<String>) {
    let Some((namespace, _)) = split(user) else {
        return;
    };
    for group in self::groups(namespace) {
        if !groups.contains(&group) {
            groups.push(group);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_accounts_name_has_a_namespace_and_a_name() {
        assert_eq!(
            split("system:serviceaccount:ci:robot.a"),
            Some(("ci", "robot.a"))
        );
        for other in [
            "alice",
            "system:serviceaccount:ci",
            "system:serviceaccount::robot",
            "system:serviceaccount:ci:",
            "system:serviceaccount:c.i:robot",
            "system:serviceaccount:ci:robot:x",
            "system:serviceaccount:CI:robot",
        ] {
            assert_eq!(split(other), None, "{other}");
        }
    }

    #[test]
    fn its_groups_follow_from_its_namespace() {
        let mut groups = vec!["system:serviceaccounts".to_owned()];
        add_groups("system:serviceaccount:ci:robot", &mut groups);
        assert_eq!(
            groups,
            ["system:serviceaccounts", "system:serviceaccounts:ci"]
        );
        add_groups("alice", &mut groups);
        assert_eq!(groups.len(), 2);
    }
}
