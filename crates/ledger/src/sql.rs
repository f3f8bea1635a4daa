//! The span of a statement, by OpenTelemetry's conventions for calls to a database.
//!
//! Only within another span: what loops ask by themselves is a part of nothing, and is not told. And
//! only where spans go somewhere: `godwit_runtime::telemetry` enables the target of this module when
//! there is a collector, and a statement costs nothing more without. Arguments are never told.

use sqlx::Execute;
use tracing::{Instrument, Level, Span, debug_span, field, span_enabled};

use crate::session::Statement;

/// Longest summary that the conventions allow.
const SUMMARY_MAX: usize = 255;

/// What tells of one statement; nothing, where nobody listens.
#[derive(Debug)]
pub(crate) struct Told(Span);

/// The statement as it was, and what tells of it.
pub(crate) fn tell(mut statement: Statement<'_>) -> Result<(Statement<'_>, Told), sqlx::Error> {
    let arguments = statement.take_arguments().map_err(sqlx::Error::Encode)?;
    let text = statement.sql();
    let told = Told::of(text.as_str());
    let statement = sqlx::query_with(text, arguments.unwrap_or_default());
    Ok((statement, told))
}

impl Told {
    pub(crate) fn of(text: &str) -> Self {
        if !span_enabled!(Level::DEBUG) || Span::current().is_none() {
            return Self(Span::none());
        }
        let summary = summary(text);
        Self(debug_span!(
            "sql",
            otel.name = summary,
            otel.kind = "client",
            otel.status_code = field::Empty,
            db.system.name = "postgresql",
            db.query.summary = summary,
            db.query.text = text,
            db.response.returned_rows = field::Empty,
            db.response.status_code = field::Empty,
            "error.type" = field::Empty,
        ))
    }

    /// Waits for the answer within the span, and tells how it ended.
    pub(crate) async fn answer<T>(
        &self,
        answer: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, sqlx::Error> {
        let answer = answer.instrument(self.0.clone()).await;
        if let Err(error) = &answer {
            self.failed(error);
        }
        answer
    }

    /// So many rows were read.
    pub(crate) fn rows(&self, count: usize) {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.0.record("db.response.returned_rows", count);
    }

    fn failed(&self, error: &sqlx::Error) {
        self.0.record("otel.status_code", "ERROR");
        let code = error.as_database_error().and_then(|error| error.code());
        match (code, error) {
            (Some(code), _) => {
                self.0.record("db.response.status_code", &*code);
                self.0.record("error.type", &*code);
            }
            (None, sqlx::Error::Io(error)) => {
                self.0.record("error.type", error.kind().to_string());
            }
            (None, _) => {
                self.0.record("error.type", "_OTHER");
            }
        }
    }
}

/// What a statement does, and to which tables, in the order in which it says so, for example
/// `UPDATE migration INSERT migration_transition`.
fn summary(text: &str) -> String {
    let words = words(text);
    let at = |at: Option<usize>| at.and_then(|at| words.get(at)).copied().unwrap_or_default();
    let is = |place: Option<usize>, word: &str| at(place).eq_ignore_ascii_case(word);
    // Names that the statement gives to its own parts.
    let own = |name: &str| {
        let mut given = words.windows(3);
        given
            .any(|words| words[0] == name && words[1].eq_ignore_ascii_case("AS") && words[2] == "(")
    };
    let (mut said, mut operation) = (Vec::<(&str, &str)>::new(), "");
    for (here, word) in words.iter().enumerate() {
        let (before, next) = (here.checked_sub(1), here + 1);
        let target = match word.to_ascii_uppercase().as_str() {
            "SELECT" => {
                operation = "SELECT";
                continue;
            }
            "INSERT" => ("INSERT", at(Some(next + 1))),
            "DELETE" => ("DELETE", at(Some(next + 1))),
            // `FOR UPDATE`, `FOR NO KEY UPDATE` and `DO UPDATE` are parts of others.
            "UPDATE" if !["FOR", "KEY", "DO"].iter().any(|word| is(before, word)) => {
                ("UPDATE", at(Some(next)))
            }
            "FROM" if is(before, "DELETE") || is(before, "DISTINCT") => continue,
            "FROM" if is(here.checked_sub(3), "extract") => continue,
            "FROM" | "JOIN" if is(Some(next), "LATERAL") => continue,
            "FROM" | "JOIN" => (operation, at(Some(next))),
            _ => continue,
        };
        operation = target.0;
        let is_name = target
            .1
            .starts_with(|first: char| first.is_alphabetic() || first == '_');
        if is_name && target.1 != "unnest" && !own(target.1) && !said.contains(&target) {
            said.push(target);
        }
    }
    spoken(&said, at(Some(0)))
}

/// Each operation once for all the targets that follow each other; `otherwise` without any.
fn spoken(said: &[(&str, &str)], otherwise: &str) -> String {
    if said.is_empty() {
        return otherwise.to_ascii_uppercase();
    }
    let mut summary = String::new();
    let mut last = "";
    for (operation, target) in said {
        let words = match *operation == last {
            true => format!(" {target}"),
            false => format!(" {operation} {target}"),
        };
        if summary.len() + words.len() > SUMMARY_MAX {
            break;
        }
        summary.push_str(&words);
        last = operation;
    }
    summary.trim_start().to_owned()
}

/// Words and signs, without comments and without what stands in quotes.
fn words(text: &str) -> Vec<&str> {
    let code = text
        .lines()
        .map(|line| line.split("--").next().unwrap_or(line));
    let mut words = vec![];
    let mut quoted = false;
    for line in code {
        let mut rest = line;
        while let Some(first) = rest.chars().next() {
            let in_word = |sign: char| sign.is_alphanumeric() || matches!(sign, '_' | '.');
            let end = match in_word(first) {
                true => rest.find(|sign| !in_word(sign)).unwrap_or(rest.len()),
                false => first.len_utf8(),
            };
            let (word, tail) = rest.split_at(end);
            quoted ^= word == "'";
            if !quoted && word != "'" && !first.is_whitespace() {
                words.push(word);
            }
            rest = tail;
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_is_summed_up_by_what_it_does_to_which_tables() {
        for (statement, expected) in [
            (
                "SELECT value FROM revision_counter",
                "SELECT revision_counter",
            ),
            (
                "SELECT revision, locked_at FROM revision_lock()",
                "SELECT revision_lock",
            ),
            ("DELETE FROM instance WHERE uid = $1", "DELETE instance"),
            ("COMMIT", "COMMIT"),
            ("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", "BEGIN"),
            ("select clock_timestamp() AS now", "SELECT"),
            (
                "SELECT a FROM x WHERE b IS DISTINCT FROM c AND d = ' FROM y' FOR UPDATE",
                "SELECT x",
            ),
            (
                include_str!("../queries/job_record.sql"),
                "UPDATE migration SELECT instance INSERT migration_transition \
                    SELECT migration_transition UPDATE reservation",
            ),
            (
                include_str!("../queries/instance_hand_over.sql"),
                "UPDATE instance SELECT migration DELETE reservation",
            ),
            (
                include_str!("../queries/jobs_about.sql"),
                "SELECT migration object instance",
            ),
            (
                include_str!("../queries/job_claim.sql"),
                "SELECT migration UPDATE migration",
            ),
            (include_str!("../queries/event_record.sql"), "INSERT event"),
        ] {
            assert_eq!(summary(statement), expected);
        }
    }

    #[test]
    fn a_summary_has_an_end() {
        let joins: String = (0..99)
            .map(|n| format!(" JOIN table_{n} ON true"))
            .collect();
        let summary = summary(&format!("SELECT FROM first{joins}"));
        assert!(
            summary.starts_with("SELECT first table_0 table_1 "),
            "{summary}"
        );
        assert!(summary.len() <= SUMMARY_MAX, "{summary}");
    }

    #[test]
    fn without_a_span_around_it_nothing_is_told() {
        tracing::subscriber::with_default(tracing_subscriber::registry(), || {
            assert!(Told::of("SELECT 1").0.is_none());
            let around = tracing::info_span!("around");
            assert!(around.in_scope(|| !Told::of("SELECT 1").0.is_none()));
        });
    }
}
