//! A running gateway: the binary as a process of its own, with a configuration in a folder of its own.
//!
//! [`Gateway::start`] returns when `/readyz` says yes. Its log is followed line by line, so that tests wait for what it
//! says ([`Gateway::says`]). Every wait is bounded by [`PATIENCE`]. Dropping it kills the process; where the test has
//! failed, the log is shown.

use crate::client;
use mocks::Engine;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// The longest wait for anything that has to happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(40);
/// How often a process is looked at that starts or ends.
const LOOK_PERIOD: Duration = Duration::from_millis(20);
/// How many pairs of ports are tried: another process may take one between its choice and its use.
const PORTS_MAX: usize = 5;

/// What a test wants of its gateway.
#[derive(Clone, Default)]
pub(crate) struct Plan {
    /// Keys of the section `server`, as in `close_delay: 1s, grace_period: 2s`.
    pub(crate) server: &'static str,
    /// Further sections of the configuration, as YAML.
    pub(crate) sections: &'static str,
    /// Further clusters, as items of a YAML list.
    pub(crate) clusters: &'static str,
    /// The number of files that the process may have open, where it is not the usual one.
    pub(crate) files_max: Option<u32>,
}

/// A gateway process.
pub(crate) struct Gateway {
    process: Child,
    log: watch::Receiver<String>,
    plan: Plan,
    folder: Arc<TempDir>,
    /// Where it serves.
    pub(crate) address: SocketAddr,
    /// Where its admin listener listens.
    pub(crate) admin: SocketAddr,
}

/// Waits for `future`, but not for ever.
pub(crate) async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

/// Looks until `look` sees something: only for what a process does before it can tell.
pub(crate) async fn look_for<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let looking = async {
        loop {
            if let Some(seen) = look().await {
                return seen;
            }
            sleep(LOOK_PERIOD).await;
        }
    };
    soon(what, looking).await
}

/// The binary, free of the environment's influence.
pub(crate) fn kvway() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvway"));
    command.env_clear().stdin(Stdio::null());
    command
}

/// An address that was free a moment ago.
pub(crate) fn free_address() -> SocketAddr {
    let [address] = free_addresses();
    address
}

/// Addresses that were free a moment ago, each another.
pub(crate) fn free_addresses<const COUNT: usize>() -> [SocketAddr; COUNT] {
    let held = [(); COUNT].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    held.each_ref().map(|listener| listener.local_addr().unwrap())
}

impl Gateway {
    /// A gateway in front of `engines`, ready to serve.
    pub(crate) async fn start(engines: &[&Engine], plan: Plan) -> Self {
        for _ in 0..PORTS_MAX {
            let [address, admin] = free_addresses();
            let folder = tempfile::tempdir().unwrap();
            let text = configuration(engines, &plan, folder.path(), address, admin);
            std::fs::write(folder.path().join("kvway.yaml"), text).unwrap();
            let mut gateway = Self::launch(Arc::new(folder), plan.clone(), address, admin, &[]);
            if gateway.becomes_ready().await {
                return gateway;
            }
        }
        panic!("the ports were taken {PORTS_MAX} times");
    }

    /// A gateway that is started with these words before its file, which holds this text.
    pub(crate) async fn start_as(words: &[&str], text: impl Fn(SocketAddr, SocketAddr) -> String) -> Self {
        for _ in 0..PORTS_MAX {
            let [address, admin] = free_addresses();
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("conf.yaml");
            std::fs::write(&file, text(address, admin)).unwrap();
            let mut command = kvway();
            command.args(words).arg(file);
            let mut gateway = Self::spawn(command, Arc::new(folder), Plan::default(), address, admin);
            if gateway.becomes_ready().await {
                return gateway;
            }
        }
        panic!("the ports were taken {PORTS_MAX} times");
    }

    /// A process with the same configuration that waits for this one's listeners.
    pub(crate) async fn successor(&self) -> Self {
        let successor = self.upgraded(self.address);
        successor.waits_for_listeners().await;
        successor
    }

    /// As [`Gateway::successor`], with another address in its configuration.
    pub(crate) async fn successor_at(&self, address: SocketAddr) -> Self {
        let file = self.folder.path().join("kvway.yaml");
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(file, text.replace(&self.address.to_string(), &address.to_string())).unwrap();
        let successor = self.upgraded(address);
        successor.waits_for_listeners().await;
        successor
    }

    /// A process started with `--upgrade`, whether there is anybody or not.
    pub(crate) fn upgraded(&self, address: SocketAddr) -> Self {
        let folder = Arc::clone(&self.folder);
        Self::launch(folder, self.plan.clone(), address, self.admin, &["--upgrade"])
    }

    async fn waits_for_listeners(&self) {
        let socket = self.folder.path().join("upgrade.sock");
        look_for("the upgrade socket", async || is_listening(&socket).then_some(())).await;
    }

    /// A new process with the same configuration, once this one has ended.
    pub(crate) async fn again(&self) -> Self {
        let folder = Arc::clone(&self.folder);
        let mut gateway = Self::launch(folder, self.plan.clone(), self.address, self.admin, &[]);
        assert!(gateway.becomes_ready().await, "the ports were taken");
        gateway
    }

    /// Where its configuration is, as `kvway.yaml`.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn launch(
        folder: Arc<TempDir>,
        plan: Plan,
        address: SocketAddr,
        admin: SocketAddr,
        flags: &[&str],
    ) -> Self {
        let mut command = match plan.files_max {
            None => kvway(),
            Some(files_max) => {
                let mut shell = Command::new("/bin/sh");
                let script = format!("ulimit -n {files_max}; exec \"$0\" \"$@\"");
                shell.env_clear().stdin(Stdio::null());
                shell.arg("-c").arg(script).arg(env!("CARGO_BIN_EXE_kvway"));
                shell
            }
        };
        command.arg("run").arg("-c").arg(folder.path().join("kvway.yaml")).args(flags);
        Self::spawn(command, folder, plan, address, admin)
    }

    fn spawn(
        mut command: Command,
        folder: Arc<TempDir>,
        plan: Plan,
        address: SocketAddr,
        admin: SocketAddr,
    ) -> Self {
        let mut process = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let log = follow(process.stderr.take().unwrap());
        Self { process, log, plan, folder, address, admin }
    }

    /// Waits for `/readyz`; false when the process found a port taken.
    async fn becomes_ready(&mut self) -> bool {
        let client = client::fresh();
        let url = self.admin_url("/readyz");
        look_for("the gateway to be ready", async || {
            if let Some(status) = self.process.try_wait().unwrap() {
                let log = self.log.borrow().clone();
                assert!(log.contains("in use"), "{status}: {log}");
                return Some(false);
            }
            let answer = client.get(&url).send().await.ok()?;
            // The listeners of the clients and of the admin come up side by side.
            let serves = tokio::net::TcpStream::connect(self.address).await.is_ok();
            (answer.status() == 200 && serves).then_some(true)
        })
        .await
    }

    /// The URL of `path` where clients are served.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// The URL of `path` of the admin listener.
    pub(crate) fn admin_url(&self, path: &str) -> String {
        format!("http://{}{path}", self.admin)
    }

    /// What the admin listener shows as `/state`.
    pub(crate) async fn state(&self) -> Value {
        let answer = client::fresh().get(self.admin_url("/state")).send().await.unwrap();
        answer.json().await.unwrap()
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid().cast_signed()), signal).unwrap();
    }

    /// Waits until it has ended; its exit code, or `None` where a signal has ended it.
    pub(crate) async fn exit(&mut self) -> Option<i32> {
        look_for("the process to end", async || self.process.try_wait().unwrap()).await.code()
    }

    /// Whether it is still running.
    pub(crate) fn is_running(&mut self) -> bool {
        self.process.try_wait().unwrap().is_none()
    }

    /// Waits until its log contains `text`; returns the log so far.
    pub(crate) async fn says(&self, text: &str) -> String {
        let mut log = self.log.clone();
        let said = soon(text, log.wait_for(|log| log.contains(text))).await;
        said.unwrap_or_else(|_| panic!("it ended without saying {text:?}")).clone()
    }

    /// Its whole log, once it has ended.
    pub(crate) async fn log(&self) -> String {
        let mut log = self.log.clone();
        while soon("the end of the log", log.changed()).await.is_ok() {}
        log.borrow().clone()
    }

    /// The access log so far, a value per line.
    pub(crate) fn access_log(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.folder.path().join("access.log")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The value of `field` in `/proc/PID/status`, in KiB.
    pub(crate) fn memory_kib(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let value = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let number = value.and_then(|value| value.split_ascii_whitespace().next());
        number.unwrap().parse().unwrap()
    }

    /// The processor time that it has used, in ticks of 10 ms.
    pub(crate) fn processor_ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        // After the name in parentheses, which may hold anything: state is the first field, utime the 12th, stime the 13th.
        let (_, fields) = stat.rsplit_once(')').unwrap();
        let ticks = |text: &str| text.parse::<u64>().unwrap();
        fields.split_ascii_whitespace().skip(11).take(2).map(ticks).sum()
    }
}

impl Drop for Gateway {
    #[expect(clippy::print_stderr, reason = "shown with a test that has failed")]
    fn drop(&mut self) {
        // It may have ended by itself.
        let _killed = self.process.kill().is_ok();
        let _reaped = self.process.wait().is_ok();
        if std::thread::panicking() {
            eprintln!("the log of process {}:\n{}", self.pid(), *self.log.borrow());
        }
    }
}

fn follow(stderr: ChildStderr) -> watch::Receiver<String> {
    let (sender, receiver) = watch::channel(String::new());
    std::thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            sender.send_modify(|log| log.extend([line.as_str(), "\n"]));
        }
    });
    receiver
}

/// A whole configuration.
pub(crate) fn configuration(
    engines: &[&Engine],
    plan: &Plan,
    folder: &Path,
    address: SocketAddr,
    admin: SocketAddr,
) -> String {
    let folder = folder.display();
    let socket = format!("upgrade_socket: \"{folder}/upgrade.sock\"");
    let server = if plan.server.contains("upgrade_socket") {
        plan.server.to_owned()
    } else {
        format!("{socket}, {}", plan.server)
    };
    let Plan { sections, clusters, .. } = plan;
    let mut text = format!(
        "server: {{threads: 2, {server}}}\n\
         listeners: [{{address: \"{address}\"}}]\n\
         admin: {{address: \"{admin}\"}}\n\
         log: {{access: json, file: \"{folder}/access.log\"}}\n\
         {sections}\n\
         clusters:\n{clusters}\n  - name: llama\n    backends:\n"
    );
    for engine in engines {
        writeln!(text, "      - {{id: {}, address: \"{}\"}}", engine.id(), engine.address()).unwrap();
    }
    text
}

/// Whether a process listens at this Unix socket.
fn is_listening(socket: &Path) -> bool {
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
    sockets.lines().any(|line| {
        line.split_ascii_whitespace().nth(3) == Some("00010000") && line.ends_with(&*socket.to_string_lossy())
    })
}
