//! `kvway compare` against a gateway in this process: what it sends, what it counts, what it warns of.

use crate::world::{Plan as WorldPlan, World, within};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use kvway::arguments::{Arguments, Command};
use kvway::compare::{self, Plan};
use kvway::config::Config;
use mocks::{EngineOptions, Fault, Mode, SimulatedOptions};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

const PATH: &str = "/v1/completions";

/// Engines that cache, take next to no time, and report what they had cached.
async fn world() -> World {
    let simulated = SimulatedOptions { time_scale: 0.001, ..SimulatedOptions::default() };
    let engine =
        EngineOptions { mode: Mode::Simulated(simulated), cached_tokens: true, ..EngineOptions::default() };
    World::with(WorldPlan { engines: vec![engine.clone(), engine], ..WorldPlan::default() }).await
}

/// What `kvway compare` would do with these flags before this gateway.
fn plan(world: &World, flags: &[&str]) -> Plan {
    let words = ["kvway", "compare", "--requests", "20", "--prompt-tokens", "100"].iter().chain(flags);
    let arguments = <Arguments as clap::Parser>::parse_from(words);
    let Some(Command::Compare(compare)) = arguments.command else { panic!("{flags:?}") };
    let address = world.address;
    let text = format!(
        "listeners: [{{address: \"{address}\"}}]\nadmin: {{address: null}}\n\
         clusters: [{{name: llama, backends: [{{id: a, address: \"127.0.0.1:1\"}}]}}]"
    );
    Plan::new(&compare, &Config::parse(&text, "test.yaml", &|_| None).unwrap(), 7).unwrap()
}

/// Serves a page of metrics, made anew for each request; where, and for as long as the set lives.
async fn serve(page: impl Fn() -> String + Send + Sync + 'static) -> (String, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, page) = (listener.local_addr().unwrap(), Arc::new(page));
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let page = Arc::clone(&page);
            connections.spawn(async move {
                let answer = service_fn(move |request: Request<_>| {
                    assert_eq!(request.uri().path(), "/metrics");
                    let page = page();
                    async move { Ok::<_, Infallible>(Response::new(Full::<bytes::Bytes>::from(page))) }
                });
                // A client that leaves is no concern of this server.
                let _served = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(socket), answer)
                    .await
                    .is_ok();
            });
        }
    });
    (format!("http://{address}"), serving)
}

/// The gateway's own page, and what `more` adds to it.
async fn metrics(
    world: &World,
    more: impl Fn(&str) -> String + Send + Sync + 'static,
) -> (String, JoinSet<()>) {
    let app = Arc::clone(&world.app);
    serve(move || {
        let body = app.admin().respond(&http::Method::GET, "/metrics", None).into_body();
        let page = String::from_utf8(body).unwrap();
        let more = more(&page);
        page + &more
    })
    .await
}

/// All tries that a page tells of.
fn tries(page: &str) -> u64 {
    let lines = page.lines().filter(|line| line.starts_with("kvway_upstream_requests_total{"));
    lines.map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum()
}

#[tokio::test]
async fn unique_prompts_are_computed_and_repeated_ones_come_from_the_caches() {
    let world = world().await;
    let (admin, _serving) = metrics(&world, |_| String::new()).await;
    let plan = Plan { admin: Some(admin), ..plan(&world, &[]) };
    let report = within(compare::run(&plan)).await.unwrap();
    assert_eq!((report.unique.requests, report.repeated.requests, report.prompts), (20, 20, 4));
    assert_eq!((report.unique.failed, report.repeated.failed), (0, 0));
    let (unique, repeated) = (report.unique.cached.unwrap(), report.repeated.cached.unwrap());
    assert_eq!(unique.cached_tokens, 0);
    assert!(repeated.cached_tokens > repeated.prompt_tokens / 2, "{repeated:?}");
    for phase in [&report.unique, &report.repeated] {
        let backends = &phase.seen.as_ref().unwrap().backends;
        let counts: Vec<_> = backends.iter().map(|(name, count)| (name.as_str(), *count)).collect();
        assert_eq!(counts, [("llama/vllm-0", 10), ("llama/vllm-1", 10)]);
    }
    assert_eq!(report.warnings.len(), 1, "{:?}", report.warnings);
    assert!(!report.filter && report.warnings[0].contains("is not asked"), "{:?}", report.warnings);
    assert_eq!(world.received(PATH).iter().sum::<u64>(), 20 + 4 + 20, "one round to warm up");
    assert!(world.engines[0].received().iter().all(|received| !received.path_and_query.contains("chat")));
}

#[tokio::test]
async fn repeats_are_measured_once_the_gateway_routes_them_by_hints() {
    let world = world().await;
    // The gateway knows a prompt when it meets it for the second time.
    let (admin, _serving) = metrics(&world, |page| {
        let followed = tries(page).saturating_sub(20 + 4);
        let series =
            |name, labels, value| format!("kvway_kvcache_{name}{{{labels},cluster=\"llama\"}} {value}\n");
        series("hints_total", "outcome=\"followed\"", followed)
            + &series("lookups_total", "by=\"request\",outcome=\"match\"", followed)
            + &series("lookups_total", "by=\"request\",outcome=\"no_match\"", tries(page) - followed)
    })
    .await;
    let mut plan = Plan { admin: Some(admin), ..plan(&world, &["--chat"]) };
    plan.filters.iter_mut().for_each(|(_, on)| *on = true);
    let report = within(compare::run(&plan)).await.unwrap();
    assert_eq!(world.received("/v1/chat/completions").iter().sum::<u64>(), 20 + 2 * 4 + 20);
    let (unique, repeated) = (report.unique.seen.clone().unwrap(), report.repeated.seen.clone().unwrap());
    assert_eq!((unique.lookups, unique.lookups_matched, unique.hints_followed), (20, 0, 0));
    assert_eq!((repeated.lookups, repeated.lookups_matched, repeated.hints_followed), (20, 20, 20));
    assert_eq!(report.warnings, [""; 0]);
    let shown = report.to_string();
    assert!(shown.contains("20/20") && shown.contains("100.0 %"), "{shown}");
}

#[tokio::test]
async fn without_metrics_it_measures_and_warns() {
    let world = world().await;
    let (other, _serving) =
        serve(|| "kvway_upstream_requests_total{cluster=\"c\",backend=\"b\"} 5\n".to_owned()).await;
    let (_held, nobody) = crate::world::reserve();
    for (admin, said) in [
        (None, "--admin names one"),
        (Some(format!("http://{nobody}")), "refused"),
        (Some(other), "is --admin this gateway's?"),
    ] {
        let plan = Plan { admin, ..plan(&world, &[]) };
        let report = within(compare::run(&plan)).await.unwrap();
        let warned =
            report.warnings.iter().any(|it| it.contains("no metrics were seen") && it.contains(said));
        assert!(warned, "{said}: {:?}", report.warnings);
        assert!(report.unique.total_ms.average > 0.0);
    }
}

#[tokio::test]
async fn failed_requests_are_counted_and_told_of() {
    let world = world().await;
    world
        .engines
        .iter()
        .for_each(|engine| engine.fail_next(2, Fault::Status { code: 400, retry_after: None }));
    let report = within(compare::run(&plan(&world, &["--concurrency", "1"]))).await.unwrap();
    assert_eq!((report.unique.failed, report.repeated.failed), (4, 0));
    assert!(
        report.warnings.iter().any(|it| it == "4 of 20 unique requests failed: status 400"),
        "{:?}",
        report.warnings
    );
}

#[tokio::test]
async fn a_gateway_that_answers_nothing_is_one_clear_error() {
    let world = world().await;
    let (_held, nobody) = crate::world::reserve();
    let absent = Plan { url: format!("http://{nobody}"), ..plan(&world, &[]) };
    let error = within(compare::run(&absent)).await.unwrap_err().to_string();
    assert_eq!(
        error,
        format!("the gateway cannot be reached at http://{nobody}: Connection refused (os error 111)")
    );
    let unknown = plan(&world, &["--model", "none"]);
    let error = within(compare::run(&unknown)).await.unwrap_err().to_string();
    assert_eq!(error, format!("all 20 requests to http://{}{PATH} failed: status 404", world.address));
    let error =
        within(compare::run(&Plan { url: world.url("/nowhere"), ..plan(&world, &[]) })).await.unwrap_err();
    assert!(error.to_string().contains("lists no model"), "{error}");
}

#[tokio::test]
async fn a_stream_without_its_end_is_no_answer() {
    let world = world().await;
    let body = "data: {\"choices\":[]}\n\n";
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length";
    let without_end = format!("{head}: {}\r\n\r\n{body}", body.len());
    for fault in [Fault::CutStreamAfter(1), Fault::Raw(without_end.into())] {
        for engine in &world.engines {
            engine.fail_always(None);
            engine.fail_always(Some(fault.clone()));
        }
        let error = within(compare::run(&plan(&world, &[]))).await.unwrap_err();
        assert!(matches!(error, compare::CompareError::AllFailed { requests: 20, .. }), "{error}");
    }
}

#[tokio::test]
async fn counters_that_lag_behind_the_answers_are_waited_for() {
    let world = world().await;
    let (app, met) = (Arc::clone(&world.app), AtomicU64::new(0));
    let (admin, _serving) = serve(move || {
        let body = app.admin().respond(&http::Method::GET, "/metrics", None).into_body();
        let tries = tries(std::str::from_utf8(&body).unwrap());
        // What has just happened is not counted to its last request before the second look.
        let missing = u64::from(met.swap(tries, Ordering::Relaxed) != tries);
        let shown = tries - missing;
        format!("kvway_upstream_requests_total{{backend=\"b\",cluster=\"c\"}} {shown}\n")
    })
    .await;
    let plan = Plan { admin: Some(admin), ..plan(&world, &["--model", "tiny"]) };
    let report = within(compare::run(&plan)).await.unwrap();
    for phase in [report.unique, report.repeated] {
        assert_eq!(phase.seen.unwrap().backends.into_values().collect::<Vec<_>>(), [20]);
    }
}
