//! Bearer tokens: those of the token file, then those of the issuer.

use godwit_apimachinery::UserInfo;
use godwit_runtime::Reloaded;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::oidc::{self, Oidc};
use super::tokens::Tokens;
use super::{Refused, service_account};
use crate::config::Config;

/// Everything that knows tokens.
#[derive(Default)]
pub(crate) struct Bearers {
    pub(super) file: Option<Reloaded<Tokens>>,
    pub(super) oidc: Option<Oidc>,
}

impl Bearers {
    /// Reads what is configured, and follows it until `shutdown`.
    ///
    /// # Errors
    /// When a file can't be used, or the configuration makes no sense.
    pub(crate) fn start(config: &Config, shutdown: &CancellationToken) -> anyhow::Result<Self> {
        let parse = |text: &str| Ok(Tokens::parse(text)?);
        let file = config.token_file.as_deref();
        let file = file.map(|path| Reloaded::start(path, parse, shutdown.clone()));
        let oidc = config.oidc.as_ref();
        let oidc = oidc.map(|config| Oidc::start(config, shutdown.clone()));
        Ok(Self {
            file: file.transpose()?,
            oidc: oidc.transpose()?,
        })
    }

    /// Who shows this token. `system:authenticated` is not among the groups yet.
    pub(crate) async fn user(&self, token: &str) -> Result<UserInfo, Refused> {
        if let Some(file) = &self.file
            && let Some(mut user) = file.get().user(token)
        {
            // No token of a service account's own names them.
            service_account::add_groups(&user.name, &mut user.groups);
            return Ok(user);
        }
        match &self.oidc {
            Some(oidc) if oidc::is_token(token) => Ok(oidc.user(token, Timestamp::now()).await?),
            Some(_) | None => Err(Refused::UnknownToken),
        }
    }

    /// Whom tokens are meant for, as far as it is configured.
    pub(crate) fn audiences(&self) -> &[String] {
        self.oidc.as_ref().map_or(&[], Oidc::audiences)
    }
}
