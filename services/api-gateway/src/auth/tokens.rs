//! Static bearer tokens, in kube-apiserver's file form: `token,user,uid,"group1,group2"`.

use std::collections::HashMap;
use std::path::Path;

use godwit_apimachinery::UserInfo;
use sha2::{Digest, Sha256};

/// Most bytes of a token file.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Known tokens. Kept as digests, so that the time of a look-up tells nothing about a token.
#[derive(Default)]
pub(crate) struct Tokens {
    users: HashMap<[u8; 32], UserInfo>,
}

/// Why a token file can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TokenError {
    /// It can't be read.
    #[error("token file can't be read")]
    Read(#[source] std::io::Error),
    /// It is larger than any real one.
    #[error("token file is larger than {FILE_BYTES_MAX} bytes")]
    TooLarge,
    /// A line has no token, user and uid.
    #[error("line {line} of the token file is not `token,user,uid[,\"groups\"]`")]
    Line { line: usize },
}

impl Tokens {
    /// Reads a file.
    pub(crate) fn load(path: &Path) -> Result<Self, TokenError> {
        let size = std::fs::metadata(path).map_err(TokenError::Read)?.len();
        if size > FILE_BYTES_MAX {
            return Err(TokenError::TooLarge);
        }
        Self::parse(&std::fs::read_to_string(path).map_err(TokenError::Read)?)
    }

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
