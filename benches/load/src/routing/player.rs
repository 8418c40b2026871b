//! Plays a plan against one address: every session in a task of its own, every request when it is due.
//!
//! A request is written before it is due and sent on a connection that is free, or on a new one: in an open loop nobody
//! waits for another. A session whose request failed is over. Bounded by the plan, which is all in memory, and by the
//! time that one request may take.
use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result};
use http::uri::Authority;
use serde::Serialize;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{self, Instant};

use super::plan::{Message, Plan, Session};
use super::stream::Reply;
use super::tally::{Answered, Tally};
use crate::answer::Answer;
use crate::client::{Connection, check};
use crate::contest::MODEL;
use crate::measurement::Failure;
use crate::target::CHAT_PATH;
use crate::workload::request;

/// The header that tells which requests belong together.
pub(crate) const SESSION_HEADER: &str = "x-session-id";

/// Time in which the first requests are written.
const LEAD_IN: Duration = Duration::from_millis(200);
const TIMEOUT: Duration = Duration::from_mins(1);

#[derive(Serialize)]
struct Chat<'a> {
    model: &'static str,
    messages: &'a [Message],
    max_tokens: u32,
    stream: bool,
    stream_options: StreamOptions,
}

#[derive(Serialize)]
struct StreamOptions {
    include_usage: bool,
}

/// Plays a plan to its end; `None` if it was interrupted before.
pub(crate) async fn play(
    plan: Plan,
    gateway: SocketAddr,
    settling: Duration,
    interrupt: impl Future<Output = ()>,
) -> Result<Option<Tally>> {
    let opened = Instant::now() + LEAD_IN;
    let tally = RefCell::new(Tally::new(opened, settling).context("histograms")?);
    let player = Rc::new(Player { gateway, opened, idle: RefCell::default(), tally });
    let local = LocalSet::new();
    let mut sessions = JoinSet::new();
    for (number, session) in plan.sessions.into_iter().enumerate() {
        sessions.spawn_local_on(Rc::clone(&player).converse(number, session), &local);
    }
    let ended = local.run_until(async {
        tokio::select! {
            () = async { while sessions.join_next().await.is_some() {} } => true,
            () = interrupt => false,
        }
    });
    let ended = ended.await;
    drop((sessions, local));
    Ok(Rc::into_inner(player).filter(|_| ended).map(|player| player.tally.into_inner()))
}

struct Player {
    gateway: SocketAddr,
    opened: Instant,
    idle: RefCell<Vec<Connection>>,
    tally: RefCell<Tally>,
}

impl Player {
    async fn converse(self: Rc<Self>, number: usize, session: Session) {
        let mut messages = session.opening;
        let mut last: Option<Instant> = None;
        for turn in session.turns {
            let due = last.map_or(self.opened + session.start, |last| last + turn.pause);
            messages.push(Message::user(turn.question));
            let request = chat(number, &messages, turn.answer_tokens);
            match self.ask(&request, due).await {
                Ok(text) => messages.push(Message::assistant(text.into())),
                Err(failure) => return self.tally.borrow_mut().failed(&failure),
            }
            last = Some(Instant::now());
        }
    }

    /// Sends a request when it is due; what the answer says.
    async fn ask(&self, request: &[u8], due: Instant) -> Result<String, Failure> {
        time::sleep_until(due).await;
        let idle = self.idle.borrow_mut().pop();
        let mut connection = idle.unwrap_or_else(|| Connection::to(self.gateway));
        let (sent, mut first_token) = (Instant::now(), None);
        let seen = |answer: &Answer| {
            if answer.events() > 0 {
                first_token.get_or_insert_with(Instant::now);
            }
        };
        let answer = connection.exchange(request, Answer::kept(), TIMEOUT, seen).await?;
        let end = Instant::now();
        check(&answer, true)?;
        self.idle.borrow_mut().push(connection);
        let reply = Reply::read(answer.body())?;
        let backend = answer.served_by().map(str::to_owned);
        let first_token = first_token.unwrap_or(end);
        self.tally.borrow_mut().answered(Answered {
            due,
            sent,
            first_token,
            end,
            usage: reply.usage,
            backend,
        });
        Ok(reply.text)
    }
}

/// A request as bytes.
fn chat(number: usize, messages: &[Message], max_tokens: u32) -> Vec<u8> {
    let stream_options = StreamOptions { include_usage: true };
    let chat = Chat { model: MODEL, messages, max_tokens, stream: true, stream_options };
    // Strings and numbers always have a form in JSON.
    let body = serde_json::to_vec(&chat).unwrap_or_default();
    let session = format!("{SESSION_HEADER}: {number}\r\n");
    request(&Authority::from_static("engines.test"), &CHAT_PATH, &session, &body)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::future::{pending, ready};

    use serde_json::Value;
    use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
    use tokio::net::TcpListener;

    use super::super::plan::Turn;
    use super::*;

    /// Takes one connection after the other; keeps the body of each request, and gives it the next of `answers`.
    async fn serve(
        listener: TcpListener,
        mut answers: impl Iterator<Item = String>,
        seen: &RefCell<Vec<Value>>,
    ) -> Infallible {
        loop {
            let mut stream = BufReader::new(listener.accept().await.unwrap().0);
            let (mut length, mut line) = (0, String::new());
            while stream.read_line(&mut line).await.unwrap() > 0 {
                if let Some(value) = line.strip_prefix("content-length: ") {
                    length = value.trim().parse().unwrap();
                }
                if line == "\r\n" {
                    let mut body = vec![0; length];
                    stream.read_exact(&mut body).await.unwrap();
                    seen.borrow_mut().push(serde_json::from_slice(&body).unwrap());
                    stream.write_all(answers.next().unwrap().as_bytes()).await.unwrap();
                }
                line.clear();
            }
        }
    }

    fn answer(text: &str) -> String {
        let body = format!(
            "data: {{\"choices\":[{{\"delta\":{{\"content\":\"{text}\"}}}}]}}\n\n\
             data: {{\"choices\":[],\"usage\":{{\"prompt_tokens\":5,\"completion_tokens\":1}}}}\n\ndata: [DONE]\n\n"
        );
        format!("HTTP/1.1 200 OK\r\nx-served-by: a\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    }

    fn busy() -> String {
        "HTTP/1.1 503 Busy\r\ncontent-length: 2\r\n\r\n{}".to_owned()
    }

    fn session(questions: &[&str]) -> Session {
        let turn = |question: &&str| Turn {
            pause: Duration::from_millis(5),
            question: (*question).into(),
            answer_tokens: 1,
        };
        let opening = vec![Message::system("be brief".into())];
        Session { start: Duration::ZERO, opening, turns: questions.iter().map(turn).collect() }
    }

    /// Plays sessions against a server with these answers; what it was asked, and the books.
    async fn meet(
        sessions: Vec<Session>,
        answers: Vec<String>,
        interrupt: impl Future<Output = ()>,
    ) -> (Vec<Value>, Option<Tally>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = RefCell::default();
        let played = tokio::select! {
            played = play(Plan { sessions }, address, Duration::ZERO, interrupt) => played.unwrap(),
            never = serve(listener, answers.into_iter(), &seen) => match never {},
        };
        (seen.into_inner(), played)
    }

    #[tokio::test]
    async fn a_turn_sends_what_the_engine_answered_before() {
        let answers = vec![answer("four"), answer("six")];
        let (seen, tally) = meet(vec![session(&["2 + 2?", "3 + 3?"])], answers, pending()).await;
        let said = |message: &Value| format!("{}: {}", message["role"].as_str().unwrap(), message["content"]);
        let said: Vec<_> = seen[1]["messages"].as_array().unwrap().iter().map(said).collect();
        let expected =
            ["system: \"be brief\"", "user: \"2 + 2?\"", "assistant: \"four\"", "user: \"3 + 3?\""];
        assert_eq!(said, expected);
        assert_eq!(
            (&seen[0]["stream"], &seen[0]["stream_options"]["include_usage"]),
            (&true.into(), &true.into())
        );
        assert_eq!(tally.unwrap().so_far(), (2, None));
    }

    #[tokio::test]
    async fn a_session_whose_request_failed_is_over() {
        let (seen, tally) = meet(vec![session(&["a", "b"])], vec![busy()], pending()).await;
        assert_eq!((seen.len(), tally.unwrap().so_far()), (1, (0, Some("status 503"))));
    }

    #[tokio::test]
    async fn an_interrupted_window_has_no_books() {
        let (_, tally) = meet(vec![session(&["a"])], Vec::new(), ready(())).await;
        assert!(tally.is_none());
    }
}
