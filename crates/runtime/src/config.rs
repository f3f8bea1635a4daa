//! Configuration: defaults, then a file, then the environment, then flags.
//!
//! A key that the struct doesn't have is an error, wherever it stands.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;
use figment::Figment;
use figment::providers::{Env, Format, Serialized, Toml};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::Identity;

/// Prefix of environment variables; `__` goes one level down: `GODWIT_COMMON__LOG=json`.
const ENV_PREFIX: &str = "GODWIT_";

/// Flags of every service.
#[derive(Debug, Clone, Parser)]
pub struct ConfigArgs {
    /// TOML file with the configuration.
    #[arg(long, env = "GODWIT_CONFIG")]
    pub config: Option<PathBuf>,
    /// One key, for example `--set common.log=json`; TOML values; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Print the configuration in force, without secrets, and end.
    #[arg(long)]
    pub print_config: bool,
}

/// What every service is configured with.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Common {
    /// `pretty` or `json`.
    pub log: LogFormat,
    /// Filter of log lines in the form of `RUST_LOG`.
    pub log_filter: String,
    /// Where OTLP traces go, for example `http://collector:4317`; nowhere when absent.
    pub otlp_endpoint: Option<String>,
    /// Where health and metrics are served, plain HTTP.
    pub admin_bind: SocketAddr,
    /// Certificates for the services among themselves; needed unless `insecure`.
    pub identity: Option<Identity>,
    /// Run without TLS among services. For tests.
    pub insecure: bool,
}

/// Form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Pretty,
    /// One object a line.
    Json,
}

impl Common {
    /// The defaults, with health and metrics on `admin_port` of loopback.
    #[must_use]
    pub fn at(admin_port: u16) -> Self {
        Self {
            admin_bind: SocketAddr::from(([127, 0, 0, 1], admin_port)),
            ..Self::default()
        }
    }

    /// The identity to use; `None` only when running without TLS is asked for.
    ///
    /// # Errors
    /// When neither is configured.
    pub fn identity(&self) -> Result<Option<&Identity>, ConfigError> {
        match (&self.identity, self.insecure) {
            (Some(identity), _) => Ok(Some(identity)),
            (None, true) => Ok(None),
            (None, false) => Err(ConfigError::Invalid(
                "common.identity is missing; common.insecure = true runs without TLS".to_owned(),
            )),
        }
    }
}

impl Default for Common {
    fn default() -> Self {
        Self {
            log: LogFormat::Pretty,
            log_filter: "info".to_owned(),
            otlp_endpoint: None,
            admin_bind: SocketAddr::from(([127, 0, 0, 1], 0)),
            identity: None,
            insecure: false,
        }
    }
}

/// Why the configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A source has an unknown key or a value of the wrong form.
    #[error("configuration: {0}")]
    Source(#[from] Box<figment::Error>),
    /// A flag is not `KEY=VALUE`.
    #[error("--set {0:?} is not KEY=VALUE")]
    Flag(String),
    /// Values that don't go together.
    #[error("configuration: {0}")]
    Invalid(String),
}

/// Puts the configuration together.
///
/// # Errors
/// When a source has an unknown key or a value of the wrong form.
pub fn load<T>(args: &ConfigArgs) -> Result<T, ConfigError>
where
    T: Default + Serialize + DeserializeOwned,
{
    let mut figment = Figment::from(Serialized::defaults(T::default()));
    if let Some(path) = &args.config {
        figment = figment.merge(Toml::file_exact(path));
    }
    let environment = Env::prefixed(ENV_PREFIX).split("__").ignore(&["config"]);
    figment = figment.merge(environment);
    for flag in &args.set {
        let (key, value) = flag
            .split_once('=')
            .ok_or_else(|| ConfigError::Flag(flag.clone()))?;
        figment = figment.merge(Toml::string(&toml_line(key, value)));
    }
    figment
        .extract()
        .map_err(|error| ConfigError::Source(Box::new(error)))
}

/// A value that is no TOML literal is a string: nobody wants to quote twice in a shell.
fn toml_line(key: &str, value: &str) -> String {
    let literal = value.parse::<bool>().is_ok()
        || value.parse::<i64>().is_ok()
        || value.parse::<f64>().is_ok()
        || value.starts_with(['{', '[', '"', '\'']);
    if literal {
        format!("{key} = {value}")
    } else {
        format!("{key} = {value:?}")
    }
}

/// The configuration in force as TOML-like JSON, with what may be secret hidden.
pub(crate) fn printable<T: Serialize>(config: &T) -> String {
    let mut value = serde_json::to_value(config).unwrap_or_default();
    hide_secrets(&mut value);
    serde_json::to_string_pretty(&value).unwrap_or_default()
}

fn hide_secrets(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(map) => {
            for (key, value) in map {
                let secret = ["database_url", "password", "token"].contains(&key.as_str());
                if secret && value.is_string() {
                    *value = "(hidden)".into();
                } else {
                    hide_secrets(value);
                }
            }
        }
        serde_json::Value::Array(values) => values.iter_mut().for_each(hide_secrets),
        serde_json::Value::Null
        | serde_json::Value::Bool(_)
        | serde_json::Value::Number(_)
        | serde_json::Value::String(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, Serialize, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Sample {
        common: Common,
        database_url: String,
        networks: std::collections::BTreeMap<String, String>,
    }

    fn args(set: &[&str]) -> ConfigArgs {
        ConfigArgs {
            config: None,
            set: set.iter().map(ToString::to_string).collect(),
            print_config: false,
        }
    }

    #[test]
    fn a_flag_sets_a_nested_key_without_quotes() {
        let flags = args(&[
            "common.log=json",
            "common.admin_bind=127.0.0.1:9",
            "networks.lab=br0",
        ]);
        let config: Sample = load(&flags).expect("loads");
        assert_eq!(config.common.log, LogFormat::Json);
        assert_eq!(config.common.admin_bind.port(), 9);
        assert_eq!(config.networks["lab"], "br0");
    }

    #[test]
    fn an_unknown_key_is_an_error_that_names_it() {
        let error = load::<Sample>(&args(&["common.lgo=json"])).expect_err("a wrong key");
        assert!(error.to_string().contains("lgo"), "{error}");
    }

    #[test]
    fn secrets_are_not_printed() {
        let config: Sample = load(&args(&["database_url=postgres://u:p@h/d"])).expect("loads");
        assert!(!printable(&config).contains("u:p"));
    }
}
