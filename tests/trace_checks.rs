//! What holds in every trace: where statements belong, and what leads from a maintenance to its
//! migrations and back.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use godwit_testkit::collector::{Collector, Seen};

/// Every statement is a part of something in its own process, and says what OpenTelemetry's
/// conventions want, and none of these values. Answers all of them.
pub(crate) fn statements<'a>(spans: &'a [Seen], values: &[&str]) -> Result<Vec<&'a Seen>> {
    let told = |span: &&Seen| span.text("db.system.name") == "postgresql";
    let statements: Vec<&Seen> = spans.iter().filter(told).collect();
    for one in &statements {
        let parent = spans.iter().find(|span| span.id == one.parent);
        let parent = parent.with_context(|| format!("a part of nothing: {one:#?}"))?;
        ensure!(parent.process == one.process, "{parent:#?} {one:#?}");
        ensure!(one.is_client && !one.failed, "{one:#?}");
        let text = one.text("db.query.text");
        ensure!(!text.is_empty(), "{one:#?}");
        ensure!(one.name == one.text("db.query.summary"), "{one:#?}");
        let given = values.iter().find(|value| text.contains(**value));
        ensure!(given.is_none(), "{given:?} in {one:#?}");
    }
    Ok(statements)
}

/// The only span of that name that is a part of `parent`.
pub(crate) fn part<'a>(spans: &'a [Seen], name: &str, parent: &Seen) -> Result<&'a Seen> {
    let is_it = |span: &&Seen| span.name == name && span.parent == parent.id;
    let found: Vec<&Seen> = spans.iter().filter(is_it).collect();
    ensure!(found.len() == 1, "{} of {name} in {spans:#?}", found.len());
    Ok(found[0])
}

/// Spans whose parent is not there; those without one are none.
pub(crate) fn orphans(spans: &[Seen]) -> Vec<&Seen> {
    let ids: BTreeSet<&str> = spans.iter().map(|span| span.id.as_str()).collect();
    let is_orphan = |span: &&Seen| !span.parent.is_empty() && !ids.contains(span.parent.as_str());
    spans.iter().filter(is_orphan).collect()
}

/// The steps of a maintenance that emptied its node are parts of it, in their order, and it is linked
/// to its migrations as they are to it. Answers the first span of each of them.
pub(crate) fn leads_to_migrations(whole: &Seen, collector: &Collector) -> Result<Vec<Seen>> {
    let spans = collector.trace(&whole.trace);
    let (plan, cordon) = (part(&spans, "plan", whole)?, part(&spans, "cordon", whole)?);
    ensure!(plan.began == whole.began, "{plan:#?} {whole:#?}");
    ensure!(plan.ended <= cordon.began, "{plan:#?} {cordon:#?}");
    ensure!(cordon.ended <= whole.ended, "{cordon:#?} {whole:#?}");
    let is_request = |span: &&Seen| span.name == "evacuate" && span.parent == whole.id;
    let mut linked = vec![];
    for request in spans.iter().filter(is_request) {
        ensure!(request.ended <= whole.ended, "{request:#?} {whole:#?}");
        ensure!(!request.links.is_empty(), "{request:#?}");
        linked.extend(request.links.clone());
    }
    ensure!(whole.links == linked, "{:?} {linked:?}", whole.links);
    let back = (whole.trace.clone(), whole.id.clone());
    let mut evacuations = vec![];
    for (trace, id) in linked {
        let spans = collector.trace(&trace);
        let first = spans.iter().find(|span| span.id == id);
        let first = first.with_context(|| format!("no {id} in {spans:#?}"))?;
        ensure!(first.name == "evacuation", "{first:#?}");
        ensure!(first.links == [back.clone()], "{first:#?}");
        evacuations.push(first.clone());
    }
    Ok(evacuations)
}
