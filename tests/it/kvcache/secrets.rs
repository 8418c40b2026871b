//! Prompts, tokens, credentials and keys are told to nobody.

use super::*;
use crate::calls::log::Paper;

const PROMPT: &str = "prompt-51f0";
const CLIENT_KEY: &str = "sk-client-7a2e";
const BACKEND_KEY: &str = "sk-backend-9c41";
const SALT: &str = "salt-3b88";
/// Ids that occur nowhere else.
const IDS: [u32; 3] = [907_214_411, 907_214_412, 907_214_413];

fn assert_clean(place: &str, text: &str) {
    for secret in [PROMPT, CLIENT_KEY, BACKEND_KEY, SALT, "9072144"] {
        assert!(!text.contains(secret), "{secret} in the {place}: {text}");
    }
}

/// Bodies with secrets in every place that is read.
fn bodies() -> [(&'static str, String); 5] {
    let prompt = |prompt: Value| json!({"model": "tiny", "prompt": prompt, "cache_salt": SALT}).to_string();
    [
        (CHAT, chat(PROMPT).to_string()),
        (COMPLETIONS, prompt(json!(PROMPT))),
        (COMPLETIONS, prompt(json!([PROMPT]))),
        (COMPLETIONS, prompt(json!(IDS))),
        (COMPLETIONS, format!("{{\"prompt\": \"{PROMPT}")),
    ]
}

/// Sends all of them, twice each; no header of an answer tells a secret.
async fn ask_all(filter: &Filter) {
    for (path, body) in bodies().into_iter().chain(bodies()) {
        let request = filter.request(path, body).bearer_auth(CLIENT_KEY);
        let response = request.send().await.unwrap();
        assert_clean("answer", &format!("{:?}", response.headers()));
        drop(response.bytes().await);
        filter.idle().await;
    }
}

#[tokio::test]
async fn neither_log_nor_metrics_nor_headers_tell_a_secret() {
    let paper = Paper::default();
    let _listening = paper.listen();
    let tokenizer = Engine::start(EngineOptions::default()).unwrap();
    let backend = format!(r#"id: own, address: "{}", api_key: {BACKEND_KEY}"#, tokenizer.address());
    let setup = Setup::new().cluster("policy: lmcache_only\ndecision_header: true").prefer("own");
    let setup = setup.set("vllm_endpoint", format!("\"http://{}\"", tokenizer.address()));
    let setup = setup.set("token_cache", "{enabled: true, ttl: 1m}");
    let setup = setup.plan(|plan| {
        plan.engines.truncate(1);
        plan.more.push(backend);
    });
    let mut filter = setup.start().await;
    filter.tokenizer = tokenizer;
    ask_all(&filter).await;
    // What servers echo.
    let echo =
        json!({"detail": [{"input": {"tokens": IDS, "text": PROMPT, "key": BACKEND_KEY}}]}).to_string();
    for code in [200, 400, 422, 500] {
        for (server, path) in
            [(&*filter.tokenizer, TOKENIZE), (&*filter.controller, LOOKUP), (&*filter.controller, PIN)]
        {
            server.fail_always_on(path, answer(code, &echo));
            // What was remembered is forgotten.
            pass(Duration::from_mins(2)).await;
            ask_all(&filter).await;
            server.fail_always(None);
        }
    }
    filter.controller.prefer(Some(PROMPT));
    assert_clean("metrics", &filter.world.metrics());
    let state = filter.world.app.admin().respond(&http::Method::GET, "/state", None);
    assert_clean("state", &String::from_utf8_lossy(state.body()));
    let access_log = filter.world.access_log_text().await;
    assert!(access_log.contains("followed"), "{access_log}");
    assert_clean("access log", &access_log);
    let log = paper.text();
    assert!(log.contains("[kvcache] lookup"), "{log}");
    assert_clean("log", &log);
}
