//! Watchers as clients are: they list, watch, lose the connection, go on, and list again if told.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use godwit_testkit::api::{Answer, Opened, Watch};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::ledger_setup::VMI;
use crate::watch_env::{SPACES, World};
use crate::watch_log::{Log, Pick, Scope};
use crate::watch_replay::{Objects, Replay, Tell, differences, read, revision};

/// Changes that a gateway remembers of each resource.
const REMEMBERED: usize = 4096;
/// How long a watcher may take to get to the end once nobody writes any more.
const CATCH_UP_MAX: Duration = Duration::from_secs(40);
/// Longest wait for an answer to a request that isn't a watch.
const ANSWER_MAX: Duration = Duration::from_secs(15);
const PAUSE: Duration = Duration::from_millis(100);
/// Objects of a page.
const PAGE: usize = 5;

/// In which form objects are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Json,
    Table,
    Partial,
}

/// How a watcher learns what there is before it watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Begin {
    List,
    Pages,
    /// The watch itself begins with it.
    WatchList,
}

/// What a watcher follows, and how.
#[derive(Debug, Clone)]
struct Ask {
    scope: Scope,
    form: Form,
    path: String,
    api_version: &'static str,
    begin: Begin,
    bookmarks: bool,
}

/// A kind that is watched: ledger's key, API version, plural.
const KINDS: [(&str, &str, &str); 7] = [
    ("configmaps", "v1", "configmaps"),
    (VMI, "kubevirt.io/v1", "virtualmachineinstances"),
    ("secrets", "v1", "secrets"),
    (VMI, "kubevirt.io/v1alpha3", "virtualmachineinstances"),
    ("configmaps", "v1", "configmaps"),
    ("pods", "v1", "pods"),
    ("events", "v1", "events"),
];

/// What one watcher went through.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) events: usize,
    pub(crate) bookmarks: usize,
    pub(crate) connections: usize,
    pub(crate) lists: usize,
    /// Times it was told 410.
    pub(crate) expired: usize,
    /// Times it was told that its revision is newer than what the gateway knows.
    pub(crate) too_new: usize,
    /// Answers that tell of a fault, and connections that broke.
    pub(crate) faults: usize,
    pub(crate) wrong: Vec<String>,
}

/// A 410, to be justified.
#[derive(Debug)]
struct Refusal {
    from: u64,
    /// The gateway began at this revision.
    floor: u64,
    /// The newest revision soon after.
    newest: u64,
}

/// What comes after a connection.
enum Next {
    Resume,
    Relist,
}

/// One client.
pub(crate) struct Watcher {
    world: Arc<World>,
    ask: Ask,
    number: usize,
    rng: StdRng,
    /// Whether faults are part of the game.
    faults: bool,
    /// The last revision, once nobody writes any more.
    end: watch::Receiver<Option<u64>>,
    replay: Option<Replay>,
    lives: Vec<Replay>,
    refusals: Vec<Refusal>,
    /// The newest revision that it ever saw.
    seen: u64,
    report: Report,
}

impl Ask {
    fn new(number: usize, rng: &mut StdRng) -> Self {
        let (resource, api_version, plural) = KINDS[number % KINDS.len()];
        let form = match (number % 2, number % 4) {
            (0, _) => Form::Json,
            (_, 1) => Form::Table,
            _ => Form::Partial,
        };
        let namespace = rng
            .random_bool(0.5)
            .then(|| SPACES[rng.random_range(0..SPACES.len())]);
        let root = if api_version == "v1" { "/api" } else { "/apis" };
        let path = match namespace {
            Some(space) => format!("{root}/{api_version}/namespaces/{space}/{plural}"),
            None => format!("{root}/{api_version}/{plural}"),
        };
        let pick = match (resource, rng.random_range(0..4)) {
            (VMI | "pods", 1) => Pick::Phase("Running"),
            (VMI | "configmaps" | "secrets", 2) => Pick::Team("red"),
            (VMI | "configmaps" | "secrets", 3) => Pick::NotTeam("red"),
            ("configmaps" | "secrets", 1) => Pick::Name("shared-1".to_owned()),
            _ => Pick::All,
        };
        let begin = [Begin::List, Begin::Pages, Begin::WatchList][rng.random_range(0..3)];
        Self {
            scope: Scope {
                resource,
                namespace,
                pick,
                whole: form == Form::Json,
            },
            form,
            path,
            api_version,
            begin,
            bookmarks: begin == Begin::WatchList || rng.random_bool(0.5),
        }
    }

    fn accept(&self, list: bool) -> &'static str {
        match (self.form, list) {
            (Form::Json, _) => "application/json",
            (Form::Table, _) => {
                "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;\
                 g=meta.k8s.io,application/json"
            }
            (Form::Partial, true) => {
                "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"
            }
            (Form::Partial, false) => {
                "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io"
            }
        }
    }

    /// The objects of a list in the form that was asked for.
    fn items(&self, list: &Value) -> Result<Objects> {
        let items = match self.form {
            Form::Table => &list["rows"],
            Form::Json | Form::Partial => &list["items"],
        };
        let none = vec![];
        let items = items.as_array().unwrap_or(&none).iter();
        items
            .map(|item| match self.form {
                Form::Table => read(&item["object"], false),
                Form::Json => read(item, true),
                Form::Partial => read(item, false),
            })
            .collect()
    }

    /// The object of an event.
    fn object<'a>(&self, object: &'a Value) -> Result<&'a Value> {
        let (kind, version) = match self.form {
            Form::Json => (None, self.api_version),
            Form::Partial => (Some("PartialObjectMetadata"), "meta.k8s.io/v1"),
            Form::Table => (Some("Table"), "meta.k8s.io/v1"),
        };
        ensure!(
            object["apiVersion"] == version && kind.is_none_or(|kind| object["kind"] == kind),
            "not of {version}: {object}"
        );
        if self.form != Form::Table {
            return Ok(object);
        }
        let rows = object["rows"].as_array().map_or(0, Vec::len);
        ensure!(rows == 1, "{rows} rows in {object}");
        Ok(&object["rows"][0]["object"])
    }
}

impl Watcher {
    pub(crate) fn new(
        world: Arc<World>,
        (number, seed): (usize, u64),
        faults: bool,
        end: watch::Receiver<Option<u64>>,
    ) -> Self {
        let mut rng = StdRng::seed_from_u64(seed.wrapping_add(number as u64));
        Self {
            world,
            ask: Ask::new(number, &mut rng),
            number,
            rng,
            faults,
            end,
            replay: None,
            lives: vec![],
            refusals: vec![],
            seen: 0,
            report: Report::default(),
        }
    }

    /// Watches to the end; then [`Self::judge`] says how it went.
    pub(crate) async fn run(mut self) -> Self {
        let mut late = None;
        while !self.is_done() && self.report.wrong.is_empty() {
            if let Err(error) = self.turn().await {
                self.wrong(&format!("{error:#}"));
            }
            if self.end.borrow().is_some() {
                let since = *late.get_or_insert_with(Instant::now);
                if since.elapsed() > CATCH_UP_MAX {
                    let at = self.replay.as_ref().map(|replay| replay.at);
                    self.wrong(&format!("is at {at:?} long after the last change"));
                }
            }
        }
        if self.report.wrong.is_empty()
            && let Err(error) = self.compare_with_list().await
        {
            self.wrong(&format!("{error:#}"));
        }
        self
    }

    /// Checks everything against the change log.
    pub(crate) fn judge(mut self, log: &Log) -> Report {
        self.lives.extend(self.replay.take());
        let pods = self.ask.scope.resource == "pods";
        let mut wrong = vec![];
        for life in &self.lives {
            self.report.events += life.told.len();
            self.report.bookmarks += life.bookmarks;
            // Pods aren't in the log: they are judged event by event, and by the last list.
            if !pods {
                wrong.extend(life.judge(log, &self.ask.scope));
            }
        }
        let resource = if pods { VMI } else { self.ask.scope.resource };
        for refusal in &self.refusals {
            let (from, newest) = (refusal.from, refusal.newest);
            let known = from >= refusal.floor && log.count(resource, from, newest) < REMEMBERED;
            if known {
                wrong.push(format!("410 without a reason: {refusal:?}"));
            }
        }
        for text in wrong {
            self.wrong(&text);
        }
        self.report
    }

    fn is_done(&self) -> bool {
        let end = *self.end.borrow();
        let at = self.replay.as_ref().map(|replay| replay.at);
        end.zip(at).is_some_and(|(end, at)| at >= end)
    }

    fn wrong(&mut self, what: &str) {
        let text = format!("watcher {} ({:?}): {what}", self.number, self.ask);
        self.report.wrong.push(text);
    }

    /// A list, or one connection.
    async fn turn(&mut self) -> Result<()> {
        let gateway = self.rng.random_range(0..self.world.gateways.len());
        let at = self.replay.as_ref().map(|replay| replay.at);
        if at.is_none() && self.ask.begin != Begin::WatchList {
            self.replay = self.list(gateway).await?;
            return Ok(());
        }
        let ending = self.end.borrow().is_some();
        let path = self.watch_path(at, ending);
        let client = self.world.gateways[gateway].client.clone();
        self.report.connections += 1;
        let accept = self.ask.accept(false);
        let opened = timeout(ANSWER_MAX, client.stream(&path, accept)).await;
        let next = match opened.context("no answer").and_then(|opened| opened) {
            Ok(Opened::Watch(watch)) => self.follow(watch, ending).await?,
            Ok(Opened::Refused(answer)) => self.refused(&answer.body).await?,
            Err(error) => self.broken(&error).await?,
        };
        if let Next::Relist = next {
            let floor = self.world.gateways[gateway].floor();
            self.expired(at.unwrap_or_default(), floor).await?;
            let life = self.replay.take();
            self.lives.extend(life);
        }
        Ok(())
    }

    async fn expired(&mut self, from: u64, floor: u64) -> Result<()> {
        self.report.expired += 1;
        let newest = self.newest().await?;
        self.refusals.push(Refusal {
            from,
            floor,
            newest,
        });
        Ok(())
    }

    /// The ledger's newest revision, also while connections are killed.
    async fn newest(&self) -> Result<u64> {
        let asked = godwit_ledger::retry(|| self.world.ledger.revision()).await;
        Ok(asked?.0)
    }

    fn watch_path(&mut self, at: Option<u64>, ending: bool) -> String {
        let mut path = format!(
            "{}?watch=true{}",
            self.ask.path,
            self.ask.scope.pick.query()
        );
        match at {
            Some(at) => path.push_str(&format!("&resourceVersion={at}")),
            None => {
                path.push_str("&sendInitialEvents=true&resourceVersionMatch=NotOlderThan");
                if self.rng.random_bool(0.5) && self.seen > 0 {
                    path.push_str(&format!("&resourceVersion={}", self.seen));
                }
            }
        }
        if self.ask.bookmarks || ending {
            path.push_str("&allowWatchBookmarks=true");
        }
        if ending {
            // A bookmark comes two seconds before the end.
            path.push_str("&timeoutSeconds=3");
        } else if self.rng.random_bool(0.3) {
            let seconds = self.rng.random_range(1..=4);
            path.push_str(&format!("&timeoutSeconds={seconds}"));
        }
        path
    }

    /// Reads a watch until it ends or is dropped; one that was asked for before the end, until then.
    async fn follow(&mut self, mut watch: Watch, ending: bool) -> Result<Next> {
        let lasts = Duration::from_millis(self.rng.random_range(200..6000));
        let cut = tokio::time::sleep(lasts);
        tokio::pin!(cut);
        let mut initial = Objects::new();
        let mut end = self.end.clone();
        while !self.is_done() {
            let line = tokio::select! {
                line = watch.next() => line,
                () = &mut cut, if !ending => return Ok(Next::Resume),
                _ = end.wait_for(Option::is_some), if !ending => return Ok(Next::Resume),
            };
            let line = match line {
                Ok((_, line)) => line,
                Err(error) if error.to_string() == "the watch ended" => return Ok(Next::Resume),
                Err(error) => return self.broken(&error).await,
            };
            if line["type"] == "ERROR" {
                return self.refused(&line["object"]).await;
            }
            self.event(&line, &mut initial)?;
        }
        Ok(Next::Resume)
    }

    fn event(&mut self, line: &Value, initial: &mut Objects) -> Result<()> {
        let object = self.ask.object(&line["object"])?;
        let tell = match line["type"].as_str().unwrap_or_default() {
            "BOOKMARK" => return self.bookmark(object, initial),
            "ADDED" => Tell::Added,
            "MODIFIED" => Tell::Modified,
            "DELETED" => Tell::Deleted,
            _ => bail!("strange event {line}"),
        };
        let (key, seen) = read(object, self.ask.scope.whole)?;
        let Some(replay) = &mut self.replay else {
            ensure!(
                tell == Tell::Added,
                "{line} before the end of what there was"
            );
            ensure!(initial.insert(key, seen).is_none(), "{line} again");
            return Ok(());
        };
        self.seen = self.seen.max(seen.revision);
        replay.event(tell, (key, seen))
    }

    fn bookmark(&mut self, object: &Value, initial: &mut Objects) -> Result<()> {
        let revision = revision(object)?;
        let ends = &object["metadata"]["annotations"]["k8s.io/initial-events-end"];
        match (&mut self.replay, ends == "true") {
            (Some(replay), false) => {
                self.seen = self.seen.max(revision);
                replay.bookmark(revision)
            }
            (None, true) => {
                let objects = std::mem::take(initial);
                self.replay = Some(self.listed(revision, objects)?);
                Ok(())
            }
            (_, marked) => bail!("a bookmark that doesn't belong here, marked: {marked}"),
        }
    }

    fn listed(&mut self, revision: u64, objects: Objects) -> Result<Replay> {
        ensure!(
            revision >= self.seen,
            "a list at {revision}, when {} was seen already",
            self.seen
        );
        self.seen = revision;
        let mut replay = Replay::listed(revision, objects);
        replay.moves = self.ask.scope.resource == "pods";
        Ok(replay)
    }

    /// A refusal, or the last event of a watch.
    async fn refused(&mut self, status: &Value) -> Result<Next> {
        match status["code"].as_u64() {
            Some(410) => Ok(Next::Relist),
            Some(504) if self.faults || self.world.gateways.len() > 1 => {
                self.report.too_new += 1;
                sleep(PAUSE).await; // as clients are told to
                Ok(Next::Resume)
            }
            Some(503) if self.faults => {
                self.report.faults += 1;
                sleep(PAUSE).await; // as clients are told to
                Ok(Next::Resume)
            }
            _ => bail!("refused: {status}"),
        }
    }

    async fn broken(&mut self, error: &anyhow::Error) -> Result<Next> {
        ensure!(self.faults, "the connection broke: {error:#}");
        self.report.faults += 1;
        sleep(PAUSE).await; // nobody may be there at the moment
        Ok(Next::Resume)
    }

    /// Everything that there is, in one answer or page by page; `None` to be tried again.
    async fn list(&mut self, gateway: usize) -> Result<Option<Replay>> {
        self.report.lists += 1;
        let mut path = format!("{}?a=b{}", self.ask.path, self.ask.scope.pick.query());
        let pages = self.ask.begin == Begin::Pages;
        if pages {
            path.push_str(&format!("&limit={PAGE}"));
        } else if self.seen > 0 && self.rng.random_bool(0.5) {
            path.push_str(&format!("&resourceVersion={}", self.seen));
        }
        let Some(first) = self.ask_for(gateway, &path).await? else {
            return Ok(None);
        };
        let at = revision(&first)?;
        let mut objects = self.ask.items(&first)?;
        let mut page = first;
        while let Some(token) = page["metadata"]["continue"].as_str() {
            let size = self.ask.items(&page)?.len();
            ensure!(size == PAGE, "a page of {size}");
            let gateway = self.rng.random_range(0..self.world.gateways.len());
            let rest = format!("{path}&continue={token}");
            let Some(next) = self.ask_for(gateway, &rest).await? else {
                return Ok(None);
            };
            let floor = self.world.gateways[gateway].floor();
            if next["code"] == 410 {
                self.expired(at, floor).await?;
                return Ok(None);
            }
            ensure!(
                revision(&next)? == at,
                "a page at {}, not {at}",
                revision(&next)?
            );
            for (key, seen) in self.ask.items(&next)? {
                ensure!(
                    objects.insert(key.clone(), seen).is_none(),
                    "{key} in two pages"
                );
            }
            page = next;
        }
        self.listed(at, objects).map(Some)
    }

    /// An answer, a 410, or `None` when it has to be tried again.
    async fn ask_for(&mut self, gateway: usize, path: &str) -> Result<Option<Value>> {
        let client = self.world.gateways[gateway].client.clone();
        let accept = self.ask.accept(true);
        let asked = async { client.connect().await?.get(path, accept).await };
        let answer = timeout(ANSWER_MAX, asked).await.context("no answer");
        match answer.and_then(|answer| answer) {
            Ok(Answer {
                status: 200 | 410,
                body,
                ..
            }) => Ok(Some(body)),
            Ok(answer) => {
                self.refused(&answer.body).await?;
                Ok(None)
            }
            Err(error) => {
                self.broken(&error).await?;
                Ok(None)
            }
        }
    }

    /// What it knows in the end has to be what a list shows.
    async fn compare_with_list(&mut self) -> Result<()> {
        let path = format!("{}?a=b{}", self.ask.path, self.ask.scope.pick.query());
        let gateway = self.number % self.world.gateways.len();
        let began = Instant::now();
        let list = loop {
            if let Some(list) = self.ask_for(gateway, &path).await? {
                break list;
            }
            ensure!(began.elapsed() < CATCH_UP_MAX, "no list at the end");
        };
        let replay = self.replay.as_ref().context("nothing was watched")?;
        let wrong = differences(&self.ask.items(&list)?, &replay.objects);
        ensure!(
            wrong.is_empty(),
            "unlike the last list: {}",
            wrong.join("\n")
        );
        Ok(())
    }
}
