//! What is read of bodies, and that they go on as they came.

use super::*;
use crate::bodies::assert_arrived;
use crate::clients::{Http1, sha256};

/// Every kind of body, as it may come.
fn every_kind() -> Vec<(&'static str, Vec<u8>)> {
    let long = format!(r#"{{"model":"tiny","prompt":"{}","max_tokens":1}}"#, "lorem ipsum ".repeat(40_000));
    let texts = [
        (CHAT, r#"{ "model" : "tiny","messages":[{"role":"user","content":"h\u0069"}]  ,"max_tokens":1}"#),
        (CHAT, r#"{"model":"tiny","messages":[{"role":"user","content":[{"type":"text","text":"hi"}]}]}"#),
        (CHAT, r#"{"model":"tiny","messages":[{"role":"user","content":"a"}],"prompt":"stray"}"#),
        (COMPLETIONS, "\n\t{\"prompt\":\"a\\ud83d\\ude00 \",\"model\":\"tiny\",\"prompt\":\"again\"}\n"),
        (COMPLETIONS, r#"{"model":"tiny","prompt":["one"]}"#),
        (COMPLETIONS, r#"{"model":"tiny","prompt":["one","two"]}"#),
        (COMPLETIONS, r#"{"model":"tiny","prompt":[1,2,3]}"#),
        (COMPLETIONS, r#"{"model":"tiny","prompt":[[1,2,3]]}"#),
        (COMPLETIONS, r#"{"model":"tiny","prompt":[[1],[2]]}"#),
        (COMPLETIONS, r#"{"model":"tiny","prompt":[1,-2.5,null,{"a":[]}]}"#),
        (COMPLETIONS, r#"{"model":"tiny","prompt":{"not":"a prompt"}}"#),
        (COMPLETIONS, r#"{"model":"tiny","prompt":"   "}"#),
        (COMPLETIONS, r#"{"model":"tiny"}"#),
        (COMPLETIONS, r#"{"model":"tiny","prompt":"breaks o"#),
        (CHAT, r#"{"messages":[{"content":"#),
        (CHAT, r#"{"messages":"none","model":"tiny"}"#),
        (CHAT, r#"{"messages":[{"role":"user","content":"a"}]}{"second":1}"#),
        (CHAT, "not JSON at all"),
        (CHAT, "[]"),
        (CHAT, "null"),
        (CHAT, ""),
        ("/v1/embeddings", r#"{"model":"tiny","input":"text"}"#),
        ("/any/path", r#"{"model":"tiny","prompt":"any path"}"#),
    ];
    let mut all: Vec<_> = texts.map(|(path, text)| (path, text.as_bytes().to_vec())).into();
    all.push((COMPLETIONS, b"{\"prompt\":\"\xff\xfe\"}".to_vec()));
    all.push((COMPLETIONS, long.into_bytes()));
    all
}

#[tokio::test]
async fn every_body_goes_on_byte_for_byte_and_every_answer_is_the_engines_own() {
    let filter = Setup::new().prefer("vllm-0").one_engine().start().await;
    let direct = Engine::start(EngineOptions::default()).unwrap();
    for (path, body) in every_kind() {
        let case = String::from_utf8_lossy(body.get(..60).unwrap_or(&body)).into_owned();
        let request = filter.world.client.post(format!("http://{}{path}", direct.address()));
        let request = request.header("content-type", "application/json").body(body.clone());
        let expected = request.send().await.unwrap().status().as_u16();
        // The second time its tokens are known.
        for _ in 0..2 {
            assert_eq!(filter.post(path, body.clone()).await, expected, "{path} {case}");
            assert_arrived(&filter.world.engines[0], &body, &case);
        }
    }
    assert_eq!(filter.world.app.budget.used(), 0);
}

#[tokio::test]
async fn a_body_that_breaks_off_goes_nowhere() {
    let filter = Filter::new().await;
    let body = completion("hello");
    let mut client = Http1::connect(filter.world.address).await;
    let length = body.len() + 1;
    client
        .send(format!("POST {COMPLETIONS} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n{body}"))
        .await;
    until(|| filter.world.app.budget.used() == body.len()).await;
    drop(client);
    filter.idle().await;
    assert_eq!((filter.world.received(COMPLETIONS), filter.calls(TOKENIZE)), (vec![0, 0], 0));
    assert_eq!((filter.hinted().as_str(), filter.world.app.budget.used()), ("", 0));
}

#[tokio::test]
async fn requests_without_a_prompt_are_balanced_and_nobody_is_asked() {
    let filter = Filter::new().await;
    let get = filter.world.client.get(filter.world.url("/version")).send().await.unwrap();
    assert_eq!(get.text().await.unwrap(), r#"{"version":"0.32.0"}"#);
    for body in
        ["", "no JSON", "{}", "[1]", r#"{"prompt":"breaks o"#, r#"{"prompt":" \n"}"#, r#"{"input":"a"}"#]
    {
        filter.post(COMPLETIONS, body).await;
    }
    assert_eq!([TOKENIZE, LOOKUP].map(|path| filter.calls(path)), [0, 0]);
    assert_eq!(filter.hinted(), "no_prompt 8");
    assert_eq!(filter.told("jobs_total"), "");
}

#[tokio::test]
async fn any_path_is_looked_at() {
    let filter = Filter::new().await;
    for path in ["/any/path", "/v2/x"] {
        filter.post(path, completion("hello")).await;
        filter.post(path, completion("hello")).await;
    }
    assert_eq!((filter.hinted().as_str(), filter.calls(TOKENIZE)), ("no_match 3, tokens_unknown 1", 1));
}

#[tokio::test]
async fn the_tokenizer_gets_the_clients_own_body_where_it_takes_it() {
    let filter = Filter::new().await;
    let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
    let bodies = [
        (CHAT, chat("hello").to_string()),
        (CHAT, json!({"model": "tiny", "messages": [{"role": "user", "content": parts}]}).to_string()),
        (CHAT, r#"{"messages" : [{"content":"no model, odd spaces"}] }"#.to_owned()),
        (COMPLETIONS, r#"{"prompt":  "h\u0065llo","model":"tiny","max_tokens":1}"#.to_owned()),
        (COMPLETIONS, completion("long ".repeat(100_000))),
    ];
    for (path, body) in bodies {
        filter.tokenizer.forget();
        filter.post(path, body.clone()).await;
        let received = filter.received(TOKENIZE);
        assert_eq!((received.len(), &received[0].body_sha256), (1, &sha256(body.as_bytes())), "{path}");
        assert_eq!(received[0].header("content-type"), Some("application/json"));
    }
    assert_eq!(filter.told("tokenizer_calls_total"), "ok 5");
}

#[tokio::test]
async fn a_list_of_one_text_is_tokenized_by_itself_with_its_model_or_the_default() {
    let filter = Setup::new().set("default_model", "tiny").start().await;
    for (model, text) in [("", "a \\\"b\\\" \\u00e9"), ("\"model\":\"tiny\",", "c"), ("\"model\":7,", "d")] {
        let body = format!(r#"{{{model}"prompt":["{text}"],"temperature":0}}"#);
        filter.post(COMPLETIONS, body).await;
        let sent = filter.bodies(TOKENIZE).pop().unwrap();
        let text: String = serde_json::from_str(&format!("\"{text}\"")).unwrap();
        assert_eq!(sent, json!({"model": "tiny", "prompt": text}));
    }
    assert_eq!(filter.told("tokenizer_calls_total"), "ok 3");
}

#[tokio::test]
async fn token_ids_are_looked_up_with_the_first_request_and_never_tokenized() {
    let filter = Setup::new().prefer("vllm-1").start().await;
    for prompt in [json!([11, 12, 13]), json!([[11, 12, 13]])] {
        filter.complete(prompt).await;
    }
    assert_eq!(filter.calls(TOKENIZE), 0);
    assert_eq!(filter.bodies(LOOKUP), [json!({"tokens": [11, 12, 13]}), json!({"tokens": [11, 12, 13]})]);
    assert_eq!((filter.hinted().as_str(), filter.world.received(COMPLETIONS)), ("followed 2", vec![0, 2]));
    let pin = json!({"tokens": [11, 12, 13], "instance_id": "vllm-1", "location": "LocalCPUBackend"});
    assert_eq!(filter.bodies(PIN)[0], pin);
}

#[tokio::test]
async fn several_prompts_are_balanced_and_neither_tokenized_nor_looked_up() {
    let filter = Setup::new().prefer("vllm-1").start().await;
    for prompt in [json!(["a", "b"]), json!([[1], [2]]), json!([1, -2]), json!(["a", [1]])] {
        filter.post(COMPLETIONS, completion(prompt)).await;
    }
    assert_eq!([TOKENIZE, LOOKUP, PIN].map(|path| filter.calls(path)), [0, 0, 0]);
    assert_eq!(filter.hinted(), "several_prompts 4");
    assert_eq!(filter.world.received(COMPLETIONS), [2, 2]);
}
