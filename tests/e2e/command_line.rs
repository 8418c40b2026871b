//! What the command line answers, and with which exit code. Nothing here may bind an address but the gateways started.

use crate::client::engine;
use crate::gateway::{Gateway, Plan, free_address, free_addresses, kvway};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;
use tempfile::TempDir;
use tokio::time::Instant;

const USAGE: Option<i32> = Some(64);
const CONFIGURATION: Option<i32> = Some(78);
/// A refusal takes milliseconds; what waits for something takes longer than this.
const AT_ONCE: Duration = Duration::from_secs(1);

fn run(arguments: &[&str]) -> Output {
    kvway().args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// A configuration file, and the folder that it lives in.
fn file(content: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kvway.yaml");
    std::fs::write(&path, content).unwrap();
    (folder, path)
}

fn valid(address: SocketAddr, admin: SocketAddr) -> String {
    format!(
        "listeners: [{{address: \"{address}\"}}]\n\
         admin: {{address: \"{admin}\", token: \"open-sesame\"}}\n\
         clusters:\n  - name: llama\n    backends: [{{id: vllm-0, address: \"127.0.0.1:9\"}}]\n"
    )
}

/// An address that is taken for as long as the listener lives.
fn taken() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Runs `command`, which must be done at once.
fn at_once(command: &mut Command) -> Output {
    let start = Instant::now();
    let output = command.output().unwrap();
    assert!(start.elapsed() < AT_ONCE, "it took {:?}", start.elapsed());
    output
}

#[test]
fn version_names_the_program_and_its_version() {
    let output = run(&["--version"]);
    assert_eq!(output.status.code(), Some(0));
    let expected = format!("kvway {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(text(&output.stdout), expected);
}

#[test]
fn help_names_every_command_exit_code_and_signal() {
    let output = run(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    let help = text(&output.stdout);
    for part in [
        "run",
        "check",
        "gateway",
        "demo",
        "compare",
        "doctor",
        "replay",
        "healthcheck",
        "Configuration:",
        "KVWAY_CONFIG",
        "KVWAY_PIXIU",
        "64",
        "65",
        "78",
        "130",
        "SIGTERM",
        "SIGQUIT",
        "SIGINT",
    ] {
        assert!(help.contains(part), "{part} is missing: {help}");
    }
}

#[test]
fn the_help_of_every_command_groups_its_flags() {
    for (command, headings) in [
        ("run", &["Configuration:", "Upgrade:"] as &[_]),
        ("check", &["Configuration:"]),
        ("demo", &["Listeners:", "Behaviour:"]),
        ("compare", &["Configuration:", "Target:", "Load:", "Output:"]),
        ("doctor", &["Configuration:", "Probe:"]),
        ("replay", &["Trace:", "Fleet:", "Load:", "Output:"]),
        ("healthcheck", &["Target:"]),
        ("gateway start", &["Configuration:", "Without effect:"]),
    ] {
        let words: Vec<_> = command.split(' ').chain(["--help"]).collect();
        let output = run(&words);
        assert_eq!(output.status.code(), Some(0), "{command}");
        for heading in headings {
            let help = text(&output.stdout);
            assert!(help.contains(heading), "{command}: {heading} is missing: {help}");
        }
    }
}

#[test]
fn a_command_line_that_makes_no_sense_is_a_mistake_of_usage() {
    for (arguments, said) in [
        (&["--no-such-flag"] as &[_], "--no-such-flag"),
        (&["run", "--no-such-flag"], "--no-such-flag"),
        (&["no-such-command"], "no-such-command"),
        (&["healthcheck", "--admin", "not an address"], "not an address"),
        (&["run", "-c"], "-c"),
        (&[], "--help"),
        (&["run"], "KVWAY_CONFIG"),
        (&["check"], "KVWAY_CONFIG"),
        (&["compare"], "KVWAY_CONFIG"),
        (&["compare", "--requests", "0"], "1 to 100000"),
        (&["compare", "--demo", "--url", "http://a"], "--url"),
        (&["doctor"], "KVWAY_CONFIG"),
        (&["replay"], "--trace"),
        (&["run", "--test"], "KVWAY_CONFIG"),
        (&["-t"], "--config"),
        (&["run", "-c", "a", "--pixiu", "b"], "two configuration files"),
        (&["gateway"], "start"),
        (&["gateway", "start"], "--pixiu"),
    ] {
        let output = run(arguments);
        let complaint = text(&output.stderr);
        assert_eq!(output.status.code(), USAGE, "{arguments:?}: {complaint}");
        assert!(complaint.contains(said), "{arguments:?}: {complaint}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_refused_and_named() {
    let folder = tempfile::tempdir().unwrap();
    for path in [folder.path().join("absent.yaml"), folder.path().to_owned()] {
        for command in ["run", "check"] {
            let output = at_once(kvway().arg(command).arg("-c").arg(&path));
            let complaint = text(&output.stderr);
            assert_eq!(output.status.code(), CONFIGURATION, "{complaint}");
            assert_eq!(complaint.lines().count(), 1, "{complaint}");
            assert!(complaint.contains(&*path.to_string_lossy()), "{complaint}");
        }
    }
}

#[test]
fn a_broken_configuration_is_refused_in_one_line_before_anything_is_bound() {
    // The address is taken: whoever tried to bind it would complain about that instead.
    let (_listener, address) = taken();
    let broken = valid(address, address).replace("admin:", "limits: {headers_max: 0}\nadmin:");
    let (_folder, path) = file(&broken.replace("\"open-sesame\"", "null"));
    for command in ["run", "check"] {
        let output = at_once(kvway().arg(command).arg("-c").arg(&path));
        let complaint = text(&output.stderr);
        assert_eq!(output.status.code(), CONFIGURATION, "{complaint}");
        let place = format!("kvway: {}:2: limits.headers_max: ", path.display());
        assert!(complaint.starts_with(&place), "{complaint}");
        assert_eq!(complaint.lines().count(), 1, "{complaint}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn every_way_to_check_prints_what_is_in_effect_and_binds_nothing() {
    let (_listeners, [address, admin]) = {
        let ((one, address), (other, admin)) = (taken(), taken());
        ([one, other], [address, admin])
    };
    let (_folder, path) = file(&valid(address, admin));
    let path = path.to_str().unwrap();
    for arguments in [
        &["check", "-c", path] as &[_],
        &["-c", path, "check"],
        &["-t", "-c", path],
        &["run", "-t", "-c", path],
        &["run", "--test", "--config", path],
        &["-t", "-c", path, "run"],
    ] {
        let output = run(arguments);
        let complaint = text(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {complaint}");
        assert!(complaint.contains("valid"), "{arguments:?}: {complaint}");
        let effective = text(&output.stdout);
        assert!(effective.contains("grace_period: 10m"), "defaults are shown: {effective}");
        assert!(effective.contains("token: '***'") || effective.contains("token: \"***\""), "{effective}");
        assert!(!effective.contains("open-sesame"), "{effective}");
    }
}

#[test]
fn what_check_prints_is_a_configuration_again() {
    let [listener, admin] = free_addresses();
    let (_folder, path) = file(&valid(listener, admin));
    let first = kvway().arg("check").arg("-c").arg(&path).output().unwrap();
    let (_folder, printed) = file(text(&first.stdout));
    let again = kvway().arg("check").arg("-c").arg(&printed).output().unwrap();
    assert_eq!(again.status.code(), Some(0), "{}", text(&again.stderr));
    assert_eq!(text(&again.stdout), text(&first.stdout));
}

#[test]
fn a_certificate_that_cannot_be_used_is_refused_with_its_key() {
    let [listener, admin] = free_addresses();
    let content = valid(listener, admin);
    let content =
        content.replace("\"}]\nadmin", "\", tls: {certificate: /absent.pem, key: /absent.pem}}]\nadmin");
    let (_folder, path) = file(&content);
    let output = kvway().arg("run").arg("-c").arg(&path).output().unwrap();
    let complaint = text(&output.stderr);
    assert_eq!(output.status.code(), CONFIGURATION, "{complaint}");
    assert!(complaint.contains("tls") && complaint.contains("/absent.pem"), "{complaint}");
    assert!(!complaint.contains("panicked"), "{complaint}");
}

#[test]
fn environment_variables_stand_for_flags() {
    let [listener, admin] = free_addresses();
    let (_folder, path) = file(&valid(listener, admin));
    let output = kvway().arg("check").env("KVWAY_CONFIG", &path).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let output = kvway().arg("run").env("KVWAY_CONFIG", &path).env("KVWAY_TEST", "true").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(!output.stdout.is_empty());
    let output = kvway().arg("healthcheck").env("KVWAY_ADMIN", free_address().to_string()).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
}

#[test]
fn a_taken_address_is_refused_with_its_key() {
    let ((_listener, busy), free) = (taken(), free_address());
    for (content, key) in [(valid(busy, free), "listeners.address"), (valid(free, busy), "admin.address")] {
        let (folder, path) = file(&content);
        let socket = folder.path().join("upgrade.sock");
        std::fs::write(&path, format!("server: {{upgrade_socket: {}}}\n{content}", socket.display()))
            .unwrap();
        let output = at_once(kvway().arg("run").arg("-c").arg(&path));
        let complaint = text(&output.stderr);
        assert_eq!(output.status.code(), CONFIGURATION, "{complaint}");
        assert!(complaint.contains(&format!("{key}: {busy}: ")), "{complaint}");
        assert_eq!(complaint.matches("in use").count(), 1, "{complaint}");
        assert!(!complaint.contains("panicked"), "{complaint}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_health_check_tells_a_ready_gateway_from_one_that_drains_and_none() {
    let ask = async |admin: SocketAddr| {
        let mut command = kvway();
        command.args(["healthcheck", "--admin", &admin.to_string()]);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        assert!(!text(&output.stderr).contains("panicked"), "{output:?}");
        output.status.code()
    };
    let engine = engine("vllm-0");
    let plan = Plan { server: "close_delay: 10m", ..Plan::default() };
    let mut gateway = Gateway::start(&[&engine], plan).await;
    assert_eq!(ask(gateway.admin).await, Some(0));
    gateway.signal(nix::sys::signal::Signal::SIGTERM);
    gateway.says("SIGTERM").await;
    assert_eq!(ask(gateway.admin).await, Some(1));
    gateway.signal(nix::sys::signal::Signal::SIGTERM);
    gateway.exit().await;
    assert_eq!(ask(gateway.admin).await, Some(1));
}
