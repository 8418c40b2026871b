//! The first command of the README, as a reader runs it, on ports of its own.

use crate::gateway::{free_addresses, kvway};

#[test]
fn the_demo_answers_a_long_prompt_and_a_stream_and_shows_where_each_request_went() {
    let [listen, admin] = free_addresses();
    let mut demo = kvway();
    demo.args(["demo", "--once", "--listen", &listen.to_string(), "--admin", &admin.to_string()]);
    let output = demo.output().unwrap();
    let (shown, complaints) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{shown}{complaints}");
    for (request, status) in
        [("chat with a 1 MiB prompt", "200"), ("chat, streamed", "200"), ("a model that nobody", "404")]
    {
        let line = shown.lines().find(|line| line.starts_with(request)).unwrap_or_else(|| panic!("{shown}"));
        assert!(line.contains(status) && line.contains("vllm-") && line.contains("pmc"), "{line}");
    }
    let row = |start: &str| -> Vec<&str> {
        let line = shown.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{shown}"));
        line.strip_prefix(start).unwrap().split_whitespace().collect()
    };
    let backend = row("a new prompt")[1];
    for again in ["again: LMCache knows where", "and again"] {
        assert_eq!(row(again)[..4], ["200", backend, "pmc", "followed"], "{shown}");
    }
    assert_eq!(row("the conversation goes on")[1..3], [backend, "pmc"], "{shown}");
    assert_eq!(row("LMCache names a stranger")[1..4], [backend, "pmc", "unknown_instance"], "{shown}");
    assert_ne!(row("chat with a 1 MiB prompt")[1], row("another prompt, meanwhile")[1], "{shown}");
    assert!(shown.contains(&format!("curl -N http://{listen}/v1/chat/completions")), "{shown}");
}
