//! Hooks: hosts are asked how theirs stand, and webhooks are called.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use godwit_model::NodeName;
use godwit_model::rolling::{Call, Heard, Hook, HookRecord, Stage, call_key};
use godwit_rpc::agent::v1::hooks_client::HooksClient;
use godwit_rpc::agent::v1::{HookState, RunHookRequest};
use godwit_rpc::{Channel, Code, Credentials, client};
use http::{StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tracing::info;

use super::look::Situation;

/// Longest wait for a host's answer.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// Of what a hook says, so much is recorded, characters.
const OUTPUT_MAX: usize = 400;
/// Most bytes of a webhook's answer.
const BODY_MAX: usize = 64 * 1024;
/// Exit code of a command that its host doesn't run: that of a shell.
const NOT_FOUND: i32 = 127;

type Web = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// Ways to hosts and to the web.
pub(super) struct Callers {
    credentials: Option<Credentials>,
    /// By address.
    channels: Mutex<HashMap<String, Channel>>,
    web: Web,
}

impl Callers {
    /// Believes the authorities of this host; where it has none, only plain HTTP can be called.
    pub(super) fn new(credentials: Option<Credentials>) -> Self {
        let provider = rustls::crypto::ring::default_provider();
        let builder = HttpsConnectorBuilder::new();
        let builder = match builder.with_provider_and_native_roots(provider) {
            Ok(builder) => builder,
            Err(error) => {
                info!(%error, "webhooks by HTTPS can't be called");
                HttpsConnectorBuilder::new().with_tls_config(trusting_nobody())
            }
        };
        let connector = builder.https_or_http().enable_http1().build();
        Self {
            credentials,
            channels: Mutex::default(),
            web: Client::builder(TokioExecutor::new()).build(connector),
        }
    }

    /// Asks the hosts for each of the hooks that are recorded and have not ended. To ask is also to
    /// start: a host runs each once.
    pub(super) async fn ask(&self, situation: &Situation) -> BTreeMap<String, Heard> {
        let nodes = situation.record.nodes.iter();
        let running = nodes.flat_map(|node| {
            let runs = node.hooks.iter().filter(|run| run.exit_code.is_none());
            runs.map(move |run| (&node.name, run))
        });
        let asked = running.filter_map(|(node, run)| {
            let hook = hook(situation, run)?;
            let command = hook.command.clone()?;
            let request = RunHookRequest {
                run: run.run.clone(),
                hook: command,
                arguments: hook.args.clone(),
                timeout_seconds: u32::try_from(hook.limit()).unwrap_or(u32::MAX),
            };
            let address = situation.agents.get(node);
            Some(async move { (call_key(run), self.ask_host((node, address), request).await) })
        });
        join_all(asked).await.into_iter().collect()
    }

    async fn ask_host(
        &self,
        (node, address): (&NodeName, Option<&String>),
        request: RunHookRequest,
    ) -> Heard {
        let Some(address) = address else {
            return Heard::Silent(format!("node {node} is not known"));
        };
        let channel = match self.channel(address) {
            Ok(channel) => channel,
            Err(error) => return Heard::Silent(format!("{error:#}")),
        };
        let mut agent = HooksClient::new(channel);
        let asked = agent.run_hook(client::within(ANSWER_MAX, request));
        let answer = match tokio::time::timeout(ANSWER_MAX, asked).await {
            Ok(answer) => answer,
            Err(_) => return Heard::Silent(format!("node {node} does not answer")),
        };
        match answer {
            Ok(report) => {
                let report = report.into_inner();
                match report.state() {
                    HookState::Ended => Heard::Ended {
                        code: report.exit_code,
                        output: end_of(&report.output),
                    },
                    HookState::Running | HookState::Unspecified => Heard::Running,
                }
            }
            Err(status) if is_refusal(status.code()) => Heard::Ended {
                code: NOT_FOUND,
                output: end_of(status.message()),
            },
            Err(status) => Heard::Silent(end_of(status.message())),
        }
    }

    fn channel(&self, address: &str) -> anyhow::Result<Channel> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = channels.get(address) {
            return Ok(channel.clone());
        }
        let channel = client::connect(address, self.credentials.as_ref())?;
        channels.insert(address.to_owned(), channel.clone());
        Ok(channel)
    }

    /// Makes one call.
    pub(super) fn webhook(
        &self,
        rolling: &str,
        call: &Call,
    ) -> impl Future<Output = Heard> + Send + use<> {
        let (web, limit) = (self.web.clone(), Duration::from_secs(call.hook.limit()));
        let url = call
            .hook
            .webhook
            .as_ref()
            .map(|webhook| webhook.url.clone());
        let body = json!({
            "rollingMaintenance": rolling,
            "node": call.node,
            "phase": call.stage,
            "hook": call.hook.name,
            "attempt": call.attempt,
        });
        async move {
            let posted =
                tokio::time::timeout(limit, post(web, url.unwrap_or_default(), body)).await;
            match posted {
                Ok(Ok(heard)) => heard,
                Ok(Err(error)) => Heard::Silent(end_of(&format!("{error:#}"))),
                Err(_) => Heard::Silent(format!("no answer within {} s", limit.as_secs())),
            }
        }
    }
}

fn trusting_nobody() -> ClientConfig {
    ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .expect("ring has the default versions")
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth()
}

fn hook<'a>(situation: &'a Situation, run: &HookRecord) -> Option<&'a Hook> {
    let hooks = &situation.order.hooks;
    let hooks = match run.stage {
        Stage::BeforeDrain => &hooks.before_drain,
        Stage::Drained => &hooks.drained,
        Stage::AfterReopen => &hooks.after_reopen,
    };
    hooks.iter().find(|hook| hook.name == run.name)
}

/// Whether a host will say the same for ever.
fn is_refusal(code: Code) -> bool {
    [
        Code::NotFound,
        Code::InvalidArgument,
        Code::PermissionDenied,
        Code::Unimplemented,
    ]
    .contains(&code)
}

async fn post(web: Web, url: String, body: Value) -> anyhow::Result<Heard> {
    let request = http::Request::post(url)
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::USER_AGENT, "godwit-maintenance-service")
        .body(Full::from(body.to_string()))?;
    let response = web.request(request).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), BODY_MAX).collect().await;
    let body = match body {
        Ok(body) => body.to_bytes(),
        Err(error) => anyhow::bail!("read the answer: {error}"),
    };
    Ok(answer(status, &body))
}

/// What an answer means: 2xx is good, an `exitCode` in it has the last word, what may pass is called
/// again, and every other status is an exit code.
fn answer(status: StatusCode, body: &[u8]) -> Heard {
    let text = end_of(&String::from_utf8_lossy(body));
    let passing = [
        StatusCode::REQUEST_TIMEOUT,
        StatusCode::TOO_MANY_REQUESTS,
        StatusCode::BAD_GATEWAY,
        StatusCode::SERVICE_UNAVAILABLE,
        StatusCode::GATEWAY_TIMEOUT,
    ];
    if passing.contains(&status) {
        return Heard::Silent(format!("{status}: {text}"));
    }
    let said: Value = serde_json::from_slice(body).unwrap_or_default();
    let said = said["exitCode"]
        .as_i64()
        .and_then(|code| i32::try_from(code).ok());
    let code = match (said, status.is_success()) {
        (Some(code), _) => code,
        (None, true) => 0,
        (None, false) => i32::from(status.as_u16()),
    };
    Heard::Ended { code, output: text }
}

/// The last characters of what was said.
fn end_of(text: &str) -> String {
    let text = text.trim_end();
    let from = text.chars().count().saturating_sub(OUTPUT_MAX);
    text.chars().skip(from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_good_bad_or_to_be_asked_for_again() {
        let ended = |code, output: &str| Heard::Ended {
            code,
            output: output.to_owned(),
        };
        for (status, body, expected) in [
            (204, "", ended(0, "")),
            (200, "{\"exitCode\":70}", ended(70, "{\"exitCode\":70}")),
            (404, "no", ended(404, "no")),
            (500, "{\"exitCode\":0}", ended(0, "{\"exitCode\":0}")),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(answer(status, body.as_bytes()), expected);
        }
        let again = answer(StatusCode::SERVICE_UNAVAILABLE, b"later");
        assert_eq!(
            again,
            Heard::Silent("503 Service Unavailable: later".to_owned())
        );
    }
}
