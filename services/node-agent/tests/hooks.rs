//! Commands that an agent runs for rolling maintenances, as real processes under a real agent.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr
)]
#![allow(dead_code, unreachable_pub)]

mod common;

use std::path::Path;

use common::{Agent, eventually};
use godwit_rpc::agent::v1::hooks_client::HooksClient;
use godwit_rpc::agent::v1::*;
use godwit_rpc::{Channel, Code};

/// An agent whose hooks are shell scripts.
async fn agent(dir: &Path, hooks: &[(&str, &str, &str)]) -> Agent {
    let key = |(name, script, more): &(&str, &str, &str)| {
        format!("hooks.{name}={{command=[\"/bin/sh\",\"-c\",\"{script}\",\"sh\"]{more}}}")
    };
    Agent::start_with("worker1", dir, hooks.iter().map(key).collect()).await
}

fn client(agent: &Agent) -> HooksClient<Channel> {
    let channel = godwit_rpc::client::connect(&agent.address, None).unwrap();
    HooksClient::new(channel)
}

fn run(run: &str, hook: &str, arguments: &[&str]) -> RunHookRequest {
    RunHookRequest {
        run: run.to_owned(),
        hook: hook.to_owned(),
        arguments: arguments
            .iter()
            .map(|&argument| argument.to_owned())
            .collect(),
        timeout_seconds: 30,
    }
}

async fn ended(agent: &Agent, request: &RunHookRequest) -> HookReport {
    eventually("the end of the hook", async || {
        let report = client(agent).run_hook(request.clone()).await;
        let report = report.ok()?.into_inner();
        (report.state() == HookState::Ended).then_some(report)
    })
    .await
}

#[tokio::test]
async fn a_hook_runs_once_however_often_it_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let count = dir.path().join("count");
    let script = format!("echo run >> {}; echo $1; exit 7", count.display());
    let agent = agent(dir.path(), &[("update", &script, ",arguments=true")]).await;
    let request = run("a-1", "update", &["hello"]);
    let asked = (0..8).map(|_| {
        let (mut client, request) = (client(&agent), request.clone());
        async move { client.run_hook(request).await.unwrap() }
    });
    futures::future::join_all(asked).await;
    let report = ended(&agent, &request).await;
    assert_eq!((report.exit_code, report.output.as_str()), (7, "hello\n"));
    assert_eq!(ended(&agent, &request).await, report);
    assert_eq!(std::fs::read_to_string(&count).unwrap(), "run\n");
    ended(&agent, &run("a-2", "update", &[])).await;
    assert_eq!(std::fs::read_to_string(&count).unwrap(), "run\nrun\n");
}

#[tokio::test]
async fn a_hook_outlives_the_agent_and_the_next_one_knows_how_it_ended() {
    let dir = tempfile::tempdir().unwrap();
    let (count, gate) = (dir.path().join("count"), dir.path().join("gate"));
    let script = format!(
        "echo run >> {}; until test -e {}; do sleep 0.02; done; echo done",
        count.display(),
        gate.display()
    );
    let mut agent = agent(dir.path(), &[("update", &script, "")]).await;
    let request = run("a-1", "update", &[]);
    client(&agent).run_hook(request.clone()).await.unwrap();
    eventually("the start", async || count.exists().then_some(())).await;
    agent.restart().await;
    let report = client(&agent)
        .run_hook(request.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(report.state(), HookState::Running);
    std::fs::write(&gate, "").unwrap();
    let report = ended(&agent, &request).await;
    assert_eq!((report.exit_code, report.output.as_str()), (0, "done\n"));
    assert_eq!(std::fs::read_to_string(&count).unwrap(), "run\n");
}

#[tokio::test]
async fn only_what_the_host_allows_is_run_and_only_for_so_long() {
    let dir = tempfile::tempdir().unwrap();
    let hooks = [
        ("long", "sleep 60", ",timeout_seconds=1"),
        ("plain", "true", ""),
    ];
    let agent = agent(dir.path(), &hooks).await;
    for (request, code) in [
        (run("a-1", "other", &[]), Code::NotFound),
        (run("a-2", "plain", &["more"]), Code::InvalidArgument),
        (run("../a", "plain", &[]), Code::InvalidArgument),
    ] {
        let refused = client(&agent).run_hook(request).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
    }
    assert_eq!(ended(&agent, &run("a-4", "long", &[])).await.exit_code, 124);
}
