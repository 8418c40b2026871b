//! A real vLLM on the CPU with a tiny model, one for all tests of this binary. Only `make test-vllm` starts it.

use super::process::{Process, look_as_long_as, program, root};
use crate::world;
use serde_json::Value;
use std::net::SocketAddr;
use std::process::Command;
use std::thread;
use std::time::Duration;
use tokio::net::TcpSocket;
use tokio::sync::OnceCell;

const ENVIRONMENT: &str = ".venv-vllm";
/// How long it may take to start: it compiles kernels when it runs for the first time.
const START_TIME_MAX: Duration = Duration::from_mins(5);

static RUNNING: OnceCell<Running> = OnceCell::const_new();

/// The process; it ends with the test binary.
struct Running {
    server: Process,
    address: SocketAddr,
    _reserved: TcpSocket,
}

/// The engine as one test sees it.
pub(crate) struct RealEngine {
    client: reqwest::Client,
    running: &'static Running,
}

/// The engine, up and answering.
pub(crate) async fn engine() -> RealEngine {
    let running = RUNNING.get_or_init(Running::start).await;
    RealEngine { client: world::client(), running }
}

impl Running {
    async fn start() -> Self {
        let (reserved, address) = world::reserve();
        let mut command = Command::new(program(ENVIRONMENT, "python", "test-vllm"));
        command.arg(root().join("tests/real/vllm/serve.py"));
        command.arg(root().join(ENVIRONMENT).join("model")).arg(address.port().to_string());
        let running = Self { server: Process::spawn("vllm", command), address, _reserved: reserved };
        let client = world::client();
        let looking = look_as_long_as(START_TIME_MAX, async || {
            assert!(!running.server.has_ended(), "vLLM ended\n{}", running.server.log());
            let answer = client.get(format!("http://{address}/health")).send().await;
            answer.is_ok_and(|answer| answer.status().is_success())
        });
        looking.await;
        running
    }
}

impl RealEngine {
    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.running.address
    }

    /// POSTs `body` to `path`.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> reqwest::Response {
        self.client.post(format!("http://{}{path}", self.address())).json(body).send().await.unwrap()
    }

    /// The value of a metric without labels of interest: the first series that begins with `name`.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let answer = self.client.get(format!("http://{}/metrics", self.address())).send().await.unwrap();
        let text = answer.text().await.unwrap();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.rsplit_once(' ').unwrap().1.parse().unwrap()
    }
}

impl Drop for RealEngine {
    #[expect(clippy::print_stderr, reason = "shown with a test that has failed")]
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.running.server.log());
        }
    }
}
