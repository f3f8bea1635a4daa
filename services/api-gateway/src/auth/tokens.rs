//! Static bearer tokens, in kube-apiserver's file form: `token,user,uid,"group1,group2"`.

use std::collections::HashMap;

use godwit_apimachinery::UserInfo;
use sha2::{Digest, Sha256};

/// Known tokens. Kept as digests, so that the time of a look-up tells nothing about a token.
pub(crate) struct Tokens {
    users: HashMap<[u8; 32], UserInfo>,
}

/// Why a token file can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TokenError {
    /// A line has no token, user and uid.
    #[error("line {line} of the token file is not `token,user,uid[,\"groups\"]`")]
    Line { line: usize },
}

impl Tokens {
    /// Reads the text of a file. Empty lines and lines that start with `#` are skipped.
    pub(crate) fn parse(text: &str) -> Result<Self, TokenError> {
        let mut users = HashMap::new();
        for (at, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (token, user) = entry(line).ok_or(TokenError::Line { line: at + 1 })?;
            users.insert(digest(token), user);
        }
        Ok(Self { users })
    }

    /// Whose token it is.
    pub(crate) fn user(&self, token: &str) -> Option<UserInfo> {
        self.users.get(&digest(token)).cloned()
    }
}

fn entry(line: &str) -> Option<(&str, UserInfo)> {
    let mut fields = line.splitn(4, ',').map(str::trim);
    let (token, name, uid) = (fields.next()?, fields.next()?, fields.next()?);
    if token.is_empty() || name.is_empty() {
        return None;
    }
    let groups = fields.next().unwrap_or_default().trim_matches('"');
    let groups = groups
        .split(',')
        .map(str::trim)
        .filter(|group| !group.is_empty());
    let user = UserInfo {
        name: name.to_owned(),
        groups: groups.map(str::to_owned).collect(),
        uid: uid.to_owned(),
        ..UserInfo::default()
    };
    Some((token, user))
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_says_token_user_uid_and_groups() {
        let tokens = Tokens::parse("# comment\n\na,alice,1\nb,bob,2,\"x, y\"\n").unwrap();
        assert_eq!(tokens.user("a").unwrap().name, "alice");
        assert_eq!(tokens.user("b").unwrap().groups, ["x", "y"]);
        assert!(tokens.user("c").is_none());
    }

    #[test]
    fn a_broken_line_is_named() {
        let error = Tokens::parse("a,alice,1\nnonsense\n").err().unwrap();
        assert!(matches!(error, TokenError::Line { line: 2 }));
    }
}
