//! What a real LMCache controller answers: the facts that the gateway's client and the mock controller are built on.

use super::controller::{Hashes, LOCATION, controller, tokens};
use super::process::look_until;
use reqwest::StatusCode;
use serde_json::{Value, json};

const OK: StatusCode = StatusCode::OK;
const BROKEN: StatusCode = StatusCode::INTERNAL_SERVER_ERROR;

/// The body of a control call.
fn control(instance: &str, tokens: &[u32]) -> Value {
    json!({"instance_id": instance, "location": LOCATION, "tokens": tokens, "method": "cachegen"})
}

#[tokio::test]
async fn a_lookup_answers_with_an_array_of_location_and_count() {
    let controller = controller().await;
    let held = tokens(10_000, 600);
    controller.instance("array", std::slice::from_ref(&held)).await;
    let (status, answer) = controller.ask("/lookup", &json!({"tokens": held})).await;
    assert_eq!(status, OK);
    assert_eq!(answer["layout_info"], json!({"array": [LOCATION, 600]}));
    assert!(answer["event_id"].as_str().unwrap().starts_with("Lookup"), "{answer}");
}

#[tokio::test]
async fn chunks_of_256_tokens_match_from_the_first_on() {
    let controller = controller().await;
    controller.instance("chunked", &[tokens(20_000, 600)]).await;
    for (count, expected) in [
        (255, None),
        (256, Some(256)),
        (512, Some(512)),
        (599, Some(512)),
        (600, Some(600)),
        (700, Some(512)),
    ] {
        let found = controller.look_up(&tokens(20_000, count)).await;
        let expected = expected.map_or(json!({}), |matched| json!({"chunked": [LOCATION, matched]}));
        assert_eq!(found, expected, "{count} tokens");
    }
    assert_eq!(controller.look_up(&tokens(20_001, 600)).await, json!({}), "not from the first token on");
}

#[tokio::test]
async fn a_prompt_of_less_than_a_chunk_matches_only_as_a_whole() {
    let controller = controller().await;
    controller.instance("short", &[tokens(90_000, 100)]).await;
    assert_eq!(controller.look_up(&tokens(90_000, 100)).await, json!({"short": [LOCATION, 100]}));
    assert_eq!(controller.look_up(&tokens(90_000, 99)).await, json!({}));
    assert_eq!(controller.look_up(&tokens(90_000, 101)).await, json!({}));
}

#[tokio::test]
async fn a_chunk_is_credited_to_the_first_instance_that_registered_it() {
    let controller = controller().await;
    controller.instance("first", &[tokens(30_000, 600)]).await;
    controller.instance("second", &[tokens(30_000, 1100)]).await;
    let found = controller.look_up(&tokens(30_000, 1100)).await;
    assert_eq!(found, json!({"first": [LOCATION, 512], "second": [LOCATION, 1100]}));
    let found = controller.look_up(&tokens(30_000, 512)).await;
    assert_eq!(found, json!({"first": [LOCATION, 512]}), "the replica is invisible");
}

#[tokio::test]
async fn control_calls_answer_with_the_tokens_that_were_there() {
    let controller = controller().await;
    let instance = controller.instance("controlled", &[tokens(40_000, 600)]).await;
    let body = control(&instance.id, &tokens(40_000, 1100));
    for (path, count) in [("/pin", 512), ("/compress", 512), ("/decompress", 512), ("/clear", 600)] {
        let (status, answer) = controller.ask(path, &body).await;
        assert_eq!((status, &answer["num_tokens"]), (OK, &json!(count)), "{path}: {answer}");
        assert!(answer["event_id"].is_string(), "{answer}");
        instance.is_asked(path.trim_start_matches('/'), 1).await;
    }
    assert_eq!(controller.ask("/pin", &body).await.1["num_tokens"], 0, "nothing is left");
}

#[tokio::test]
async fn a_cleared_location_is_found_no_more() {
    let controller = controller().await;
    let held = tokens(50_000, 600);
    let instance = controller.instance("cleared", std::slice::from_ref(&held)).await;
    let (status, answer) =
        controller.ask("/clear", &json!({"instance_id": instance.id, "location": LOCATION})).await;
    assert_eq!((status, &answer["num_tokens"]), (OK, &json!(600)));
    look_until(async || controller.look_up(&held).await == json!({})).await;
}

#[tokio::test]
async fn there_is_no_evict_and_no_health_by_get() {
    let controller = controller().await;
    for path in ["/evict", "/unpin"] {
        let (status, answer) = controller.ask(path, &json!({"tokens": [1], "instance_id": "any"})).await;
        assert_eq!((status, answer), (StatusCode::NOT_FOUND, json!({"detail": "Not Found"})), "{path}");
    }
    let health = reqwest::get(controller.endpoint() + "/health").await.unwrap();
    assert_eq!(health.status(), StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn an_unknown_instance_is_an_error_of_the_server() {
    let controller = controller().await;
    for path in ["/pin", "/compress", "/clear"] {
        let (status, answer) = controller.ask(path, &control("nobody", &tokens(0, 300))).await;
        assert_eq!(status, BROKEN, "{path}");
        assert!(answer["detail"].is_string(), "{answer}");
    }
}

#[tokio::test]
async fn a_bad_request_is_answered_with_what_was_sent() {
    let controller = controller().await;
    let (status, answer) = controller.ask("/lookup", &json!({"tokens": "7001"})).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(answer["detail"][0]["input"], "7001", "tokens come back in errors: {answer}");
    let (status, _) = controller.ask("/pin", &json!({"tokens": [1], "instance_id": "any"})).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "a pin without a location");
}

#[tokio::test]
async fn a_body_without_a_content_type_is_refused() {
    let controller = controller().await;
    let body = r#"{"tokens":[1]}"#;
    let answer =
        reqwest::Client::new().post(controller.endpoint() + "/lookup").body(body).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::UNPROCESSABLE_ENTITY);
}

#[tokio::test]
async fn hashes_that_start_elsewhere_find_nothing_and_say_nothing() {
    let controller = controller().await;
    let held = tokens(60_000, 600);
    let workers = controller.workers(Hashes::BesideVllm);
    let instance = controller.instance_in(&workers, "beside-vllm", std::slice::from_ref(&held)).await;
    assert_eq!(controller.look_up(&held).await, json!({}));
    let (status, answer) = controller.ask("/pin", &control(&instance.id, &held)).await;
    assert_eq!((status, &answer["num_tokens"]), (OK, &json!(600)), "though it is there");
}

#[tokio::test]
async fn another_seed_alone_changes_no_hash() {
    let controller = controller().await;
    let held = tokens(61_000, 600);
    let workers = controller.workers(Hashes::OtherSeed);
    controller.instance_in(&workers, "other-seed", std::slice::from_ref(&held)).await;
    assert_eq!(controller.look_up(&held).await, json!({"other-seed": [LOCATION, 600]}));
}

#[tokio::test]
async fn a_dead_worker_stays_in_lookups() {
    let controller = controller().await;
    let held = tokens(70_000, 600);
    let workers = controller.workers(Hashes::Alike);
    controller.instance_in(&workers, "dead", std::slice::from_ref(&held)).await;
    drop(workers);
    assert_eq!(controller.look_up(&held).await, json!({"dead": [LOCATION, 600]}));
}

#[tokio::test]
async fn a_control_call_that_hangs_wedges_its_instance_alone_until_its_worker_answers() {
    let controller = controller().await;
    let held = tokens(80_000, 600);
    let instance = controller.instance("wedged", std::slice::from_ref(&held)).await;
    let other = controller.instance("beside", &[tokens(81_000, 600)]).await;
    instance.hold(&["pin"]).await;
    let body = control(&instance.id, &held);
    let cut_off = async {
        tokio::select! {
            answer = controller.post("/pin", &body) => panic!("answered {answer:?}"),
            _ = instance.is_asked("pin", 1) => {}
        }
    };
    cut_off.await;

    for path in ["/pin", "/compress", "/clear"] {
        let (status, answer) = controller.ask(path, &body).await;
        assert_eq!(
            (status, &answer["detail"]),
            (BROKEN, &json!("Operation cannot be accomplished in current state")),
            "{path}"
        );
    }
    assert_eq!(controller.look_up(&held).await, json!({"wedged": [LOCATION, 600]}), "lookups go on");
    let beside = control(&other.id, &tokens(81_000, 600));
    assert_eq!(controller.ask("/pin", &beside).await.0, OK, "others are not touched");

    instance.hold(&[]).await;
    look_until(async || controller.ask("/pin", &body).await.0 == OK).await;
}
