//! Prompts, keys and queries are told to nobody.

use super::*;

const PROMPT: &str = "prompt-51f0";
const KEY: &str = "sk-client-7a2e";
const BACKEND_KEY: &str = "sk-backend-9c41";
const QUERY: &str = "query-3b88";

/// A request that carries every secret.
fn request(world: &World, path: &str, body: String) -> reqwest::RequestBuilder {
    let url = world.url(&format!("{path}?token={QUERY}"));
    world.client.post(url).bearer_auth(KEY).header("cookie", KEY).header("x-api-key", KEY).body(body)
}

fn prompt() -> Value {
    chat(PROMPT)
}

/// The status of an answer, which holds no secret.
async fn status(request: reqwest::RequestBuilder) -> u16 {
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status().as_u16(), format!("{:?}", response.headers()));
    let body = response.text().await.unwrap_or_default();
    assert_clean("answer", &format!("{headers}{body}"));
    status
}

fn assert_clean(place: &str, text: &str) {
    for secret in [PROMPT, KEY, BACKEND_KEY, QUERY] {
        assert!(!text.contains(secret), "{secret} in the {place}: {text}");
    }
}

/// A world that refuses on the slightest occasion.
async fn strict_world(access: &'static str, down: SocketAddr) -> World {
    World::with(Plan {
        sections: "limits: {body_bytes_max: 16KiB, header_bytes_max: 4KiB}\n\
                   timeouts: {first_byte: 400ms, body: 400ms}\n\
                   routes: [{path: /v1, model: tiny, cluster: llama}]"
            .to_owned(),
        backend: format!(", api_key: {BACKEND_KEY}"),
        more: vec![format!(r#"id: down, address: "{down}", api_key: {BACKEND_KEY}"#)],
        access,
        ..Plan::default()
    })
    .await
}

/// Success, and what backends do to requests.
async fn backends_answer_and_fail(world: &World) {
    let all = |fault: Option<&Fault>| {
        for engine in &world.engines {
            engine.fail_always(fault.cloned());
        }
    };
    let ordinary = || request(world, CHAT, prompt().to_string());
    assert_eq!(status(ordinary()).await, 200);
    let mut stream = stream_of(5);
    stream["messages"] = prompt()["messages"].take();
    assert_eq!(status(request(world, CHAT, stream.to_string())).await, 200);
    let limited = Fault::Status { code: 429, retry_after: Some(1) };
    for (expected, fault) in [
        (503, OVERLOADED),
        (429, limited),
        (502, Fault::Garbage),
        (502, Fault::ResetBeforeResponse),
        (504, Fault::StallBeforeResponse),
        (200, Fault::CutStreamAfter(1)),
    ] {
        all(Some(&fault));
        assert_eq!(status(ordinary()).await, expected, "{fault:?}");
        all(None);
    }
    all(Some(&Fault::StallBeforeResponse));
    let left = tokio::time::timeout(Duration::from_millis(20), ordinary().send()).await;
    assert!(left.is_err(), "the answer is held");
    world.idle().await;
    all(None);
    for backend in world.app.clusters()[0].fleet.backends() {
        backend.set_healthy(false);
    }
    assert_eq!(status(ordinary()).await, 503, "no backend");
}

/// What the gateway refuses by itself.
async fn gateway_refuses(world: &World) {
    let mut unknown = prompt();
    unknown["model"] = "unknown".into();
    for (expected, request) in [
        (404, request(world, CHAT, unknown.to_string())),
        (404, request(world, "/v2/x", prompt().to_string())),
        (413, request(world, CHAT, PROMPT.repeat(5000))),
        (431, request(world, CHAT, prompt().to_string()).header("x-long", KEY.repeat(1000))),
    ] {
        assert_eq!(status(request).await, expected);
    }
    let head = format!("POST {CHAT}?token={QUERY} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n");
    for (expected, rest) in [
        ("408", format!("content-length: 100\r\n\r\n{PROMPT}")),
        ("400", format!("bad header {PROMPT}\r\n\r\n")),
        ("400", format!("transfer-encoding: chunked\r\n\r\n{PROMPT}\r\n")),
    ] {
        let answer = raw(world, format!("{head}{rest}").as_bytes()).await;
        assert_eq!(answer.get(9..12), Some(expected), "{rest}");
        assert_clean("answer", &answer);
    }
}

#[tokio::test]
async fn no_secret_is_told_to_anybody() {
    for access in ["json", "text"] {
        let (_nobody, address) = reserve();
        let world = strict_world(access, address).await;
        gateway_refuses(&world).await;
        backends_answer_and_fail(&world).await;
        let received = world.engines.iter().flat_map(|engine| engine.received());
        for request in received {
            let key = format!("Bearer {BACKEND_KEY}");
            assert_eq!(request.header("authorization"), Some(key.as_str()));
        }
        assert_clean("metrics", &world.metrics());
        let state = world.app.admin().respond(&http::Method::GET, "/state", None);
        assert_clean("state", &String::from_utf8_lossy(state.body()));
        let log = world.access_log_text().await;
        assert!(log.lines().count() >= 14, "{log}");
        assert_clean("access log", &log);
    }
}
