//! `kvway-bench run` as a process, before mock engines of the same build and before targets that misbehave: facts, no times.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails, and says where")]

use std::collections::{HashMap, HashSet};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

/// An engine as a process; gone when it is dropped.
struct Engine {
    child: Child,
    address: String,
}

impl Engine {
    fn start(flags: &[&str]) -> Self {
        let program = Path::new(env!("CARGO_BIN_EXE_kvway-bench")).with_file_name("mock-vllm");
        let mut command = Command::new(program);
        command.args(["--listen", "127.0.0.1:0", "--id", "a", "--served-by", "--cached-tokens"]).args(flags);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().rsplit(' ').next().unwrap().to_owned();
        Self { child, address }
    }

    /// One that simulates a KV cache and takes next to no time.
    fn simulated() -> Self {
        Self::start(&["--mode", "simulated", "--time-scale", "0.01"])
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

/// What a target of our own was sent.
struct Asked {
    head: String,
    body: Value,
}

/// Serves on threads of its own, each request with what `answer` makes of its number; the first is the one that tries the
/// target out.
fn serve(answer: impl Fn(usize) -> String + Send + Sync + 'static) -> (SocketAddr, Receiver<Asked>) {
    serve_over(answer, Ok)
}

/// The same, on whatever is made of a connection.
fn serve_over<S: Read + Write + 'static>(
    answer: impl Fn(usize) -> String + Send + Sync + 'static,
    over: impl Fn(TcpStream) -> io::Result<S> + Send + Sync + 'static,
) -> (SocketAddr, Receiver<Asked>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (asked, all) = sync_channel(10_000);
    let (answer, over, count) = (Arc::new(answer), Arc::new(over), Arc::new(AtomicUsize::new(0)));
    std::thread::spawn(move || {
        for socket in listener.incoming().map_while(Result::ok) {
            let (asked, answer, over, count) =
                (asked.clone(), Arc::clone(&answer), Arc::clone(&over), Arc::clone(&count));
            std::thread::spawn(move || converse(over(socket).ok()?, &asked, &*answer, &count));
        }
    });
    (address, all)
}

/// Answers one connection until either side is gone.
fn converse(
    socket: impl Read + Write,
    asked: &SyncSender<Asked>,
    answer: &(impl Fn(usize) -> String + ?Sized),
    count: &AtomicUsize,
) -> Option<()> {
    let mut socket = BufReader::new(socket);
    loop {
        let (mut head, mut length) = (String::new(), 0);
        while !head.ends_with("\r\n\r\n") {
            if socket.read_line(&mut head).ok()? == 0 {
                return None;
            }
            if let Some(value) = head.lines().last().and_then(|line| line.strip_prefix("content-length: ")) {
                length = value.parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        socket.read_exact(&mut body).ok()?;
        let number = count.fetch_add(1, Ordering::Relaxed);
        asked.send(Asked { head, body: serde_json::from_slice(&body).unwrap() }).ok()?;
        socket.get_mut().write_all(answer(number).as_bytes()).ok()?;
    }
}

fn whole(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\n\r\n{body}", body.len())
}

fn good() -> String {
    let usage =
        r#""usage":{"prompt_tokens":10,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":4}}"#;
    whole("200 OK", "x-served-by: b\r\n", &format!(r#"{{"choices":[{{"text":"x"}}],{usage}}}"#))
}

/// One run: what it shows, on which exit code, and what it keeps.
struct Run {
    output: Output,
    kept: Option<Value>,
}

impl Run {
    fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.output.stdout).into_owned()
    }

    fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }

    fn kept(&self) -> &Value {
        self.kept.as_ref().unwrap_or_else(|| panic!("nothing is kept: {}", self.stderr()))
    }

    /// What it keeps, of a run in which all went well.
    fn good(&self) -> &Value {
        assert!(self.output.status.success(), "{}{}", self.stdout(), self.stderr());
        let kept = self.kept();
        assert_eq!((&kept["errors"], &kept["first_error"]), (&json!({}), &Value::Null));
        kept
    }
}

fn generator(folder: &TempDir, target: impl std::fmt::Display, flags: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvway-bench"));
    command
        .args(["run", "--target", &format!("http://{target}"), "--json"])
        .arg(folder.path().join("kept.json"));
    command.args(flags.split_whitespace()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn finish(folder: &TempDir, child: Child) -> Run {
    let output = child.wait_with_output().unwrap();
    let kept = std::fs::read(folder.path().join("kept.json")).ok();
    Run { output, kept: kept.map(|text| serde_json::from_slice(&text).unwrap()) }
}

fn run(target: impl std::fmt::Display, flags: &str) -> Run {
    let folder = tempfile::tempdir().unwrap();
    let child = generator(&folder, target, flags).spawn().unwrap();
    finish(&folder, child)
}

fn count(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no count"))
}

fn mean(distribution: &Value) -> f64 {
    distribution["mean_us"].as_f64().unwrap_or_else(|| panic!("{distribution} is no distribution"))
}

/// A trace of prompts that share their first block, and of which the first and the last are the same.
fn trace(folder: &TempDir) -> String {
    let line = |at: u32, ids: &str| {
        format!(
            "{{\"timestamp\": {at}, \"input_length\": 1536, \"output_length\": 3, \"hash_ids\": {ids}}}\n"
        )
    };
    let text =
        [line(0, "[1, 2, 3]"), line(2000, "[1, 2, 4]"), line(4000, "[1, 5, 6]"), line(6000, "[1, 2, 3]")];
    let file = folder.path().join("trace.jsonl");
    std::fs::write(&file, text.concat()).unwrap();
    file.display().to_string()
}

#[test]
fn a_closed_loop_sends_as_many_requests_as_are_wanted_and_fills_the_result() {
    let engine = Engine::simulated();
    let flags = "--requests 40 --connections 4 --body-bytes 2KiB --stream --label one --revision r1";
    let run = run(&engine.address, flags);
    let kept = run.good();
    assert_eq!(
        (count(&kept["requests"]), count(&kept["shed"]), &kept["interrupted"]),
        (40, 0, &json!(false))
    );
    assert_eq!(
        (&kept["label"], &kept["revision"], &kept["format"]),
        (&json!("one"), &json!("r1"), &json!(1))
    );
    assert_eq!((&kept["lag"], &kept["cpu"]), (&Value::Null, &Value::Null));
    assert_eq!((count(&kept["latency"]["count"]), count(&kept["ttft"]["count"])), (40, 40));
    // A stream: a role, 64 tokens, the usage and the end.
    assert_eq!((count(&kept["events"]), count(&kept["gap"]["count"])), (40 * 67, 40 * 66));
    let tokens = &kept["tokens"];
    assert_eq!(
        (count(&tokens["completion"]), count(&tokens["cached"])),
        (40 * 64, 0),
        "no prompt is sent twice"
    );
    assert_eq!(count(&kept["backends"]["a"]["requests"]), 40);
    let seconds = kept["series"].as_array().unwrap();
    for (field, all) in [("sent", 40), ("answered", 40), ("failed", 0)] {
        assert_eq!(seconds.iter().map(|second| count(&second[field])).sum::<u64>(), all, "{field}");
    }
    for (flag, value) in
        [("connections", "4"), ("body-bytes", "2048"), ("requests", "40"), ("stream", "true")]
    {
        assert_eq!(kept["configuration"][flag], value);
    }
    assert!(
        kept["started"].as_str().unwrap().ends_with('Z') && kept["machine"]["cores"].as_u64().unwrap() > 0
    );
    assert!(run.stdout().starts_with("one: 40 requests"), "{}", run.stdout());
}

#[test]
fn equal_ids_of_a_trace_are_equal_prompts_and_are_found_in_the_cache() {
    let folder = tempfile::tempdir().unwrap();
    let flags = format!("--trace {} --speed 100 --in-flight 1 --endpoint completions", trace(&folder));
    let engine = Engine::simulated();
    let kept = run(&engine.address, &format!("{flags} --stream"));
    let kept = kept.good();
    // The engine puts a token of its own before each.
    assert_eq!((count(&kept["requests"]), count(&kept["tokens"]["prompt"])), (4, 4 * 1537));
    assert_eq!(count(&kept["tokens"]["completion"]), 4 * 3);
    // The prompts after the first find 1024, 512 and nearly 1536 tokens: an engine computes the last block of a prompt.
    let cached = count(&kept["tokens"]["cached"]);
    assert!((512 + 1024 + 1500..=512 + 1024 + 1536).contains(&cached), "{cached}");
    assert!(kept["tokens"]["hit_ratio"].as_f64().unwrap() > 0.4);
    assert_eq!(count(&kept["lag"]["count"]), 4);

    let (address, asked) = serve(|_| good());
    run(address, &flags).good();
    let asked: Vec<Asked> = asked.try_iter().collect();
    let prompts: Vec<&str> = asked[1..].iter().map(|asked| asked.body["prompt"].as_str().unwrap()).collect();
    let block = |prompt: usize, block: usize| &prompts[prompt].as_bytes()[block * 2048..(block + 1) * 2048];
    assert_eq!((prompts.len(), prompts[0], prompts[0].len()), (4, prompts[3], 3 * 2048));
    assert!((1..4).all(|prompt| block(prompt, 0) == block(0, 0)));
    assert_eq!((block(0, 1), block(0, 1) == block(2, 1)), (block(1, 1), false));
    assert_ne!(block(0, 2), block(1, 2));
    assert!(asked[1..].iter().all(|asked| asked.body["max_tokens"] == 3));
}

#[test]
fn a_trace_is_limited_and_a_broken_one_is_told_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = trace(&folder);
    let engine = Engine::simulated();
    let limited = run(&engine.address, &format!("--trace {file} --speed 100 --limit 2"));
    assert_eq!(count(&limited.good()["requests"]), 2);
    std::fs::write(&file, std::fs::read_to_string(&file).unwrap().replacen("1536", "x", 2)).unwrap();
    let broken = run(&engine.address, &format!("--trace {file}"));
    assert_eq!((broken.output.status.code(), broken.stdout()), (Some(1), String::new()));
    assert_eq!(broken.stderr(), format!("kvway-bench: {file}:1: not JSON, from column 34 on\n"));
}

#[test]
fn conversations_and_agents_find_what_they_said_before_in_the_cache() {
    let engine = Engine::simulated();
    let turns = "--turns 3 --question-tokens 40 --answer-tokens 4 --think-time 1ms..20ms --rate 20 --requests 60 --stream";
    for (workload, system) in
        [("multi-turn --first-question-tokens 100", 64), ("agents --result-tokens 50", 500)]
    {
        let run = run(&engine.address, &format!("--workload {workload} --system-tokens {system} {turns}"));
        let kept = run.good();
        assert_eq!(count(&kept["requests"]), 60, "{workload}");
        assert!(kept["tokens"]["hit_ratio"].as_f64().unwrap() > 0.3, "{workload}: {}", kept["tokens"]);
    }
}

#[test]
fn an_agent_sends_tools_and_answers_its_own_calls() {
    let (address, asked) = serve(|_| whole("200 OK", "", r#"{"choices":[{"message":{"content":"hm"}}]}"#));
    run(address, "--workload agents --turns 3 --think-time 1ms --rate 50 --requests 30").good();
    let asked: Vec<Value> = asked.try_iter().skip(1).map(|asked| asked.body).collect();
    assert_eq!(asked.len(), 30);
    let mut steps = HashSet::new();
    for body in &asked {
        assert_eq!((body["tools"].as_array().unwrap().len(), &body["tool_choice"]), (8, &json!("none")));
        let messages = body["messages"].as_array().unwrap();
        let roles: Vec<&str> = messages.iter().map(|message| message["role"].as_str().unwrap()).collect();
        assert_eq!(roles[..2], ["system", "user"]);
        for step in messages[2..].chunks(2) {
            assert_eq!((&step[0]["role"], &step[1]["role"]), (&json!("assistant"), &json!("tool")));
            assert_eq!(step[0]["tool_calls"][0]["id"], step[1]["tool_call_id"]);
        }
        steps.insert(roles.len());
    }
    assert_eq!(steps, HashSet::from([2, 4, 6]));
}

#[test]
fn in_an_open_loop_times_count_from_when_a_request_was_due_and_a_generator_that_is_behind_says_so() {
    // All are due at once, one may be under way: the others wait here, and each waits for all before it.
    let (address, _asked) = serve(|_| good());
    let run = run(address, "--rate 1000000 --requests 2000 --in-flight 1 --body-bytes 1KiB");
    let kept = run.good();
    assert_eq!((count(&kept["requests"]), count(&kept["lag"]["count"])), (2000, 2000));
    assert!(mean(&kept["latency"]) >= mean(&kept["lag"]), "{kept}");
    let behind = kept["behind"].as_str().unwrap();
    assert!(
        behind.contains("% of the requests were sent over 20 ms late")
            && behind.contains("raise --in-flight"),
        "{behind}"
    );
    assert!(
        run.stderr().contains(&format!("warning: the generator fell behind: {behind}")),
        "{}",
        run.stderr()
    );
    assert!(run.stdout().contains("tell of the generator, not of the target"), "{}", run.stdout());
}

#[test]
fn an_interrupt_keeps_what_was_measured() {
    for flags in ["--duration 1h", "--duration 1h --rate 100"] {
        let folder = tempfile::tempdir().unwrap();
        let (address, asked) = serve(|_| good());
        let child = generator(&folder, address, flags).spawn().unwrap();
        // Of those that came, all but one for each connection were answered.
        asked.iter().take(60).count();
        kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).unwrap();
        let run = finish(&folder, child);
        let kept = run.good();
        assert_eq!(kept["interrupted"], true);
        assert!(count(&kept["requests"]) > 0 && count(&kept["latency"]["count"]) > 0, "{flags}: {kept}");
        assert!(run.stdout().contains("interrupted: this is what was measured until then"));
    }
}

#[test]
fn a_target_that_is_not_there_is_one_line_and_a_failure() {
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for flags in ["", "--rate 5"] {
        let run = run(gone, flags);
        assert_eq!((run.output.status.code(), run.stdout()), (Some(1), String::new()));
        let (said, lines) = (run.stderr(), run.stderr().lines().count());
        assert!(lines == 1 && said.starts_with("kvway-bench: ") && said.contains("cannot connect"), "{said}");
        assert!(run.kept.is_none());
    }
}

#[test]
fn a_target_that_answers_only_errors_is_a_failure_with_the_first_of_them() {
    let refusal = r#"{"error":{"message":"The model `tiny` does not exist."}}"#;
    let (address, _asked) = serve(move |_| whole("404 Not Found", "", refusal));
    let refused = run(address, "");
    assert_eq!((refused.output.status.code(), refused.stdout()), (Some(1), String::new()));
    assert!(refused.stderr().contains("does not serve: status 404: The model `tiny` does not exist."));
    assert_eq!(refused.stderr().lines().count(), 1, "{}", refused.stderr());

    // Only what comes after the first request.
    let (address, _asked) = serve(|number| if number == 0 { good() } else { whole("500 No", "", "{}") });
    let failed = run(address, "--requests 10 --connections 2");
    assert_eq!(failed.output.status.code(), Some(1));
    assert_eq!(
        (count(&failed.kept()["requests"]), &failed.kept()["errors"]),
        (0, &json!({"status 500": 10}))
    );
    assert!(failed.stderr().contains("no request to") && failed.stderr().contains("succeeded: status 500"));

    // Nobody waits for an hour of them.
    let (address, _asked) = serve(|number| if number == 0 { good() } else { whole("500 No", "", "{}") });
    let hopeless = run(address, "--duration 1h --connections 50");
    assert_eq!((hopeless.output.status.code(), &hopeless.kept()["interrupted"]), (Some(1), &json!(false)));
}

#[test]
fn what_is_shed_and_what_fails_is_counted_apart_and_ends_nothing() {
    let (address, _asked) = serve(|number| match number % 4 {
        1 => whole("429 Too Many Requests", "retry-after: 7\r\n", "{}"),
        2 => whole("503 Busy", "", "{}"),
        3 => whole("500 No", "", "{}"),
        _ => good(),
    });
    for flags in ["--requests 40 --connections 1", "--requests 40 --rate 1000 --in-flight 1"] {
        let run = run(address, flags);
        assert!(run.output.status.success(), "{}", run.stderr());
        let kept = run.kept();
        let requests = count(&kept["requests"]);
        assert_eq!((requests + count(&kept["shed"]) + count(&kept["errors"]["status 500"])), 40);
        assert!((9..=11).contains(&requests) && (19..=21).contains(&count(&kept["shed"])), "{flags}: {kept}");
        assert_eq!(
            (kept["errors"].as_object().unwrap().len(), &kept["first_error"]),
            (1, &json!("status 500"))
        );
        assert_eq!(count(&kept["latency"]["count"]), requests, "only good answers have times");
        let failed = kept["series"].as_array().unwrap().iter().map(|second| count(&second["failed"]));
        assert_eq!(failed.sum::<u64>(), 40 - requests);
        assert!(run.stdout().contains("retry-after up to 7 s, not heeded"), "{}", run.stdout());
    }
}

#[test]
fn a_target_that_turns_everything_away_is_a_failure() {
    let (address, _asked) = serve(|_| whole("429 Too Many Requests", "", "{}"));
    let run = run(address, "--requests 5");
    assert_eq!((run.output.status.code(), count(&run.kept()["shed"])), (Some(1), 5));
    assert!(run.stderr().contains("turned all requests away"), "{}", run.stderr());
}

#[test]
fn backends_are_told_apart_by_any_header_up_to_a_semicolon() {
    let (address, _asked) = serve(|number| {
        let backend = if number.is_multiple_of(3) { "e-1" } else { "e-0" };
        whole("200 OK", &format!("x-kvway-decision: {backend}; reason=least\r\n"), "{}")
    });
    let run = run(address, "--requests 30 --connections 1 --backend-header X-Kvway-Decision");
    let kept = run.good();
    let shares: HashMap<String, u64> = kept["backends"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, share)| (name.clone(), count(&share["requests"])))
        .collect();
    assert_eq!(shares, HashMap::from([("e-0".to_owned(), 20), ("e-1".to_owned(), 10)]));
    assert!((kept["imbalance"].as_f64().unwrap() - 4.0 / 3.0).abs() < 1e-9);
    assert_eq!(kept["tokens"], Value::Null, "nobody told");
    assert!(run.stdout().contains("| e-0 | 20 | 66.7 | 0.0 |"), "{}", run.stdout());
}

#[test]
fn credentials_are_sent_and_never_shown_or_kept() {
    let (address, asked) = serve(|number| if number == 2 { whole("401 No", "", "{}") } else { good() });
    let folder = tempfile::tempdir().unwrap();
    let mut command = generator(&folder, address, "--requests 5 --api-key-env BENCH_TEST_KEY");
    command.env("BENCH_TEST_KEY", "k3y-of-ours").args(["--header", "X-Tenant: t3nant-of-ours"]);
    let run = finish(&folder, command.spawn().unwrap());
    let asked: Vec<Asked> = asked.try_iter().collect();
    assert_eq!(asked.len(), 6);
    for Asked { head, .. } in asked {
        assert!(
            head.contains("authorization: Bearer k3y-of-ours\r\n")
                && head.contains("x-tenant: t3nant-of-ours\r\n")
        );
        assert_eq!(head.matches("authorization").count(), 1, "{head}");
    }
    let all = format!("{}{}{}", run.stdout(), run.stderr(), run.kept());
    assert!(!all.contains("of-ours") && all.contains("status 401"), "{all}");

    let (address, _asked) =
        serve(|_| whole("401 No", "", r#"{"error":{"message":"no such key: k3y-of-ours"}}"#));
    let mut command = generator(&folder, address, "--api-key-env BENCH_TEST_KEY");
    let refused = finish(&folder, command.env("BENCH_TEST_KEY", "k3y-of-ours").spawn().unwrap());
    assert!(refused.stderr().ends_with("does not serve: status 401\n"), "{}", refused.stderr());
}

#[test]
fn tls_is_spoken_with_a_target_whose_certificate_is_known() {
    let own = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(own.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config =
        config.unwrap().with_no_client_auth().with_single_cert(vec![own.cert.der().clone()], key.into());
    let config = Arc::new(config.unwrap());
    let (address, asked) = serve_over(
        |_| good(),
        move |socket| {
            let connection = rustls::ServerConnection::new(Arc::clone(&config)).map_err(io::Error::other)?;
            Ok(rustls::StreamOwned::new(connection, socket))
        },
    );
    let folder = tempfile::tempdir().unwrap();
    let roots = folder.path().join("roots.pem");
    std::fs::write(&roots, own.cert.pem()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvway-bench"));
    command.args([
        "run",
        "--target",
        &format!("https://localhost:{}", address.port()),
        "--requests",
        "20",
        "--json",
    ]);
    command.arg(folder.path().join("kept.json")).stdout(Stdio::piped()).stderr(Stdio::piped());
    let unknown = finish(&folder, command.env("SSL_CERT_FILE", "/nonexistent").spawn().unwrap());
    assert_eq!(
        (unknown.output.status.code(), unknown.stderr().lines().count()),
        (Some(1), 1),
        "{}",
        unknown.stderr()
    );
    let run = finish(&folder, command.env("SSL_CERT_FILE", &roots).spawn().unwrap());
    assert_eq!((count(&run.good()["requests"]), asked.try_iter().count()), (20, 21));
}
