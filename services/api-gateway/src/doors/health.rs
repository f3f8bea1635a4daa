//! `/healthz`, `/livez` and `/readyz`, in kube-apiserver's form.
//!
//! `/livez` and `/healthz` say that we answer. `/readyz` also says what of `Readiness` holds.

use axum::Router;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use godwit_apimachinery::Status;
use godwit_runtime::admin::Readiness;
use http::{StatusCode, header};

type Pairs = Query<Vec<(String, String)>>;

/// One thing that is looked at: its name, and what is wrong.
struct Check {
    name: String,
    wrong: Option<&'static str>,
}

/// Routes of the three doors.
pub(super) fn router(readiness: Readiness) -> Router {
    let mut router = Router::new();
    for door in ["healthz", "livez", "readyz"] {
        let all = move |State(readiness): State<Readiness>, Query(pairs): Pairs| async move {
            answer(door, checks(door, &readiness), &pairs)
        };
        let one = move |State(readiness): State<Readiness>, Path(name): Path<String>| async move {
            single(&name, checks(door, &readiness))
        };
        router = router
            .route(&format!("/{door}"), get(all))
            .route(&format!("/{door}/{{name}}"), get(one));
    }
    router.with_state(readiness)
}

fn checks(door: &str, readiness: &Readiness) -> Vec<Check> {
    let ping = Check {
        name: "ping".to_owned(),
        wrong: None,
    };
    let mut checks = vec![ping];
    if door == "readyz" {
        let conditions = readiness.conditions().into_iter();
        checks.extend(conditions.map(|(name, wrong)| Check {
            name: name.replace(' ', "-"),
            wrong,
        }));
    }
    checks
}

fn answer(door: &str, checks: Vec<Check>, pairs: &[(String, String)]) -> Response {
    let verbose = pairs.iter().any(|(key, _)| key == "verbose");
    let excluded = pairs.iter().filter(|(key, _)| key == "exclude");
    let mut excluded: Vec<&str> = excluded.map(|(_, name)| name.as_str()).collect();
    let mut lines = String::new();
    let mut failed = false;
    for Check { name, wrong } in checks {
        if excluded.contains(&name.as_str()) {
            excluded.retain(|excluded| *excluded != name);
            lines.push_str(&format!("[+]{name} excluded: ok\n"));
            continue;
        }
        failed |= wrong.is_some();
        lines.push_str(&match wrong {
            None => format!("[+]{name} ok\n"),
            Some(why) => format!("[-]{name} failed: {why}\n"),
        });
    }
    if !excluded.is_empty() {
        let names: Vec<String> = excluded.iter().map(|name| format!("{name:?}")).collect();
        lines.push_str(&format!(
            "warn: some health checks cannot be excluded: no matches for {}\n",
            names.join(", ")
        ));
    }
    match (failed, verbose) {
        (true, _) => text(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("{lines}{door} check failed\n"),
        ),
        (false, true) => text(StatusCode::OK, format!("{lines}{door} check passed\n")),
        (false, false) => text(StatusCode::OK, "ok".to_owned()),
    }
}

fn single(name: &str, checks: Vec<Check>) -> Response {
    let found = checks.into_iter().find(|check| check.name == name);
    match found.map(|check| check.wrong) {
        None => Status::no_such_path().into_response(),
        Some(None) => text(StatusCode::OK, "ok".to_owned()),
        Some(Some(why)) => text(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("internal server error: {why}\n"),
        ),
    }
}

fn text(code: StatusCode, text: String) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache, private"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (code, headers, text).into_response()
}
