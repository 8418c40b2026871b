//! The two binaries as an operator starts them.

use std::net::SocketAddr;
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::client::{post, send};

/// Starts a mock on a free port and reads where it listens.
async fn start(program: &str, flags: &[&str]) -> (Child, SocketAddr) {
    let mut child = Command::new(program)
        .args(["--listen", "127.0.0.1:0"])
        .args(flags)
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).await.unwrap();
    let address = line.trim_end().rsplit_once(' ').unwrap().1.parse().expect(&line);
    (child, address)
}

#[tokio::test]
async fn an_engine_without_a_tokenizer_tells_who_answered_and_what_it_was_asked() {
    let flags = ["--id", "vllm-7", "--model", "mock-model", "--served-by", "--no-tokenize"];
    let (_engine, address) = start(env!("CARGO_BIN_EXE_mock-vllm"), &flags).await;
    let chat = r#"{"model":"mock-model","messages":[{"role":"user","content":"hello"}]}"#;
    let reply = post(address, "/v1/chat/completions", chat).await;
    assert_eq!((reply.header("x-served-by"), &reply.json()["served_by"]), (Some("vllm-7"), &json!("vllm-7")));
    assert_eq!(post(address, "/tokenize", r#"{"prompt":"a"}"#).await.status(), 404);
    let stats = send(address, "GET", "/stats", &[], "").await.json();
    let counts =
        ["engine_id", "chat_calls", "completion_calls", "tokenize_calls"].map(|name| stats[name].clone());
    assert_eq!(counts, [json!("vllm-7"), json!(1), json!(0), json!(1)]);
}

#[tokio::test]
async fn a_controller_has_what_its_flags_say() {
    let flags = ["--prefer", "vllm-1", "--object-shape", "--evict", "--health-by-get"];
    let (_controller, address) = start(env!("CARGO_BIN_EXE_mock-lmcache"), &flags).await;
    assert_eq!(send(address, "GET", "/health", &[], "").await.status(), 200);
    let reply = post(address, "/lookup", r#"{"tokens":[1,2,3]}"#).await.json();
    assert_eq!(reply["layout_info"], json!({"vllm-1": {"0": "LocalCPUBackend", "1": 3}}));
    let evicted = post(address, "/evict", r#"{"tokens":[1,2,3],"instance_id":"vllm-1"}"#).await;
    assert_eq!(evicted.json()["num_tokens"], 3);
}

#[tokio::test]
async fn a_coordinator_is_a_flag_away() {
    let flags = ["--coordinator", "--prefer", "vllm-1"];
    let (_coordinator, address) = start(env!("CARGO_BIN_EXE_mock-lmcache"), &flags).await;
    assert_eq!(send(address, "GET", "/healthz", &[], "").await.json()["status"], "healthy");
    assert_eq!(post(address, "/lookup", r#"{"tokens":[1]}"#).await.status(), 404);
    let stats: Value = send(address, "GET", "/stats", &[], "").await.json();
    assert_eq!(stats["preferred_endpoint"], "vllm-1");
}
