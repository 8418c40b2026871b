//! `kvway doctor` as an operator runs it.

use crate::gateway::{free_address, kvway, soon};
use mocks::{Controller, ControllerOptions, Engine, EngineOptions, Mode, SimulatedOptions};
use std::net::SocketAddr;
use std::process::Output;

/// What the doctor says of one engine and its LMCache, and how it ends.
async fn examine(engine: &Engine, lmcache: SocketAddr) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("kvway.yaml");
    let engine = engine.address();
    let text = format!(
        "clusters:\n  - name: llama\n    policy: lmcache_only\n    \
         kvcache: {{enabled: true, vllm_endpoint: \"http://{engine}\", lmcache_endpoint: \"http://{lmcache}\", \
         token_cache: {{enabled: true}}}}\n    \
         backends: [{{id: vllm-0, address: \"{engine}\", api_key: \"open-sesame\"}}]\n"
    );
    std::fs::write(&file, text).unwrap();
    let mut doctor = kvway();
    doctor.args(["doctor", "--patience", "0", "-c"]).arg(file);
    soon("the doctor", tokio::task::spawn_blocking(move || doctor.output().unwrap())).await.unwrap()
}

#[tokio::test]
async fn the_exit_code_tells_whether_all_is_well_and_no_line_tells_a_secret() {
    let controller = Controller::start(ControllerOptions::default()).unwrap();
    let simulated = SimulatedOptions {
        time_scale: 0.01,
        announce: Some(controller.chunks()),
        ..SimulatedOptions::default()
    };
    let engine = Engine::start(EngineOptions {
        mode: Mode::Simulated(simulated),
        cached_tokens: true,
        api_key: Some("open-sesame".to_owned()),
        ..EngineOptions::default()
    })
    .unwrap();
    for (lmcache, code, broken, last) in [
        (controller.address(), 0, 0, "All 7 checks are well."),
        (free_address(), 1, 1, "1 of 6 checks broken; what rests on them was not checked."),
    ] {
        let output = examine(&engine, lmcache).await;
        let said = String::from_utf8_lossy(&output.stdout);
        let complaints = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{said}{complaints}");
        assert_eq!(
            said.lines().filter(|line| line.starts_with("BROKEN  llama lmcache")).count(),
            broken,
            "{said}"
        );
        assert_eq!(said.lines().last(), Some(last), "{said}");
        assert!(!said.contains('\u{1b}'), "colours where there is no terminal: {said:?}");
        assert!(!said.contains("sesame") && complaints.is_empty(), "{said}{complaints}");
    }
}
