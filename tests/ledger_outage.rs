//! The ledger while its database dies, hangs, loses what it said, or comes back as it was before.

use crate::ledger_setup::{LONG, Setup, config_map, connect};
use godwit_ledger::{Changes, Ledger, LedgerError, Mark, retry};
use godwit_model::Revision;
use godwit_testkit::postgres_proxy::{Fault, PostgresProxy};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sqlx::Connection;
use std::io::Write as _;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

/// No call takes longer, whatever the database does.
const CALL_MAX: Duration = Duration::from_secs(7);
/// How long a client that stands still may hold up others: the database ends it after 2 s, and a
/// busy machine sees that later.
const HELD_UP_MAX: Duration = Duration::from_secs(10);
/// Until everything works again once the database answers, on a busy machine.
const BACK_MAX: Duration = Duration::from_secs(20);
/// Who was woken up for the last time hears nothing for so long.
const QUIET: Duration = Duration::from_secs(1);
/// Names the database to [`holds_the_lock_until_told`].
const URL: &str = "GODWIT_TEST_LEDGER";

fn is_unavailable<T>(outcome: &Result<T, LedgerError>) -> bool {
    matches!(outcome, Err(LedgerError::Unavailable(_)))
}

async fn write(ledger: &Ledger, name: &str) -> Result<(), LedgerError> {
    let mut tx = ledger.begin().await?;
    tx.create(config_map(name)).await?;
    tx.commit().await.map(drop)
}

async fn names(ledger: &Ledger) -> Vec<String> {
    let objects = ledger.list("configmaps").await.unwrap();
    objects.into_iter().map(|object| object.key.name).collect()
}

#[tokio::test]
async fn a_hung_database_is_unavailable_within_seconds_and_then_used_again() {
    let setup = Setup::new().await;
    let (ledger, idle) = (&setup.ledger, connect(&setup.url).await);
    let mut writing = ledger.begin().await.unwrap();
    writing.create(config_map("one")).await.unwrap();
    let frozen = setup.postgres.freeze().unwrap();

    let key = config_map("one").key;
    let all = async {
        tokio::join!(
            ledger.get(&key),
            ledger.begin(),
            ledger.job_claim("me", LONG),
            idle.snapshot(drop),
            writing.commit(),
        )
    };
    let all = timeout(CALL_MAX, Box::pin(all)).await;
    let all = all.expect("a call hangs");
    let (got, begun, claimed, seen, committed) = all;
    assert!(is_unavailable(&got), "{got:?}");
    assert!(is_unavailable(&begun), "{begun:?}");
    assert!(is_unavailable(&claimed), "{claimed:?}");
    assert!(is_unavailable(&seen), "{seen:?}");
    assert!(
        matches!(committed, Err(LedgerError::Unknown(_))),
        "{committed:?}"
    );

    drop(frozen);
    let back = timeout(BACK_MAX, retry(|| write(ledger, "two")));
    back.await.expect("it is not used again").unwrap();
    let names = names(&idle).await;
    assert!(names == ["one", "two"] || names == ["two"], "{names:?}");
}

#[tokio::test]
async fn a_client_that_stands_still_in_a_transaction_loses_it_and_others_go_on() {
    let setup = Setup::new().await;
    let mut holder = Holder::start(&setup.url).await;
    holder.signal(Signal::SIGSTOP);

    let began = Instant::now();
    let waiting = retry(|| write(&setup.ledger, "ours"));
    let held_up = timeout(HELD_UP_MAX, waiting).await.map(|done| {
        done.unwrap();
        began.elapsed()
    });
    holder.signal(Signal::SIGCONT);
    let held_up = held_up.expect("others are held up for too long");
    assert!(
        held_up > Duration::from_secs(1),
        "the lock was not held: {held_up:?}"
    );
    holder.tell().await;
    let committed = holder.line().await;
    assert!(committed.contains("Unknown"), "{committed}");
    assert_eq!(names(&setup.ledger).await, ["ours"]);
}

/// Another process that begins a transaction: see [`holds_the_lock_until_told`].
struct Holder {
    process: Child,
    orders: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Holder {
    async fn start(url: &str) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--ignored", "--nocapture"])
            .arg("ledger_outage::holds_the_lock_until_told")
            .env(URL, url)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let orders = process.stdin.take().unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut holder = Self {
            process,
            orders,
            lines,
        };
        assert_eq!(holder.line().await, "told: holding");
        holder
    }

    fn signal(&self, signal: Signal) {
        let process = i32::try_from(self.process.id().unwrap()).unwrap();
        kill(Pid::from_raw(process), signal).unwrap();
    }

    async fn tell(&mut self) {
        self.orders.write_all(b"\n").await.unwrap();
    }

    /// The next line that is ours, and not the test runner's.
    async fn line(&mut self) -> String {
        loop {
            let line = timeout(CALL_MAX, self.lines.next_line()).await;
            let line = line.expect("it says nothing").unwrap().expect("it ended");
            if let Some(at) = line.find("told: ") {
                return line[at..].to_owned();
            }
        }
    }
}

#[tokio::test]
#[ignore = "the other process of a test above"]
async fn holds_the_lock_until_told() {
    let ledger = connect(&std::env::var(URL).unwrap()).await;
    let mut tx = ledger.begin().await.unwrap();
    tx.create(config_map("theirs")).await.unwrap();
    say("holding");
    let mut order = String::new();
    std::io::stdin().read_line(&mut order).unwrap();
    say(&format!("{:?}", tx.commit().await));
}

fn say(what: &str) {
    // The test runner may be in the middle of a line.
    let mut out = std::io::stdout();
    writeln!(out, "\ntold: {what}").unwrap();
}

#[tokio::test]
async fn a_commit_whose_answer_is_lost_is_unknown_whether_it_happened_or_not() {
    let setup = Setup::new().await;
    let proxy = PostgresProxy::start(&setup.url).unwrap();
    let ledger = connect(&proxy.url(&setup.url)).await;
    let faults = [
        (Fault::LoseCommit, "not"),
        (Fault::LoseCommitAnswer, "done"),
        (Fault::HoldCommitAnswer, "late"),
    ];
    for (turn, (fault, name)) in faults.into_iter().enumerate() {
        proxy.set(fault);
        let committed = timeout(CALL_MAX, write(&ledger, name)).await;
        let committed = committed.expect("the commit hangs");
        assert!(
            matches!(committed, Err(LedgerError::Unknown(_))),
            "{committed:?}"
        );
        assert_eq!(proxy.commits_hit(), turn + 1);
        proxy.set(Fault::None);
        // The connection was not put back: its answer would be taken for another's.
        ledger.revision().await.unwrap();
    }
    assert_eq!(names(&ledger).await, ["done", "late"]);
}

#[tokio::test]
async fn a_transaction_knows_what_became_of_one_whose_answer_was_lost() {
    let setup = Setup::new().await;
    let proxy = PostgresProxy::start(&setup.url).unwrap();
    let ledger = connect(&proxy.url(&setup.url)).await;
    for (fault, happened) in [(Fault::LoseCommit, false), (Fault::LoseCommitAnswer, true)] {
        let mut tx = ledger.begin().await.unwrap();
        assert_eq!(tx.made(), None);
        let object = tx.create(config_map("one")).await.unwrap();
        let made = tx.made().unwrap();
        proxy.set(fault);
        tx.commit().await.unwrap_err();
        proxy.set(Fault::None);
        let mut tx = ledger.begin().await.unwrap();
        assert_eq!(
            tx.is_changed(made, &object).await.unwrap(),
            happened,
            "{fault:?}"
        );
        assert!(!tx.is_changed(Revision(made.0 + 1), &object).await.unwrap());
    }
}

#[tokio::test]
async fn a_network_that_swallows_everything_is_unavailable_and_then_used_again() {
    let setup = Setup::new().await;
    let proxy = PostgresProxy::start(&setup.url).unwrap();
    let ledger = connect(&proxy.url(&setup.url)).await;
    let mut wakeups = ledger.wakeups();
    assert!(
        wakeups.next(CALL_MAX).await,
        "listening begins with a wake-up"
    );
    for fault in [Fault::Stall, Fault::Cut] {
        proxy.set(fault);
        let written = timeout(CALL_MAX, write(&ledger, "lost")).await;
        let written = written.expect("a write hangs");
        assert!(is_unavailable(&written), "{fault:?}: {written:?}");
        proxy.set(Fault::None);
        let name = format!("{fault:?}");
        let back = timeout(BACK_MAX, retry(|| write(&ledger, &name)));
        back.await.expect("it is not used again").unwrap();
    }
    // What was stalled may arrive later, but it was not committed.
    assert_eq!(names(&ledger).await, ["Cut", "Stall"]);
    while wakeups.next(QUIET).await {}
    write(&setup.ledger, "heard").await.unwrap();
    assert!(wakeups.next(BACK_MAX).await, "it does not listen again");
}

#[tokio::test]
async fn a_killed_database_is_used_and_heard_again_after_its_return() {
    let setup = Setup::new().await;
    let mut wakeups = setup.ledger.wakeups();
    assert!(
        wakeups.next(CALL_MAX).await,
        "listening begins with a wake-up"
    );
    for turn in 0..3 {
        // Connections that are idle die, and so do some in the middle of a transaction.
        let _open = setup.ledger.begin().await.unwrap();
        setup.postgres.crash().unwrap();
        let down = setup.ledger.revision().await;
        assert!(is_unavailable(&down), "{down:?}");
        while wakeups.next(Duration::ZERO).await {}

        setup.postgres.revive().unwrap();
        assert!(wakeups.next(BACK_MAX).await, "nobody was woken up");
        let name = format!("turn-{turn}");
        let back = timeout(BACK_MAX, retry(|| write(&setup.ledger, &name)));
        back.await.expect("it is not used again").unwrap();
    }
    assert_eq!(names(&setup.ledger).await, ["turn-0", "turn-1", "turn-2"]);
}

#[tokio::test]
async fn a_transaction_begins_although_every_idle_connection_is_dead() {
    let setup = Setup::new().await;
    let busy: Vec<_> = (0..8).map(|_| setup.ledger.revision()).collect();
    for read in futures::future::join_all(busy).await {
        read.unwrap();
    }
    setup.postgres.crash().unwrap();
    setup.postgres.revive().unwrap();
    write(&setup.ledger, "one").await.unwrap();
}

#[tokio::test]
async fn a_reader_notices_that_the_ledger_is_an_older_copy_even_when_it_has_grown_since() {
    let setup = Setup::new().await;
    for name in ["kept", "lost-1", "lost-2"] {
        setup.create(name).await;
        if name == "kept" {
            setup.postgres.copy().unwrap();
        }
    }
    let seen = setup.ledger.snapshot(drop).await.unwrap();
    let early = setup.ledger.changes_after(Revision(0), 1).await.unwrap();
    let Changes::Rows(early) = early else {
        panic!("{early:?}")
    };
    setup.postgres.fail_over().unwrap();

    let after = async |mark: Mark| setup.ledger.changes_after(mark, 10).await.unwrap();
    let shorter = retry(|| setup.ledger.changes_after(seen, 10))
        .await
        .unwrap();
    assert!(
        matches!(shorter, Changes::Lost { newest } if newest < seen.revision),
        "{shorter:?}"
    );
    for name in ["new-1", "new-2", "new-3"] {
        setup.create(name).await;
    }
    let longer = after(seen).await;
    assert!(
        matches!(longer, Changes::Lost { newest } if newest > seen.revision),
        "{longer:?}"
    );
    let common = after(early[0].mark()).await;
    assert!(
        matches!(&common, Changes::Rows(rows) if rows.len() == 3),
        "{common:?}"
    );

    let newest = setup.ledger.revisions_skip(seen.revision).await.unwrap();
    assert!(newest.0 > seen.revision.0 + 1000, "{newest}");
    let skipped = after(seen).await;
    assert!(
        matches!(skipped, Changes::Compacted { oldest } if oldest == newest),
        "{skipped:?}"
    );
    setup.create("later").await;
    let on = after(newest.into()).await;
    assert!(
        matches!(&on, Changes::Rows(rows) if rows.len() == 1),
        "{on:?}"
    );
}

#[tokio::test]
async fn only_who_prunes_changes_may_skip_revisions() {
    let setup = Setup::new().await;
    setup.postgres.open_service_logins().unwrap();
    let as_role = |role: &str| setup.url.replace("postgres@", &format!("godwit_{role}@"));
    let scheduler = connect(&as_role("scheduler")).await;
    let refused = scheduler.revisions_skip(Revision(7)).await;
    assert!(
        matches!(refused, Err(LedgerError::Database(_))),
        "{refused:?}"
    );
    let gateway = connect(&as_role("gateway")).await;
    gateway.revisions_skip(Revision(7)).await.unwrap();
}

#[tokio::test]
async fn what_the_server_says_of_itself_is_unavailable_and_a_defect_of_ours_is_not() {
    let setup = Setup::new().await;
    let mut sql = setup.sql().await;
    for code in [
        "40001", "40P01", "53300", "57P01", "57P03", "55P03", "25006",
    ] {
        let raise = format!("DO $$ BEGIN RAISE 'test' USING ERRCODE = '{code}'; END $$");
        let raised = sqlx::raw_sql(sqlx::AssertSqlSafe(raise))
            .execute(&mut sql)
            .await;
        let told = LedgerError::from(raised.unwrap_err());
        assert!(
            matches!(told, LedgerError::Unavailable(_)),
            "{code}: {told:?}"
        );
    }
    let defect = sqlx::raw_sql("SELECT nonsense").execute(&mut sql).await;
    let told = LedgerError::from(defect.unwrap_err());
    assert!(matches!(told, LedgerError::Database(_)), "{told:?}");
    sql.close().await.unwrap();
}

#[tokio::test]
async fn a_lease_from_before_the_clock_was_put_back_holds_nobody_up() {
    let setup = Setup::new().await;
    let node = setup.node("worker1", 2).await;
    let machine = setup.machine("vm1", &node).await;
    let job = setup.request("job", &machine).await;
    setup.ledger.job_claim("dead", LONG).await.unwrap().unwrap();
    assert_eq!(setup.ledger.job_claim("heir", LONG).await.unwrap(), None);
    // What it is when the clock goes back by an hour.
    let put_back = "UPDATE migration SET lease_expires_at = lease_expires_at + interval '1 hour'";
    let mut sql = setup.sql().await;
    sqlx::raw_sql(put_back).execute(&mut sql).await.unwrap();
    let lease = setup.ledger.job_claim("heir", LONG).await.unwrap();
    assert_eq!(lease.expect("it waits for an hour").job.id, job);
}
