//! The official Python client of the OpenAI API against a running gateway: `tests/python/openai_client.py` asks and
//! judges the answers; here is what the engines must have seen.

use crate::client::{CHAT, engine_with};
use crate::gateway::{Gateway, Plan, soon};
use mocks::{Engine, EngineOptions, Fault};
use std::path::{Path, PathBuf};
use std::process::Command;

const SCRIPT: &str = "tests/python/openai_client.py";
const RETRIED: &str = "/v1/responses";

/// A cluster whose only backend is not there.
const PLAN: Plan = Plan {
    server: "",
    sections: "routes: [{path: /, model: absent, cluster: absent}, {path: /, model: \"*\", cluster: llama}]",
    clusters: "  - {name: absent, backends: [{id: absent-0, address: \"127.0.0.1:9\"}], health: {failures: 1}}",
    files_max: None,
};

/// An interpreter that has the package.
fn interpreter() -> PathBuf {
    #[expect(clippy::disallowed_methods, reason = "tells where the test's own tool is")]
    let own = std::env::var_os("KVWAY_PYTHON").map(PathBuf::from);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let interpreter = own.unwrap_or_else(|| root.join(".venv-openai/bin/python"));
    assert!(
        interpreter.exists(),
        "{} is missing: `make test` prepares it, or KVWAY_PYTHON names a Python with tests/python/requirements.txt",
        interpreter.display()
    );
    interpreter
}

#[tokio::test(flavor = "multi_thread")]
async fn the_official_python_client_gets_what_it_expects() {
    let options = EngineOptions { faults_by_header: true, ..EngineOptions::default() };
    let engines = [engine_with("vllm-0", options.clone()), engine_with("vllm-1", options)];
    let gateway = Gateway::start(&[&engines[0], &engines[1]], PLAN).await;
    let busy = Fault::Status { code: 429, retry_after: Some(1) };
    engines[0].fail_next_on(RETRIED, 1, busy);

    let mut command = Command::new(interpreter());
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join(SCRIPT)).arg(gateway.url("/v1"));
    let output = tokio::task::spawn_blocking(move || command.output().unwrap());
    let output = output.await.unwrap();
    let (said, complained) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}{complained}");
    println!("{said}");

    let sum = |count: fn(&Engine) -> u64| engines.iter().map(count).sum::<u64>();
    assert_eq!(sum(|engine| engine.stats().path(RETRIED).failed), 1, "one refusal");
    assert_eq!(sum(|engine| engine.stats().served(RETRIED)), 2, "made good by the client");
    let cancelled = async {
        tokio::select! {
            () = engines[0].until(|stats| stats.cancelled(CHAT) == 1) => {}
            () = engines[1].until(|stats| stats.cancelled(CHAT) == 1) => {}
        }
    };
    soon("the engine to learn that the client gave up", cancelled).await;
    let tenant = engines
        .iter()
        .flat_map(|engine| engine.received())
        .find_map(|request| request.header("x-tenant").map(str::to_owned));
    assert_eq!(tenant.as_deref(), Some("blue"), "extra headers arrive");
}
