//! Who may do what, found out by really asking: the table in docs/api.md.
//!
//! Run with `GOLDEN=write` to write the table anew, and read the difference.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use godwit_testkit::api::{self, Answer, Connection, Method};
use serde_json::{Value, json};

use crate::api_env::Api;

const BEGIN: &str = "<!-- begin of the table that tests/api_roles.rs writes -->\n";
const END: &str = "<!-- end of the table -->\n";
const VERBS: [&str; 8] = [
    "get",
    "list",
    "watch",
    "create",
    "update",
    "patch",
    "delete",
    "deletecollection",
];
/// Column, user, and the cluster role that is granted to that user everywhere.
const USERS: [(&str, Option<(&str, &str)>); 6] = [
    ("anonymous", None),
    ("view", Some(("to-view", "view"))),
    ("edit", Some(("to-edit", "edit"))),
    ("admin", Some(("to-admin", "admin"))),
    ("migrate", Some(("to-migrate", "kubevirt.io:migrate"))),
    ("cluster-admin", Some(("to-cluster-admin", "cluster-admin"))),
];

/// A resource that discovery shows.
struct Row {
    group: String,
    /// `/api/v1` or `/apis/GROUP/VERSION`.
    root: String,
    /// With its subresource.
    name: String,
    kind: String,
    api_version: String,
    namespaced: bool,
    verbs: Vec<&'static str>,
}

struct Asker {
    api: api::Api,
    connection: Connection,
}

#[tokio::test]
async fn who_may_do_what_is_as_the_table_says() -> Result<()> {
    let api = Api::start().await?;
    let mut admin = api.client()?.connect().await?;
    for (user, role) in USERS.into_iter().filter_map(|(_, who)| who) {
        let binding = json!({
            "metadata": {"name": format!("grant-{user}")},
            "roleRef": {"kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "User", "name": user}],
        });
        let path = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
        admin.post(path, &binding).await?;
    }
    let rows = discover(&mut admin).await?;
    let before = api.ledger.revision().await?;
    let mut cells: Vec<Vec<String>> = rows.iter().map(|_| Vec::new()).collect();
    for (_, who) in USERS {
        let client = api.client_of(who.map(|(user, _)| user))?;
        let connection = client.connect().await?;
        let mut asker = Asker {
            api: client,
            connection,
        };
        for (row, cells) in rows.iter().zip(&mut cells) {
            cells.push(asker.cell(row).await?);
        }
    }
    assert_eq!(api.ledger.revision().await?, before, "a dry run was kept");
    compare(&render(&rows, &cells))
}

async fn discover(admin: &mut Connection) -> Result<Vec<Row>> {
    let groups = admin.call(Method::GET, "/apis", None).await?.object()?;
    let groups = groups["groups"].as_array().context("no groups")?.clone();
    let mut roots = vec![(String::new(), "/api/v1".to_owned())];
    for group in &groups {
        let versions = group["versions"].as_array().into_iter().flatten();
        let named = versions.filter_map(|version| {
            let root = format!("/apis/{}", version["groupVersion"].as_str()?);
            Some((group["name"].as_str()?.to_owned(), root))
        });
        roots.extend(named);
    }
    let mut rows: Vec<Row> = Vec::new();
    for (group, root) in &roots {
        let list = admin.call(Method::GET, root, None).await?.object()?;
        for resource in list["resources"].as_array().context("no resources")? {
            let row = Row::read(group, root, resource)?;
            // Rules know no versions; the first one is asked.
            let known = |other: &Row| other.group == row.group && other.name == row.name;
            if !rows.iter().any(known) {
                rows.push(row);
            }
        }
    }
    Ok(rows)
}

impl Row {
    fn read(group: &str, root: &str, resource: &Value) -> Result<Self> {
        let text = |key: &str| resource[key].as_str().unwrap_or_default().to_owned();
        let served = resource["verbs"].as_array().context("no verbs")?;
        let verbs = VERBS
            .into_iter()
            .filter(|verb| served.iter().any(|one| one == verb));
        let own = root
            .trim_start_matches("/apis/")
            .trim_start_matches("/api/");
        let api_version = match (text("group"), text("version")) {
            (group, version) if !group.is_empty() => format!("{group}/{version}"),
            (_, _) => own.to_owned(),
        };
        Ok(Self {
            group: group.to_owned(),
            root: root.to_owned(),
            name: text("name"),
            kind: text("kind"),
            api_version,
            namespaced: resource["namespaced"] == json!(true),
            verbs: verbs.collect(),
        })
    }

    /// The path of the collection, or of an object that isn't there.
    fn path(&self, of_one: bool) -> String {
        let (resource, subresource) = match self.name.split_once('/') {
            Some((resource, subresource)) => (resource, format!("/{subresource}")),
            None => (self.name.as_str(), String::new()),
        };
        let place = match self.namespaced {
            true => "/namespaces/default",
            false => "",
        };
        match of_one || !subresource.is_empty() {
            true => format!("{}{place}/{resource}/nothing{subresource}", self.root),
            false => format!("{}{place}/{resource}", self.root),
        }
    }
}

impl Asker {
    /// The verbs that are let through.
    async fn cell(&mut self, row: &Row) -> Result<String> {
        let mut allowed = Vec::new();
        for verb in &row.verbs {
            if self.may(row, verb).await? {
                allowed.push(*verb);
            }
        }
        Ok(match allowed.len() {
            0 => "-".to_owned(),
            all if all == row.verbs.len() => "**all**".to_owned(),
            _ => allowed.join(" "),
        })
    }

    async fn may(&mut self, row: &Row, verb: &str) -> Result<bool> {
        if verb == "watch" {
            return self.may_watch(row).await;
        }
        let (method, of_one) = match verb {
            "get" => (Method::GET, true),
            "list" => (Method::GET, false),
            "create" => (Method::POST, false),
            "update" => (Method::PUT, true),
            "patch" => (Method::PATCH, true),
            "delete" => (Method::DELETE, true),
            _ => (Method::DELETE, false),
        };
        let dry = match method == Method::GET {
            true => "",
            false => "?dryRun=All",
        };
        let body = json!({
            "apiVersion": row.api_version, "kind": row.kind, "metadata": {"name": "nothing"},
        });
        let action = json!({"dryRun": ["All"]});
        let body = match verb {
            "create" => Some(&body),
            "update" if row.group == "subresources.kubevirt.io" => Some(&action),
            "update" | "patch" => Some(&body),
            _ => None,
        };
        let path = row.path(of_one) + dry;
        let answer = self.connection.call(method, &path, body).await?;
        judge(&answer, row, verb).with_context(|| format!("{verb} {path}"))
    }

    async fn may_watch(&self, row: &Row) -> Result<bool> {
        match self.api.watch(&row.path(false)).await {
            Ok(_) => Ok(true),
            Err(error) => {
                let text = format!("{error:#}");
                let refused = text.contains("401") || text.contains("403");
                ensure!(refused, "watch {}: {text}", row.name);
                Ok(false)
            }
        }
    }
}

/// Whether a request was let through, whatever became of it then.
fn judge(answer: &Answer, row: &Row, verb: &str) -> Result<bool> {
    ensure!(answer.status < 500, "{}: {}", answer.status, answer.body);
    ensure!(answer.status != 405, "it is in discovery: {}", answer.body);
    if answer.status == 401 {
        return Ok(false);
    }
    let refusal = format!(
        " cannot {verb} resource \"{}\" in API group \"{}\"",
        row.name, row.group
    );
    let text = answer.body["message"].as_str().unwrap_or_default();
    Ok(answer.status != 403 || !text.contains(&refusal))
}

fn render(rows: &[Row], cells: &[Vec<String>]) -> String {
    let names = USERS.map(|(name, _)| name).join(" | ");
    let mut table = format!("| resource | verbs | {names} |\n|---|---|---|---|---|---|---|---|\n");
    for (row, cells) in rows.iter().zip(cells) {
        let name = match row.group.as_str() {
            "" => row.name.clone(),
            group => format!("{} ({group})", row.name),
        };
        let verbs = match row.verbs.len() == VERBS.len() {
            true => "every".to_owned(),
            false => row.verbs.join(" "),
        };
        let written = writeln!(table, "| {name} | {verbs} | {} |", cells.join(" | "));
        written.expect("a string takes everything");
    }
    table
}

fn compare(table: &str) -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/api.md");
    let text = std::fs::read_to_string(&path)?;
    let (head, rest) = text.split_once(BEGIN).context("no begin")?;
    let (known, tail) = rest.split_once(END).context("no end")?;
    if std::env::var("GOLDEN").as_deref() == Ok("write") {
        std::fs::write(path, format!("{head}{BEGIN}\n{table}\n{END}{tail}"))?;
        return Ok(());
    }
    let known: Vec<&str> = known.trim().lines().collect();
    let found: Vec<&str> = table.trim().lines().collect();
    let lacks = |of: &[&str], in_them: &[&str]| -> Vec<String> {
        let lines = of.iter().filter(|line| !in_them.contains(*line));
        lines.map(|&line| line.to_owned()).collect()
    };
    let (new, gone) = (lacks(&found, &known), lacks(&known, &found));
    assert!(
        new.is_empty() && gone.is_empty(),
        "see the head of this test; found: {new:#?}\nin docs/api.md: {gone:#?}"
    );
    Ok(())
}
