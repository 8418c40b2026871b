//! Which requests are the same prompt: those whose tokens are the same, and no others.

use super::*;

/// The counts of the token cache.
fn cache(filter: &Filter) -> [String; 2] {
    ["token_cache_hits_total", "token_cache_misses_total"].map(|name| filter.told(name))
}

fn message(more: &Value) -> Value {
    let mut body = json!({"model": "tiny", "messages": [{"role": "user", "content": "hello"}]});
    for (key, value) in more.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

#[tokio::test]
async fn a_request_without_a_model_is_one_for_the_default_model() {
    let filter = Setup::new().prefer("vllm-1").set("default_model", "tiny").start().await;
    for model in [r#""model":"tiny","#, "", r#""model":"","#, r#""model":null,"#, r#""model":["tiny"],"#] {
        filter.post(COMPLETIONS, format!(r#"{{{model}"prompt":"hello"}}"#)).await;
    }
    assert_eq!(cache(&filter), ["4", "1"]);
    assert_eq!((filter.calls(TOKENIZE), filter.calls(PIN)), (1, 1));
    filter.post(COMPLETIONS, r#"{"model":"other","prompt":"hello"}"#).await;
    assert_eq!(cache(&filter), ["4", "2"]);
}

#[tokio::test]
async fn what_an_engine_renders_differently_is_another_prompt() {
    let filter = Filter::new().await;
    let tool = json!({"type": "function", "function": {"name": "f", "parameters": {}}});
    let bodies = [
        message(&json!({})),
        message(&json!({"tools": [tool]})),
        message(&json!({"tools": [tool, tool]})),
        message(&json!({"tools": [tool], "tool_choice": "none"})),
        message(&json!({"cache_salt": "one"})),
        message(&json!({"cache_salt": "other"})),
        message(&json!({"chat_template_kwargs": {"enable_thinking": false}})),
        message(&json!({"add_generation_prompt": false})),
        message(&json!({"messages": [{"role": "system", "content": "hello"}]})),
        message(
            &json!({"messages": [{"role": "user", "content": "hel"}, {"role": "user", "content": "lo"}]}),
        ),
        message(&json!({"messages": [{"role": "user", "content": "hel\nlo"}]})),
        message(&json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]})),
        message(&json!({"messages": [{"role": "user", "content": "hello", "name": "x"}]})),
        message(&json!({"messages": [{"role": "assistant", "content": "hello", "tool_calls": []}]})),
        message(&json!({"model": "lora"})),
    ];
    for body in &bodies {
        filter.post(CHAT, body.to_string()).await;
    }
    let count = bodies.len();
    assert_eq!(cache(&filter), [String::new(), count.to_string()]);
    assert_eq!(filter.calls(TOKENIZE), count as u64);
}

#[tokio::test]
async fn how_the_answer_is_to_be_is_no_part_of_the_prompt() {
    let filter = Filter::new().await;
    for more in [
        json!({}),
        json!({"stream": true, "stream_options": {"include_usage": true}}),
        json!({"temperature": 0.5, "seed": 1, "max_tokens": 2, "stop": ["x"], "user": "somebody"}),
    ] {
        filter.post(CHAT, message(&more).to_string()).await;
    }
    assert_eq!(cache(&filter), ["2", "1"]);
}
