//! Configuration: defaults, then a file, then the environment, then flags.
//!
//! A key that the struct doesn't have is an error, wherever it stands. Called once by
//! [`run`](crate::run), before a port is bound.

mod print;

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;
use figment::Figment;
use figment::providers::{Env, Format, Serialized, Toml};
use figment::value::Dict;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::Identity;

pub(crate) use print::printable;

/// Prefix of environment variables; `__` goes one level down: `GODWIT_COMMON__LOG=json`.
const ENV_PREFIX: &str = "GODWIT_";

/// Flags of every service.
#[derive(Debug, Clone, Parser)]
pub struct ConfigArgs {
    /// TOML file with the configuration.
    #[arg(long, value_name = "FILE", env = "GODWIT_CONFIG")]
    pub config: Option<PathBuf>,
    /// One key, for example `--set common.log=json`; may be repeated, the last one wins.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Print the configuration in force as TOML, without secrets, and end.
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
    /// Where traces go as OTLP, for example `http://collector:4317`; nowhere when absent.
    pub otlp_endpoint: Option<String>,
    /// `grpc`, or `http/protobuf`, which is sent to `/v1/traces` below the endpoint.
    pub otlp_protocol: OtlpProtocol,
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

/// How traces are sent, in the words of OpenTelemetry's own settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum OtlpProtocol {
    /// Over gRPC.
    #[serde(rename = "grpc")]
    Grpc,
    /// Over HTTP, in binary form.
    #[serde(rename = "http/protobuf")]
    HttpProtobuf,
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

    /// Whether what is configured can be used.
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        if let Some(identity) = self.identity()? {
            let read = identity.read().map(drop);
            read.map_err(|error| ConfigError::Invalid(format!("common.identity: {error}")))?;
        }
        Ok(())
    }
}

impl Default for Common {
    fn default() -> Self {
        Self {
            log: LogFormat::Pretty,
            log_filter: "info".to_owned(),
            otlp_endpoint: None,
            otlp_protocol: OtlpProtocol::Grpc,
            admin_bind: SocketAddr::from(([127, 0, 0, 1], 0)),
            identity: None,
            insecure: false,
        }
    }
}

/// Why the configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file that `--config` names can't be read.
    #[error("read {}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
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
        // Figment takes a missing file for an empty one.
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::File {
            path: path.clone(),
            source,
        })?;
        figment = figment.merge(Toml::string(&text));
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

/// A value that is no TOML is a string: nobody wants to quote twice in a shell.
fn toml_line(key: &str, value: &str) -> String {
    let line = format!("{key} = {value}");
    match <Toml as Format>::from_str::<Dict>(&line) {
        Ok(_) => line,
        Err(_) => format!("{key} = {}", print::quoted(value)),
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
    fn a_value_that_is_no_toml_is_a_string() {
        for (value, line) in [
            ("json", "key = \"json\""),
            ("[::]:6443", "key = \"[::]:6443\""),
            ("C:\\a \"b\"", r#"key = "C:\\a \"b\"""#),
            ("[\"a\", \"b\"]", "key = [\"a\", \"b\"]"),
            ("true", "key = true"),
            ("7", "key = 7"),
        ] {
            assert_eq!(toml_line("key", value), line);
        }
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_the_defaults() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("godwit.toml");
        std::fs::write(
            &path,
            "database_url = \"file\"\ncommon.log_filter = \"debug\"\n",
        )
        .unwrap();
        let mut flags = args(&["database_url=flag"]);
        flags.config = Some(path);
        let config: Sample = load(&flags).unwrap();
        assert_eq!(config.database_url, "flag");
        assert_eq!(config.common.log_filter, "debug");
        assert_eq!(config.common.log, LogFormat::Pretty);
    }

    #[test]
    fn a_missing_file_is_an_error_that_names_it() {
        let mut flags = args(&[]);
        flags.config = Some("/nowhere/godwit.toml".into());
        let error = load::<Sample>(&flags).expect_err("no file");
        assert!(
            error.to_string().contains("/nowhere/godwit.toml"),
            "{error}"
        );
    }

    #[test]
    fn what_is_printed_can_be_loaded_again() {
        let config: Sample = load(&args(&[
            "networks.\"a b\"=br0",
            "common.admin_bind=127.0.0.1:9",
            "common.identity={cert = \"c\", key = \"k\", ca = \"a\"}",
        ]))
        .unwrap();
        let text = printable(&config);
        let again: Sample = <Toml as Format>::from_str(&text).unwrap();
        assert_eq!(printable(&again), text);
        assert_eq!(again.networks["a b"], "br0");
    }

    #[test]
    fn running_without_tls_must_be_asked_for() {
        assert!(Common::default().validate().is_err());
        let insecure = Common {
            insecure: true,
            ..Common::default()
        };
        assert!(insecure.validate().is_ok());
    }
}
