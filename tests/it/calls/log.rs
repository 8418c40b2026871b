//! What the log says of calls.

use super::{Cache, raw, soon, tokens};
use kvway::clients::throttle::Throttle;
use mocks::ControllerOptions;
use parking_lot::Mutex;
use std::io::Write;
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use tokio::time::Instant;

/// Keeps what is written.
#[derive(Clone, Default)]
pub(crate) struct Paper(Arc<Mutex<Vec<u8>>>);

impl Write for Paper {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A second listener that hears everything and keeps nothing. With one alone, a line whose place in the code is first
/// passed by a test that does not listen counts as one that nobody wants, for all.
static NOBODY: LazyLock<tracing::Dispatch> = LazyLock::new(|| {
    let log = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE);
    log.with_writer(std::io::sink).finish().into()
});

impl Paper {
    pub(crate) fn listen(&self) -> tracing::subscriber::DefaultGuard {
        LazyLock::force(&NOBODY);
        let paper = self.clone();
        let log = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_ansi(false);
        tracing::subscriber::set_default(log.with_writer(move || paper.clone()).finish())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().clone()).unwrap()
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.text().lines().filter(|line| line.contains("[kvcache]")).map(str::to_owned).collect()
    }
}

#[test]
fn one_line_of_each_kind_is_let_through_per_period() {
    let (throttle, start) = (Throttle::new(Duration::from_secs(5)), Instant::now());
    let at = |name, seconds| throttle.admit(name, start + Duration::from_secs(seconds));
    assert_eq!(at("lookup", 0), Some(0));
    assert_eq!([at("lookup", 1), at("lookup", 4)], [None, None]);
    assert_eq!(at("pin", 4), Some(0), "another kind");
    assert_eq!(at("lookup", 5), Some(2));
    assert_eq!(at("lookup", 9), None);
    assert_eq!(at("lookup", 20), Some(1));
    assert_eq!(at("lookup", 30), Some(0));
}

#[tokio::test]
async fn a_lookup_is_told_at_debug_and_failures_at_warn_once_in_a_while() {
    let paper = Paper::default();
    let _listening = paper.listen();
    let cache = Cache::new();
    cache.client.look_up("tiny", None, &tokens(9), soon()).await.unwrap();
    cache.server.fail_always_on("/lookup", raw(422, "no"));
    for _ in 0..5 {
        cache.client.look_up("tiny", None, &tokens(9), soon()).await.unwrap_err();
    }
    let lines = paper.lines();
    assert_eq!(lines.len(), 2, "{lines:#?}");
    assert!(lines[0].contains("DEBUG") && lines[0].contains("[kvcache] lookup"), "{}", lines[0]);
    assert!(lines[1].contains("WARN") && lines[1].contains("[kvcache] lookup: status 422"), "{}", lines[1]);
    assert!(lines[1].contains(r#"cluster="chat""#), "{}", lines[1]);
}

#[tokio::test]
async fn what_a_server_echoes_reaches_neither_log_nor_error() {
    let paper = Paper::default();
    let _listening = paper.listen();
    let echo = r#"{"detail":[{"loc":["body","SECRET"],"input":{"tokens":[731,732],"text":"SECRET"}}]}"#;
    let mut told = Vec::new();
    for status in [200, 404, 422, 500] {
        let cache = Cache::with(ControllerOptions::default(), |section| {
            let url = section.lmcache_endpoint.take().unwrap();
            section.lmcache_endpoint = Some(url.replace("//", "//user:SECRET@"));
        });
        cache.server.fail_always_on("/lookup", raw(status, echo));
        let error = cache.client.look_up("tiny", Some("SECRET"), &[731, 732], soon()).await.unwrap_err();
        told.push(format!("{error} {error:?}"));
    }
    told.extend(paper.lines());
    let told = told.join("\n");
    assert!(told.contains("[kvcache] lookup"), "{told}");
    assert!(!told.contains("SECRET") && !told.contains("731"), "{told}");
}

#[tokio::test]
async fn a_breaker_tells_when_it_opens_and_closes() {
    let paper = Paper::default();
    let _listening = paper.listen();
    let (breaker, now) = (super::breaker_of(&kvway::config::CircuitBreaker::default()), Instant::now());
    for _ in 0..5 {
        breaker.admit(now).unwrap().failure(now);
    }
    let then = now + Duration::from_secs(10);
    breaker.admit(then).unwrap().success(then);
    let lines = paper.lines();
    let levels: Vec<&str> = lines.iter().map(|line| line.split_whitespace().nth(1).unwrap()).collect();
    assert_eq!(levels, ["WARN", "DEBUG", "INFO"], "{lines:#?}");
    assert!(lines.iter().all(|line| line.contains(r#"cluster="chat" breaker="lmcache""#)), "{lines:#?}");
}
