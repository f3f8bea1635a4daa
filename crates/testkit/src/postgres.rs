//! A private Postgres: own data folder, unix socket only, nobody else's cluster is touched.
//!
//! Tests take [`Postgres::ephemeral`], the lab [`Postgres::start_detached`]. Postgres refuses to
//! run as root, so root runs it as the system user `postgres`, or `nobody` where there is none.

mod outage;
mod usage;

pub use outage::Frozen;
pub use usage::{DatabaseUse, cpu_seconds_of};

use anyhow::{Context, Result, bail, ensure};
use godwit_ledger::{Ledger, LedgerConfig};
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, User};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use uuid::Uuid;

/// Oldest version that the ledger works with.
const VERSION_MIN: u32 = 15;
/// Where Debian's packages put each version.
const VERSIONS: &str = "/usr/lib/postgresql";
/// Longest wait for a server to answer, or to stop.
const READY_MAX: Duration = Duration::from_secs(30);
/// Pause between two questions whether it answers.
const READY_PAUSE: Duration = Duration::from_millis(5);
/// Longest path of a unix socket, less the file name that Postgres appends.
const SOCKET_DIR_LENGTH_MAX: usize = 107 - "/.s.PGSQL.5432".len();
/// The superuser of every cluster made here.
const SUPERUSER: &str = "postgres";
/// The database that holds the migrated schema, copied for each test.
const TEMPLATE: &str = "godwit_template";
/// Starts the server, and once more for each line of standard input. Stops it (`$3`) when standard
/// input ends: also when we are killed. Removes the folder `$4` then, if there is one.
const WATCHDOG: &str = r#"
"$0" -D "$1" >>"$2" 2>&1 &
while read -r _; do
    "$0" -D "$1" >>"$2" 2>&1 &
done
kill "-$3" $!
kill -CONT $!
wait
[ -z "$4" ] || rm -rf "$4"
"#;

/// A running private Postgres.
#[derive(Debug)]
pub struct Postgres {
    socket_dir: PathBuf,
    server: Server,
    watchdog: Option<Child>,
    /// Removed when the server has stopped; `None` when the folder is the caller's.
    scratch: Option<TempDir>,
}

/// Where the programs and the data are, and as whom to run.
#[derive(Debug, Clone)]
struct Server {
    bin: PathBuf,
    dir: PathBuf,
    user: Option<(Uid, Gid)>,
}

impl Postgres {
    /// Starts a server with its data in `dir` (made when missing) and stops it on drop, or when
    /// this process dies. The data stay.
    ///
    /// # Errors
    /// When Postgres isn't installed, or `dir` can't be used; says why.
    pub fn start(dir: &Path) -> Result<Self> {
        let server = Server::prepare(dir)?;
        server.start_watched("INT", None)
    }

    /// Starts a server with its data in `dir` (made when missing), unless it runs already. It
    /// outlives this process; [`Postgres::stop`] ends it.
    ///
    /// # Errors
    /// When Postgres isn't installed, or `dir` can't be used; says why.
    pub fn start_detached(dir: &Path) -> Result<Self> {
        let server = Server::prepare(dir)?;
        let socket_dir = server.socket_dir()?;
        if !server.pg_ctl(&["status"]).output()?.status.success() {
            let log = server.log();
            let start = ["-w", "-l", path_str(&log)?, "start"];
            // Not captured: the server inherits the output, and would hold a pipe open for ever.
            let mut command = server.pg_ctl(&start);
            let status = command
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()?;
            ensure!(
                status.success(),
                "postgres did not start:\n{}",
                server.log_end()
            );
        }
        Ok(Self {
            socket_dir,
            server,
            watchdog: None,
            scratch: None,
        })
    }

    /// Stops the server whose data are in `dir`, found by its pid file. Not running is fine.
    ///
    /// # Errors
    /// When it does not stop within 30 s.
    pub fn stop(dir: &Path) -> Result<()> {
        if !dir.join("data/postmaster.pid").exists() {
            return Ok(());
        }
        let server = Server::find(dir)?;
        if server.pg_ctl(&["status"]).output()?.status.success() {
            run(
                server.pg_ctl(&["-w", "-m", "fast", "stop"]),
                "stop postgres",
            )?;
        }
        Ok(())
    }

    /// Kills the server whose data are in `dir` (SIGKILL), found by its pid file, with all that it
    /// forked, as a power cut does. A second start needs no repair.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(dir: &Path) -> Result<()> {
        for process in outage::processes(&dir.join("data"))? {
            // A child that ended meanwhile needs no signal.
            let _ = nix::sys::signal::kill(process, Signal::SIGKILL);
        }
        Ok(())
    }

    /// Starts a server on a copy of a cached, migrated data folder in the temporary folder. It is
    /// stopped, and its data removed, soon after drop, also when this process is killed.
    ///
    /// # Errors
    /// When Postgres isn't installed, or the temporary folder can't be used; says why.
    pub fn ephemeral() -> Result<Self> {
        let scratch = tempfile::Builder::new().prefix("gwpg-").tempdir()?;
        let server = Server::find(scratch.path())?;
        let template = server.template()?;
        server.own(scratch.path())?;
        let mut copy = server.command(Path::new("cp"));
        copy.args(["-a", "--reflink=auto"])
            .arg(template.join("data"))
            .arg(server.data());
        run(copy, "copy the cached cluster")?;
        server.configure()?;
        server.start_watched("QUIT", Some(scratch))
    }

    /// URL of a database, as the superuser.
    pub fn url(&self, database: &str) -> String {
        self.url_as(database, SUPERUSER)
    }

    /// URL of a database, as another user. Users are trusted: the socket is for its owner alone.
    pub fn url_as(&self, database: &str, user: &str) -> String {
        let dir = self.socket_dir.display();
        format!("postgres://{user}@localhost/{database}?host={dir}")
    }

    /// Makes a database with the ledger's schema and a name of its own. Answers its URL.
    ///
    /// # Errors
    /// When the schema can't be made.
    pub fn create_database(&self) -> Result<String> {
        if self.create(TEMPLATE, "template0")? {
            migrate(self.url(TEMPLATE))?;
        }
        let name = format!("test_{}", Uuid::new_v4().simple());
        self.create(&name, TEMPLATE)?;
        Ok(self.url(&name))
    }

    /// Makes an empty database unless there is one of this name. Answers its URL.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn ensure_database(&self, name: &str) -> Result<String> {
        self.create(name, "template0")?;
        Ok(self.url(name))
    }

    /// Lets each service, and the auditor, log in under the name of its own role. The ledger's migrations made the
    /// roles; run them first.
    ///
    /// # Errors
    /// When there are no such roles.
    pub fn open_service_logins(&self) -> Result<()> {
        for role in [
            "gateway",
            "scheduler",
            "coordinator",
            "maintenance",
            "auditor",
        ] {
            self.psql(SUPERUSER, &format!("ALTER ROLE godwit_{role} LOGIN"))?;
        }
        Ok(())
    }

    /// Runs a statement as the superuser. Answers its rows, columns parted by `|`.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn psql(&self, database: &str, statement: &str) -> Result<String> {
        let mut command = Command::new(self.server.bin.join("psql"));
        command
            .args(["-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", statement])
            .arg(self.url(database));
        run(command, statement)
    }

    /// Makes a database; answers false when there is one.
    fn create(&self, name: &str, template: &str) -> Result<bool> {
        let known = format!("SELECT 1 FROM pg_database WHERE datname = '{name}'");
        if !self.psql(SUPERUSER, &known)?.is_empty() {
            return Ok(false);
        }
        let create = format!(r#"CREATE DATABASE "{name}" TEMPLATE "{template}""#);
        self.psql(SUPERUSER, &create)?;
        Ok(true)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let Some(mut watchdog) = self.watchdog.take() else {
            return;
        };
        drop(watchdog.stdin.take());
        match self.scratch.take() {
            // Left to the watchdog: a half-open connection of ours would keep the server from
            // ending as long as we wait for it.
            Some(scratch) => drop(scratch.keep()),
            // The watchdog waits for its only child, which was told to end.
            None => drop(watchdog.wait()),
        }
    }
}

impl Server {
    /// Finds the programs; touches nothing.
    fn find(dir: &Path) -> Result<Self> {
        let user = if Uid::effective().is_root() {
            let known = [SUPERUSER, "nobody"].into_iter();
            let mut known = known.filter_map(|name| User::from_name(name).ok().flatten());
            let user = known.next().context("no user to run postgres as")?;
            Some((user.uid, user.gid))
        } else {
            None
        };
        Ok(Self {
            bin: find_bin()?,
            dir: std::path::absolute(dir)?,
            user,
        })
    }

    /// Finds the programs, and makes the cluster unless there is one.
    fn prepare(dir: &Path) -> Result<Self> {
        let server = Self::find(dir)?;
        fs::create_dir_all(&server.dir)?;
        server.own(&server.dir)?;
        let mut reach = server.command(Path::new("test"));
        reach.arg("-w").arg(&server.dir);
        let status = reach.status()?;
        let dir = server.dir.display();
        ensure!(status.success(), "the user of postgres can't reach {dir}");
        if !server.data().join("PG_VERSION").exists() {
            server.init()?;
        }
        server.configure()?;
        Ok(server)
    }

    fn init(&self) -> Result<()> {
        let mut initdb = self.command(&self.bin.join("initdb"));
        initdb
            .args(["--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8"])
            .args(["--no-sync", "--wal-segsize=4", "--username", SUPERUSER])
            .arg("-D")
            .arg(self.data());
        run(initdb, "make a cluster (initdb)").map(drop)
    }

    /// Writes our settings; they are in a file of their own, so that this can be done again.
    fn configure(&self) -> Result<()> {
        let settings = format!(
            "listen_addresses = ''\n\
             unix_socket_directories = '{}'\n\
             unix_socket_permissions = 0700\n\
             fsync = on\n\
             authentication_timeout = 10s\n\
             max_connections = 200\n\
             shared_buffers = 64MB\n\
             max_wal_size = 256MB\n",
            self.socket_dir()?.display(),
        );
        let file = self.data().join("postgresql.auto.conf");
        fs::write(&file, settings)?;
        self.own(&file)
    }

    /// Where the socket is: in the folder, or, when that is too long, in a short one.
    fn socket_dir(&self) -> Result<PathBuf> {
        if self.dir.as_os_str().len() <= SOCKET_DIR_LENGTH_MAX {
            return Ok(self.dir.clone());
        }
        let name = Uuid::new_v5(&Uuid::NAMESPACE_URL, path_str(&self.dir)?.as_bytes());
        let dir = std::env::temp_dir().join(format!("gwpg-{}", name.simple()));
        fs::create_dir_all(&dir)?;
        self.own(&dir)?;
        Ok(dir)
    }

    fn start_watched(self, signal: &str, scratch: Option<TempDir>) -> Result<Postgres> {
        let mut command = self.command(Path::new("sh"));
        command
            .args(["-c", WATCHDOG])
            .arg(self.bin.join("postgres"))
            .arg(self.data())
            .arg(self.log())
            .arg(signal)
            .arg(
                scratch
                    .as_ref()
                    .map_or_else(|| Path::new(""), TempDir::path),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let postgres = Postgres {
            socket_dir: self.socket_dir()?,
            watchdog: Some(command.spawn().context("start postgres")?),
            server: self,
            scratch,
        };
        postgres.server.wait_ready(&postgres.socket_dir)?;
        Ok(postgres)
    }

    fn wait_ready(&self, socket_dir: &Path) -> Result<()> {
        let deadline = Instant::now() + READY_MAX;
        while Instant::now() < deadline {
            let mut ready = Command::new(self.bin.join("pg_isready"));
            ready.arg("-q").arg("-h").arg(socket_dir);
            if ready.status()?.success() {
                return Ok(());
            }
            sleep(READY_PAUSE);
        }
        bail!("postgres did not answer within 30 s:\n{}", self.log_end())
    }

    /// The cached folder of a stopped cluster that holds the migrated template.
    fn template(&self) -> Result<PathBuf> {
        let version = path_str(&self.bin)?.replace('/', "");
        let uid = self.user.map_or_else(Uid::effective, |(uid, _)| uid);
        let schema = godwit_ledger::schema_fingerprint();
        let cache = std::env::temp_dir().join(format!("godwit-{uid}-{version}-{schema}"));
        if !cache.exists() {
            let fresh = tempfile::Builder::new().prefix("gwpg-").tempdir()?;
            let made = Self::prepare(fresh.path())?.start_watched("INT", None)?;
            made.create(TEMPLATE, "template0")?;
            migrate(made.url(TEMPLATE))?;
            drop(made);
            // Whoever is first wins; the other's is as good, and removed.
            if fs::rename(fresh.path(), &cache).is_ok() {
                let _moved = fresh.keep();
            }
        }
        let owner = fs::metadata(&cache)?.uid();
        ensure!(owner == uid.as_raw(), "{} is not ours", cache.display());
        Ok(cache)
    }

    /// A command that runs as the server's user.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        // Its user may not be allowed to stand where we do.
        command.current_dir("/").stdin(Stdio::null());
        if let Some((uid, gid)) = self.user {
            command.uid(uid.as_raw()).gid(gid.as_raw());
        }
        command
    }

    fn pg_ctl(&self, arguments: &[&str]) -> Command {
        let mut command = self.command(&self.bin.join("pg_ctl"));
        command.arg("-D").arg(self.data()).args(arguments);
        command
    }

    /// Gives a file or folder to the server's user, and to nobody else.
    fn own(&self, path: &Path) -> Result<()> {
        if let Some((uid, gid)) = self.user {
            nix::unistd::chown(path, Some(uid), Some(gid))
                .with_context(|| format!("give {} to the user of postgres", path.display()))?;
        }
        let mode = if path.is_dir() { 0o700 } else { 0o600 };
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        Ok(())
    }

    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    fn log(&self) -> PathBuf {
        self.dir.join("postgres.log")
    }

    fn log_end(&self) -> String {
        const LINES: usize = 20;
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LINES)..].join("\n")
    }
}

/// Folder with the programs of the newest installed version.
fn find_bin() -> Result<PathBuf> {
    let versions = fs::read_dir(VERSIONS).into_iter().flatten().flatten();
    versions
        .filter_map(|entry| {
            Some((
                entry.file_name().to_str()?.parse::<u32>().ok()?,
                entry.path(),
            ))
        })
        .map(|(version, path)| (version, path.join("bin")))
        .filter(|(version, bin)| *version >= VERSION_MIN && bin.join("initdb").exists())
        .max()
        .map(|(_, bin)| bin)
        .context("no PostgreSQL 15 or newer under /usr/lib/postgresql: apt-get install postgresql")
}

/// Applies the ledger's migrations, whether or not the caller is in an async runtime.
fn migrate(url: String) -> Result<()> {
    let migrate = move || -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let config = LedgerConfig {
                url,
                connections_max: 1,
            };
            Ledger::connect(config).await?.migrate().await?;
            Ok(())
        })
    };
    match std::thread::spawn(migrate).join() {
        Ok(done) => done.context("migrate the template"),
        Err(_) => bail!("migrating the template panicked"),
    }
}

fn run(mut command: Command, what: &str) -> Result<String> {
    let output = command.output().with_context(|| what.to_owned())?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{what}: {}", errors.trim());
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn path_str(path: &Path) -> Result<&str> {
    path.to_str()
        .with_context(|| format!("{} is not UTF-8", path.display()))
}
