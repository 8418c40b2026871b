//! Nothing that a client sends breaks out of its line of the access log.

use super::*;

/// Requests that try to break out of their line.
async fn nasty(world: &World) -> usize {
    let model = "m\n{\"status\":200}\r\u{1b}[31m\u{7f}\u{85}\u{9b}31m\u{2028} status=200 outcome=\"x";
    let body = json!({"model": model, "messages": []}).to_string();
    let targets = [
        "/v1/a%0a%0d%1b[31m",
        "/v1/a\"status\":200",
        "/v1/a?b%0a=%00",
        "/v1/\u{e9}\u{2028}",
        "/v1/=x status=200",
        "/v1/a\u{1b}[31m",
    ];
    let mut answered = 0;
    for target in targets {
        let head = format!(
            "POST {target} HTTP/1.1\r\nhost: x\r\nuser-agent: a\" status=1 \u{e9}\u{2028}\r\nx-request-id: a\" status=1\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let answer = raw(world, (head + &body).as_bytes()).await;
        answered += usize::from(answer.starts_with("HTTP/1.1 404"));
        assert!(!answer.contains('\u{1b}'), "{answer}");
    }
    answered
}

/// Asserts that `log` has `lines` lines, each without a control character of ASCII.
fn assert_harmless(log: &str, lines: usize) {
    assert!(log.ends_with('\n'));
    assert_eq!(log.matches('\n').count(), lines, "{log}");
    for line in log.split('\n') {
        assert_eq!(line.chars().find(|&char| char < ' '), None, "{line:?}");
    }
}

#[tokio::test]
async fn a_request_writes_exactly_one_line_of_json() {
    let world = world(1, "").await;
    let answered = nasty(&world).await;
    assert!(answered >= 3, "{answered}");
    let log = world.access_log_text().await;
    assert_harmless(&log, answered);
    for line in log.lines() {
        let entry: Value = serde_json::from_str(line).unwrap();
        assert_eq!(entry["status"], 404);
        assert!(entry["model"].as_str().unwrap().starts_with("m\n"), "{entry}");
    }
}

#[tokio::test]
async fn a_request_writes_exactly_one_line_of_text() {
    let world = World::with(Plan { access: "text", ..Plan::default() }).await;
    let answered = nasty(&world).await;
    let log = world.access_log_text().await;
    assert_harmless(&log, answered);
    for line in log.lines() {
        assert_eq!(line.matches(" status=404 ").count(), 1, "{line}");
        let model = line.split_once(" model=").unwrap().1;
        assert!(model.starts_with("\"m\\n"), "what is not plain stands in quotes: {line}");
    }
}
