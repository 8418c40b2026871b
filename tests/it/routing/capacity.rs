//! How much the engines' caches hold, and when they were emptied, as the engines say.

use super::*;
use crate::world::reserve;
use kvway::background::capacity::CapacityService;
use kvway::config::CAPACITY_TOKENS;
use kvway::state::fleet::Absence;
use mocks::{Engine, Fault, SleepState};
use pingora::services::background::BackgroundService;
use std::time::Duration;
use tokio::sync::watch;

const METRICS: &str = "/metrics";
const PERIOD: Duration = Duration::from_secs(30);

/// An engine whose cache holds so many tokens.
fn holding(capacity_tokens: usize) -> EngineOptions {
    let simulated = SimulatedOptions { capacity_tokens, time_scale: 1e-6, ..SimulatedOptions::default() };
    EngineOptions { mode: Mode::Simulated(simulated), ..engine() }
}

/// A gateway and the service, whose time is the test's.
struct Reading {
    world: World,
    service: CapacityService,
    now: Instant,
}

impl Reading {
    async fn of(engines: Vec<EngineOptions>, backend: &str) -> Self {
        let plan = Plan {
            engines,
            cluster: "policy: pmc".to_owned(),
            backend: backend.to_owned(),
            ..Plan::default()
        };
        Self::with(World::with(plan).await)
    }

    fn with(world: World) -> Self {
        let service = world.app.capacity_services().remove(0);
        Self { world, service, now: Instant::now() }
    }

    /// Reads after so much time.
    async fn after(&mut self, time: Duration) {
        self.now += time;
        self.service.tick(&self.world.client, self.now).await;
    }

    fn capacity(&self, at: usize) -> usize {
        cluster(&self.world).blocks.capacity(at)
    }

    fn polls(&self, outcome: &str) -> f64 {
        self.world.metric(&format!(r#"kvway_capacity_polls_total{{cluster="llama",outcome="{outcome}"}}"#))
    }

    fn cleared(&self, cause: &str) -> f64 {
        self.world.metric(&format!(r#"kvway_shadow_cleared_total{{cause="{cause}",cluster="llama"}}"#))
    }

    /// What `vllm-0` shows from now on.
    fn show(&self, page: &str) {
        self.world.engines[0].fail_always(None);
        self.world.engines[0].fail_always_on(METRICS, page_of(page));
    }

    /// Fills the cache of `vllm-0`.
    async fn fill(&self) {
        chat(&self.world, &about(&text(1, 8 * KIB))).await;
        self.world.idle().await;
        assert_eq!(blocks(&self.world)[0], 8);
    }

    /// Fails the checks of `vllm-0`, and lets them succeed again.
    fn come_back(&self) {
        self.world.backend("vllm-0").set_healthy(false);
        self.world.backend("vllm-0").set_healthy(true);
    }
}

fn page_of(page: &str) -> Fault {
    let length = page.len();
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {length}\r\nconnection: close"
    );
    Fault::Raw(format!("{head}\r\n\r\n{page}").into())
}

fn is(value: f64, expected: f64) -> bool {
    (value - expected).abs() < 1e-9
}

#[tokio::test]
async fn each_backend_gets_the_capacity_that_its_engine_has() {
    let mut reading = Reading::of(vec![holding(160_000), holding(32_000)], "").await;
    assert_eq!((reading.capacity(0), reading.capacity(1)), (CAPACITY_TOKENS, CAPACITY_TOKENS));
    reading.after(Duration::ZERO).await;
    assert_eq!((reading.capacity(0), reading.capacity(1)), (160_000, 32_000));
    assert!(is(reading.polls("ok"), 2.0));
}

#[tokio::test]
async fn a_configured_capacity_stays() {
    let mut reading = Reading::of(vec![holding(160_000)], ", capacity_tokens: 4000000").await;
    reading.after(Duration::ZERO).await;
    assert_eq!((reading.capacity(0), is(reading.polls("ok"), 1.0)), (4_000_000, true));
}

#[tokio::test]
async fn an_engine_is_read_at_the_start_and_every_period() {
    let mut reading = Reading::of(vec![holding(160_000)], "").await;
    for (time, reads) in [(Duration::ZERO, 1), (PERIOD / 2, 1), (PERIOD / 2, 2), (PERIOD, 3)] {
        reading.after(time).await;
        assert_eq!(reading.world.received(METRICS), [reads]);
    }
}

#[tokio::test]
async fn what_an_engine_does_not_say_or_cannot_have_is_ignored_and_counted() {
    let mut reading = Reading::of(vec![engine()], "").await;
    let info = |blocks: &str| {
        format!(
            "vllm:cache_config_info{{block_size=\"16\",num_gpu_blocks=\"{blocks}\"}} 1.0\nvllm:prompt_tokens_total 1\n"
        )
    };
    for (page, outcome) in [
        (info("None"), "absent"),
        (info("-5"), "absent"),
        (info("0"), "implausible"),
        (info("99999999999"), "implausible"),
        (info("18446744073709551615"), "implausible"),
        ("up 1\n".to_owned(), "undecodable"),
    ] {
        let before = reading.polls(outcome);
        reading.show(&page);
        reading.after(PERIOD).await;
        assert_eq!(
            (reading.capacity(0), reading.polls(outcome) - before >= 1.0),
            (CAPACITY_TOKENS, true),
            "{page}"
        );
    }
    reading.show(&info("1000"));
    reading.after(PERIOD).await;
    assert_eq!(reading.capacity(0), 16_000);
    reading.show(&info("0"));
    reading.after(PERIOD).await;
    assert_eq!(reading.capacity(0), 16_000, "what is known stays");
    reading.world.engines[0].fail_always(None);
    reading.world.engines[0].fail_next_on(METRICS, 1, Fault::Status { code: 404, retry_after: None });
    reading.after(PERIOD).await;
    assert!(is(reading.polls("status"), 1.0));
    assert_eq!(reading.capacity(0), 16_000);
}

#[tokio::test]
async fn an_engine_that_comes_back_is_read_at_once_and_has_nothing_cached() {
    let (_place, address) = reserve();
    let first = Engine::start_at(address, holding(160_000)).unwrap();
    let world = World::with(Plan {
        engines: vec![],
        more: vec![format!(r#"id: vllm-0, address: "{address}""#)],
        cluster: "policy: pmc\nhealth: {failures: 1}".to_owned(),
        ..Plan::default()
    })
    .await;
    let mut reading = Reading::with(world);
    reading.after(Duration::ZERO).await;
    let response = post(&reading.world, CHAT, &about(&text(1, 8 * KIB))).await;
    drop(response.bytes().await.unwrap());
    reading.world.idle().await;
    assert_eq!((reading.capacity(0), blocks(&reading.world)), (160_000, vec![8]));
    first.stop().await;
    reading.world.check_health().await;
    reading.after(PERIOD).await;
    assert_eq!(blocks(&reading.world), [8], "nobody is asked while it is down");
    assert!(is(reading.polls("connect"), 0.0));
    let _second = Engine::start_at(address, holding(48_000)).unwrap();
    reading.world.check_health().await;
    reading.after(Duration::ZERO).await;
    assert_eq!((reading.capacity(0), blocks(&reading.world)), (48_000, vec![0]));
    assert!(is(reading.cleared("restarted"), 1.0));
}

#[tokio::test]
async fn an_engine_that_was_only_slow_to_answer_keeps_what_it_has() {
    let mut reading = Reading::of(vec![engine()], "").await;
    let counting_since = |time: &str| {
        format!("vllm:prompt_tokens_created{{engine=\"0\"}} {time}\nvllm:prompt_tokens_total 9\n")
    };
    reading.show(&counting_since("1.795178753125e+09"));
    reading.after(Duration::ZERO).await;
    reading.fill().await;
    reading.come_back();
    reading.after(Duration::ZERO).await;
    assert_eq!(blocks(&reading.world), [8]);
    reading.show(&counting_since("1.795178753126e+09"));
    reading.after(PERIOD).await;
    assert_eq!(blocks(&reading.world), [0], "another process, although its checks never failed");
    assert!(is(reading.cleared("restarted"), 1.0));
}

#[tokio::test]
async fn an_engine_that_has_counted_less_than_before_has_started_anew() {
    let mut reading = Reading::of(vec![engine()], "").await;
    let counted = |tokens: u32| format!("vllm:prompt_tokens_total{{engine=\"0\"}} {tokens}.0\n");
    for (tokens, left) in [(100, 8), (100, 8), (5000, 8), (4999, 0)] {
        reading.fill().await;
        reading.show(&counted(tokens));
        reading.after(PERIOD).await;
        assert_eq!(blocks(&reading.world), [left], "{tokens}");
    }
    reading.fill().await;
    reading.show("");
    reading.after(PERIOD).await;
    assert_eq!(blocks(&reading.world), [8], "it says nothing this time");
    reading.show(&counted(4998));
    reading.after(PERIOD).await;
    assert_eq!(blocks(&reading.world), [0], "what it said before is remembered");
}

#[tokio::test]
async fn an_engine_that_comes_back_and_cannot_be_read_has_nothing_cached() {
    let mut reading = Reading::of(vec![engine()], "").await;
    reading.after(Duration::ZERO).await;
    reading.fill().await;
    reading.world.engines[0].fail_always_on(METRICS, Fault::Status { code: 404, retry_after: None });
    reading.after(PERIOD).await;
    assert_eq!(blocks(&reading.world), [8], "not to answer is not to be gone");
    reading.come_back();
    reading.after(Duration::ZERO).await;
    assert_eq!(blocks(&reading.world), [0]);
    reading.fill().await;
    reading.after(PERIOD).await;
    assert_eq!(blocks(&reading.world), [8], "it was gone once");
}

#[tokio::test]
async fn an_engine_that_sleeps_gets_no_requests_and_forgets_what_it_had() {
    let mut reading = Reading::of(vec![engine(); 2], "").await;
    reading.after(Duration::ZERO).await;
    reading.fill().await;
    reading.world.engines[0].set_sleep(SleepState::WeightsOffloaded);
    reading.after(PERIOD).await;
    let sleeper = |reading: &Reading| reading.world.backend("vllm-0").absence();
    assert_eq!((sleeper(&reading), blocks(&reading.world)), (Some(Absence::Sleeping), vec![0, 0]));
    assert_eq!(chat(&reading.world, &about(&text(1, 8 * KIB))).await, 1);
    reading.after(Duration::from_secs(1)).await;
    assert_eq!(reading.world.received(METRICS), [3, 2], "who sleeps is watched");
    reading.world.engines[0].set_sleep(SleepState::Awake);
    reading.after(Duration::from_secs(1)).await;
    assert_eq!(sleeper(&reading), None);
    assert!(is(reading.cleared("asleep"), 1.0));
}

#[tokio::test]
async fn an_engine_that_comes_back_from_sleep_and_cannot_be_read_is_awake() {
    let mut reading = Reading::of(vec![engine()], "").await;
    reading.world.engines[0].set_sleep(SleepState::DiscardAll);
    reading.after(Duration::ZERO).await;
    reading.world.engines[0].fail_always_on(METRICS, Fault::Status { code: 404, retry_after: None });
    reading.after(PERIOD).await;
    assert!(reading.world.backend("vllm-0").is(Absence::Sleeping), "not to answer is not to be awake");
    reading.come_back();
    reading.after(Duration::ZERO).await;
    assert_eq!(reading.world.backend("vllm-0").absence(), None);
}

#[tokio::test]
async fn who_else_says_that_a_backend_sleeps_is_heard_unless_its_engine_knows_better() {
    let mut reading = Reading::of(vec![engine()], "").await;
    let sleeps = |reading: &Reading| reading.world.backend("vllm-0").is(Absence::Sleeping);
    reading.world.backend("vllm-0").set(Absence::Sleeping, true);
    reading.show("vllm:prompt_tokens_total 1\n");
    reading.after(Duration::ZERO).await;
    assert!(sleeps(&reading));
    reading.world.engines[0].fail_always(None);
    reading.after(PERIOD).await;
    assert!(!sleeps(&reading));
}

#[tokio::test]
async fn the_service_reads_by_itself_until_the_process_ends() {
    let Reading { world, service, .. } = Reading::of(vec![holding(160_000)], "").await;
    let (shutdown, watch) = watch::channel(false);
    let mut running = JoinSet::new();
    running.spawn(async move { service.start(watch).await });
    until(|| cluster(&world).blocks.capacity(0) == 160_000).await;
    shutdown.send(true).unwrap();
    within(running.join_all()).await;
}
